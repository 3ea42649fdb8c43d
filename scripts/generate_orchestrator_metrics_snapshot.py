"""/metrics in both cycles of run_safe_mode_demo.py, side by side.

Reads safe_mode_cycle_on.json and safe_mode_cycle_off.json; writes metrics_snapshot.json (both
cycles, the difference, observations) and metrics_snapshot.txt.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from demo.cycle import ACTIVE
from demo.results import CYCLES, add_folder, write

if TYPE_CHECKING:
    from pathlib import Path

EXPIRED = "gpu_orchestrator_lease_expired_total"

MOVES = "gpu_orchestrator_uptime_seconds"
"""Differs in any two snapshots, and says nothing."""


def main() -> int:
    """Write both files; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_folder(parser)
    folder: Path = parser.parse_args().output_dir
    cycles = {}
    for safe_mode, name in CYCLES.items():
        try:
            cycles[safe_mode] = json.loads((folder / name).read_text())
        except (OSError, ValueError) as error:
            print(
                f"{folder / name} cannot be read ({error}): run "
                "python scripts/run_safe_mode_demo.py first",
                file=sys.stderr,
            )
            return 1
    found = snapshot(cycles[True], cycles[False])
    write(folder / "metrics_snapshot.json", found)
    path = folder / "metrics_snapshot.txt"
    path.write_text(as_text(found))
    print(f"wrote {path}")
    return 0


def snapshot(on: dict[str, Any], off: dict[str, Any]) -> dict[str, Any]:
    """Both cycles with a lease asked for, and name -> off - on of what differs."""
    safe, open_ = on["metrics"]["during"], off["metrics"]["during"]
    names = sorted((safe.keys() | open_.keys()) - {MOVES})
    values = {name: (safe.get(name, 0.0), open_.get(name, 0.0)) for name in names}
    return {
        "safe_mode_on": safe,
        "safe_mode_off": open_,
        "difference": {name: b - a for name, (a, b) in values.items() if a != b},
        "observations": observations(on, off),
    }


def observations(on: dict[str, Any], off: dict[str, Any]) -> list[str]:
    """Return the facts that a person should see in it, as sentences."""
    safe, open_ = on["metrics"]["during"], off["metrics"]["during"]
    after = off["metrics"]["after"]
    denied = "denied" if on["lease"].get("granted") is False else "NOT denied"
    gpu, left = off["lease"].get("gpu"), after[ACTIVE]
    said = [
        f"SAFE_MODE on: the lease was {denied}; {ACTIVE} is {safe[ACTIVE]:g}.",
        f"SAFE_MODE off: the lease was on GPU {gpu}; {ACTIVE} is {open_[ACTIVE]:g}.",
        f"After the release {ACTIVE} is {left:g}.",
    ]
    if after.get(EXPIRED, 0):
        said.append(f"{after[EXPIRED]:g} leases expired.")
    return said


def as_text(found: dict[str, Any]) -> str:
    """Return the same as columns."""
    on, off = found["safe_mode_on"], found["safe_mode_off"]
    names = sorted(on.keys() | off.keys())
    width = max(len(name) for name in names)
    lines = [f"{'':{width}}  SAFE_MODE on  off"]
    for name in names:
        mark = "  *" if name in found["difference"] else ""
        lines.append(f"{name:{width}}  {on.get(name, 0.0):<12g}  {off.get(name, 0.0):<g}{mark}")
    return "\n".join([*lines, "", *found["observations"]]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
