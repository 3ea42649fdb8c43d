"""The Analyst's decision with SAFE_MODE on and off, as the documented client makes it.

Writes analyst_decision_flip.json. Exit code 0 when it flips from the CPU to the GPU, else 1.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from demo.processes import orchestrator
from demo.results import FOLDER, write
from demo.web import Silent

from agent_sdk import GPUOrchestratorClient


def main() -> int:
    """Ask in both modes; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    default = FOLDER / "analyst_decision_flip.json"
    parser.add_argument("--output", type=Path, default=default, help=f"default {default}")
    asked = parser.parse_args()
    decisions = {}
    try:
        for safe_mode in (True, False):
            with orchestrator(safe_mode=safe_mode) as url, GPUOrchestratorClient(url) as client:
                decisions[safe_mode] = client.cpu_fallback_decision()
    except Silent as error:
        print(f"mini_orchestrator_analyst_flip: {error}", file=sys.stderr)
        return 1
    flipped = (decisions[True]["use_gpu"], decisions[False]["use_gpu"]) == (False, True)
    write(
        asked.output,
        {"safe_mode_on": decisions[True], "safe_mode_off": decisions[False], "flipped": flipped},
    )
    print("the decision flips from the CPU to the GPU" if flipped else f"NO FLIP: {decisions}")
    return 0 if flipped else 1


if __name__ == "__main__":
    sys.exit(main())
