"""One run over a whole installation: orchestrator, Analyst, dashboard.

Exit code 0: all went well; 10: the orchestrator does not serve; 11: the Analyst does not; 12: the
dashboard (if it was named) does not; 13: a GPU is required and was denied.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from demo.web import Silent, ask

ORCHESTRATOR, ANALYST, DASHBOARD, DENIED = 10, 11, 12, 13

ARTICLE = {"id": "run", "title": "A quiet day", "text": "Nothing of note was heard of today."}


class Failed(Exception):
    """A check that failed; `code` is the exit code."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(why)
        self.code = code


def main() -> int:
    """Run it; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--orchestrator", default="http://localhost:8014", help="its URL")
    parser.add_argument("--analyst", default="http://localhost:8004", help="its URL")
    parser.add_argument("--dashboard", help="its URL; not looked at unless named")
    parser.add_argument("--require-gpu", action="store_true", help="the CPU will not do")
    asked = parser.parse_args()
    try:
        device = look_at_all(asked)
    except Failed as failed:
        print(failed, file=sys.stderr)
        return failed.code
    print(f"all serve; the Analyst worked on the {device.upper()}")
    return 0


def look_at_all(asked: argparse.Namespace) -> str:
    """Return the Analyst's device: gpu or cpu.

    Raises:
        Failed: something is not as it must be.
    """
    serves(ORCHESTRATOR, "orchestrator", f"{asked.orchestrator}/health")
    serves(ORCHESTRATOR, "orchestrator", f"{asked.orchestrator}/ready")
    serves(ANALYST, "analyst", f"{asked.analyst}/health")
    done = serves(ANALYST, "analyst", f"{asked.analyst}/analyze", {"articles": [ARTICLE]})
    if not done.get("results"):
        raise Failed(ANALYST, f"analyst: no result: {done}")
    if asked.dashboard:
        serves(DASHBOARD, "dashboard", asked.dashboard)
    device: str = done["results"][0]["device"]
    if asked.require_gpu and device != "gpu":
        raise Failed(DENIED, f"a GPU is required, and the Analyst got none: {done['reason']}")
    return device


def serves(code: int, what: str, url: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the answer of a service.

    Raises:
        Failed: not 200, or nothing.
    """
    try:
        answer = ask(url, body, timeout_s=60 if body else 5)
    except Silent as error:
        raise Failed(code, f"{what}: {error}") from error
    if answer.status != 200:  # noqa: PLR2004 - HTTP's OK
        raise Failed(code, f"{what}: {url} answered {answer.status} {answer.text[:200]}")
    return answer.body


if __name__ == "__main__":
    sys.exit(main())
