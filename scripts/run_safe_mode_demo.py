"""SAFE_MODE on and off, each in a fresh broker: nobody gets a GPU, then one does.

Writes safe_mode_cycle_on.json, safe_mode_cycle_off.json and safe_mode_toggle.jsonl. With --url it
runs one cycle against an orchestrator that runs already, in the mode in which it finds it. Exit
code 0 when everything was as documented, else 1.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from demo.cycle import run_cycle, wrong_with
from demo.processes import orchestrator
from demo.results import CYCLES, add_folder, write
from demo.web import Silent

if TYPE_CHECKING:
    from pathlib import Path


def main() -> int:
    """Run the cycles; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--url", help="an orchestrator that runs already, e.g. http://localhost:8014"
    )
    add_folder(parser)
    asked = parser.parse_args()
    try:
        if asked.url:
            cycle = run_cycle(asked.url.rstrip("/"))
            return keep(asked.output_dir, cycle, safe_mode=cycle["safe_mode"])
        (asked.output_dir / "safe_mode_toggle.jsonl").unlink(missing_ok=True)
        code = 0
        for safe_mode in (True, False):
            print(f"SAFE_MODE={str(safe_mode).lower()}: a fresh broker")
            with orchestrator(safe_mode=safe_mode) as url:
                code |= keep(asked.output_dir, run_cycle(url), safe_mode=safe_mode)
    except Silent as error:
        print(f"run_safe_mode_demo: {error}", file=sys.stderr)
        return 1
    return code


def keep(folder: Path, cycle: dict[str, Any], *, safe_mode: bool) -> int:
    """Write a cycle down and judge it."""
    write(folder / CYCLES[safe_mode], cycle)
    with (folder / "safe_mode_toggle.jsonl").open("a") as toggle:
        seen = {name: cycle[name] for name in ("at", "safe_mode", "lease")}
        toggle.write(json.dumps(seen) + "\n")
    wrong = wrong_with(cycle, safe_mode=safe_mode)
    for what in wrong:
        print(f"  WRONG: {what}", file=sys.stderr)
    lease = cycle["lease"]
    got = "denied, SAFE_MODE" if not lease.get("granted") else f"granted, GPU {lease['gpu']}"
    print(f"  lease: {got}; {'not as documented' if wrong else 'as documented'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
