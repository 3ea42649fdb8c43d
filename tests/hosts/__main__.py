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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from statistics import median

from tests.hosts.attacks import ATTACKS, FULL_S
from tests.hosts.nets import NotAllowed, private_world
from tests.hosts.scenarios import Seen
from tests.hosts.stories import STORIES
from tests.hosts.world import ROOT, World

LONGEST_S = 180 + FULL_S

ALL = STORIES | ATTACKS


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="tests.hosts", description=__doc__)
    parser.add_argument("scenario", nargs="*", choices=[[], *ALL], help="default: all scenarios")
    parser.add_argument("--times", type=int, default=1, help="run each so often")
    parser.add_argument("--at-once", type=int, default=1, help="run so many beside each other")
    parser.add_argument("--inside", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.inside:
        return inside(asked.scenario[0], asked.inside)
    try:
        private_world()
    except NotAllowed as why:
        print(f"e2e-hosts: skipped: {why}")
        return 0
    names = [name for name in asked.scenario or STORIES for _ in range(asked.times)]
    with ThreadPoolExecutor(asked.at_once) as worlds:
        runs = list(zip(names, worlds.map(run, names), strict=True))
    if asked.times > 1:
        for name in dict.fromkeys(name for name, _ in runs):
            print(summary(name, [seen for of, seen in runs if of == name]))
    return int(any(seen.violations for _, seen in runs))


def inside(name: str, folder: Path) -> int:
    """Run one scenario in this world, which is its own."""
    seen = ALL[name](World(folder))
    (folder / "seen.json").write_text(json.dumps(asdict(seen)))
    return 0


def run(name: str) -> Seen:
    """Run one in a new world and say how it went."""
    began, folder = time.monotonic(), Path(tempfile.mkdtemp(prefix=f"gpu-hosts-{name}-"))
    command = [*private_world(), sys.executable, "-m", "tests.hosts", name, "--inside", str(folder)]
    try:
        subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=LONGEST_S, check=True
        )
        seen = Seen(**json.loads((folder / "seen.json").read_text()))
    except subprocess.CalledProcessError as error:
        seen = Seen({}, [f"broke off with {error.returncode}: {error.stderr.strip()}"])
    except subprocess.TimeoutExpired:
        seen = Seen({}, [f"not over after {LONGEST_S} s"])
    told(name, seen, time.monotonic() - began, folder)
    return seen


def told(name: str, seen: Seen, seconds: float, folder: Path) -> None:
    """Print how a run went; the folder of one that went well is removed."""
    figures = "  ".join(f"{key} {value:.6g}" for key, value in seen.figures.items())
    verdict = "skipped" if seen.skipped else "ok"
    if seen.violations:
        verdict = f"WRONG, see {folder}"
    lines = (f"    {line}\n" for line in (*seen.violations, *seen.skipped))
    said = f"{name:10} {verdict}  {seconds:.0f} s  {figures}\n" + "".join(lines)
    print(said, end="", flush=True)  # in one piece: another run may end at this moment
    if not seen.violations:
        shutil.rmtree(folder)


def summary(name: str, runs: list[Seen]) -> str:
    """The smallest, the middle and the largest of each figure, a line each."""
    well = [seen.figures for seen in runs if not (seen.violations or seen.skipped)]
    lines = [f"{name}: {len(well)} of {len(runs)} went well"]
    for key in well[0] if well else ():
        found = sorted(figures[key] for figures in well)
        lines.append(f"    {key:16} {found[0]:10.4g} {median(found):10.4g} {found[-1]:10.4g}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
