"""Look at a running orchestrator and Analyst for a while, and judge what they say.

Exit code 0: all there and consistent; 2: an endpoint is missing; 3: use_gpu without gpu_available.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from demo.results import FOLDER, write
from demo.web import Answer, Silent, ask, metrics

MISSING, INCONSISTENT = 2, 3

ENDPOINTS = ("/health", "/ready", "/gpu/info", "/policy", "/allocations", "/metrics")

MISSES = (404, 405, 501)


def main() -> int:
    """Sample; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--orchestrator", default="http://localhost:8014", help="its URL")
    parser.add_argument("--analyst", default="http://localhost:8004", help="its URL")
    default = FOLDER / "e2e_orchestrator_validation.json"
    parser.add_argument("--output", type=Path, default=default, help=f"default {default}")
    parser.add_argument("--sample-interval", type=float, default=1.0, help="seconds (default 1)")
    parser.add_argument("--samples", type=int, default=3, help="how many (default 3)")
    asked = parser.parse_args()
    samples: list[dict[str, Any]] = []
    problem, code = None, 0
    try:
        missing = missing_of(asked.orchestrator, asked.analyst)
        if missing:
            problem, code = f"missing: {', '.join(missing)}", MISSING
        for number in range(asked.samples if not problem else 0):
            time.sleep(asked.sample_interval if number else 0)
            samples.append(sample(asked.orchestrator, asked.analyst))
            decision = samples[-1]["decision"]
            if decision["use_gpu"] and not decision["gpu_available"]:
                problem, code = f"use_gpu without gpu_available: {decision}", INCONSISTENT
    except (Silent, KeyError) as error:
        problem, code = f"missing: {error}", MISSING
    write(asked.output, {"samples": samples, "problem": problem, "exit_code": code})
    print(problem or f"{len(samples)} samples, all consistent")
    return code


def missing_of(orchestrator: str, analyst: str) -> list[str]:
    """Return the endpoints that are not there."""
    urls = [orchestrator + path for path in ENDPOINTS]
    urls += [f"{analyst}/health", f"{analyst}/decision"]
    return [url for url in urls if ask(url).status in MISSES]


def sample(orchestrator: str, analyst: str) -> dict[str, Any]:
    """Return one look at all of it."""
    decided: Answer = ask(f"{analyst}/decision", {})
    decision = {name: decided.body[name] for name in ("use_gpu", "gpu_available", "safe_mode")}
    return {
        "at": time.time(),
        "decision": decision,
        "policy": ask(f"{orchestrator}/policy").body,
        "gpu_info": ask(f"{orchestrator}/gpu/info").body,
        "metrics": metrics(orchestrator),
    }


if __name__ == "__main__":
    sys.exit(main())
