"""`make e2e-hosts`: three hosts on one machine, and what may happen to them.

Each scenario runs in a private world of its own (nets.py), with real processes on network
namespaces; a line per run says how it went. The exit code is 1 when anything was wrong. A run that
went wrong leaves its folder: the agents' histories, the streams of events, every process's log.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.hosts.nets import NotAllowed, private_world
from tests.hosts.scenarios import SCENARIOS
from tests.hosts.world import ROOT, World

LONGEST_S = 120


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="tests.hosts", description=__doc__)
    parser.add_argument("scenario", nargs="*", choices=[[], *SCENARIOS], help="default: all")
    parser.add_argument("--times", type=int, default=1, help="run each so often")
    parser.add_argument("--inside", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.inside:
        return inside(asked.scenario[0], asked.inside)
    try:
        private_world()
    except NotAllowed as why:
        print(f"e2e-hosts: skipped: {why}")
        return 0
    wrong = 0
    for name in asked.scenario or SCENARIOS:
        for _ in range(asked.times):
            wrong += not run(name)
    return min(wrong, 1)


def inside(name: str, folder: Path) -> int:
    """Run one scenario in this world, which is its own."""
    seen = SCENARIOS[name](World(folder))
    (folder / "seen.json").write_text(json.dumps(asdict(seen)))
    return 0


def run(name: str) -> bool:
    """Run one in a new world and say how it went; whether it went well."""
    began, folder = time.monotonic(), Path(tempfile.mkdtemp(prefix=f"gpu-hosts-{name}-"))
    command = [*private_world(), sys.executable, "-m", "tests.hosts", name, "--inside", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=LONGEST_S, check=False
    )
    if done.returncode:
        seen: dict[str, Any] = {"figures": {}, "violations": [f"broke off: {done.stderr.strip()}"]}
    else:
        seen = json.loads((folder / "seen.json").read_text())
    figures = "  ".join(f"{key} {value:.6g}" for key, value in seen["figures"].items())
    verdict = "ok" if not seen["violations"] else f"WRONG, see {folder}"
    print(f"{name:10} {verdict}  {time.monotonic() - began:.0f} s  {figures}", flush=True)
    for violation in seen["violations"]:
        print(f"    {violation}")
    if not seen["violations"]:
        shutil.rmtree(folder)
    return not seen["violations"]


if __name__ == "__main__":
    sys.exit(main())
