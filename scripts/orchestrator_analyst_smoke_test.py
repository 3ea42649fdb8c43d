"""Orchestrator and Analyst together: one decision, one lease, one release.

Starts both, or uses those at --orchestrator and --analyst. Exit code 0 when all went well, else 1.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack

from demo.cycle import ACTIVE
from demo.processes import analyst, orchestrator
from demo.web import Silent, ask, metrics

ARTICLE = {"id": "smoke", "title": "A welcome success", "text": "A happy team wins a prize."}


def main() -> int:
    """Run it; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--orchestrator", help="URL of one that runs already")
    parser.add_argument("--analyst", help="URL of one that runs already")
    asked = parser.parse_args()
    try:
        with ExitStack() as stack:
            enter = stack.enter_context
            url = asked.orchestrator or enter(orchestrator(safe_mode=False))
            return smoke(url, asked.analyst or enter(analyst(url)))
    except Silent as error:
        print(f"orchestrator_analyst_smoke_test: {error}", file=sys.stderr)
        return 1


def smoke(orchestrator_url: str, analyst_url: str) -> int:
    """Return the exit code."""
    decision = ask(f"{analyst_url}/decision", {}).body
    done = ask(f"{analyst_url}/analyze", {"articles": [ARTICLE]}, timeout_s=60).body
    result, lease = done["results"][0], done["lease"]
    active = metrics(orchestrator_url)[ACTIVE]
    held = ask(f"{orchestrator_url}/allocations").body["allocations"]
    mine = [token for token, x in held.items() if x["agent"] == "analyst"]
    checks = {
        "decision": (f"use_gpu {decision['use_gpu']}", decision["use_gpu"] is True),
        "lease": (f"gpu {lease['gpu']}, fence {lease['fence']}", lease["on_cpu"] is False),
        "work": (f"{result['label']} on {result['device']}", result["label"] == "positive"),
        "release": (f"{len(mine)} held, {ACTIVE} {active:g}", not mine),
    }
    for name, (seen, holds) in checks.items():
        print(f"{'ok  ' if holds else 'FAIL'} {name:9} {seen}")
    return 0 if all(holds for _, holds in checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
