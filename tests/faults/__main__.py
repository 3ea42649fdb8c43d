"""`make faults`: every attack, one line each; N=10 runs each so often, ATTACK="full torn" those.

A line says ok, WRONG, or skipped where any of its tests was, the seconds, and figures. What went
wrong leaves its folder or its log. The exit code is 1 when anything was wrong or skipped, but for
worlds that this machine does not allow.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from pathlib import Path

from tests.api.brokers import environment
from tests.faults.attacks import ATTACKS, Attack
from tests.hosts.__main__ import run as run_in_world
from tests.hosts.__main__ import summary, told
from tests.hosts.nets import NotAllowed, private_world
from tests.hosts.scenarios import Seen
from tests.hosts.world import ROOT

LONGEST_S = 900

WHOLE = {"GPU_BROKER_TESTS": "all"}
"""Lets the suite skip nothing because it takes long."""


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="tests.faults", description=__doc__)
    parser.add_argument("attack", nargs="*", choices=[[], *ATTACKS], help="default: all")
    parser.add_argument("--times", type=int, default=1, help="run each so often")
    parser.add_argument("--list", action="store_true", help="say what there is")
    asked = parser.parse_args()
    if asked.list:
        for name, attack in ATTACKS.items():
            print(f"{name:17} {attack.does}")
        return 0
    runs: dict[str, list[Seen]] = {}
    for name in asked.attack or ATTACKS:
        runs[name] = [seen for _ in range(asked.times) if (seen := run(name, ATTACKS[name]))]
        if asked.times > 1 and runs[name]:
            print(summary(name, runs[name]), flush=True)
    wrong = any(seen.violations or seen.skipped for each in runs.values() for seen in each)
    return int(wrong)


def run(name: str, attack: Attack) -> Seen | None:
    """Run one and say how it went; None: this machine cannot."""
    if not attack.world:
        return run_tests(name, attack)
    try:
        private_world()
    except NotAllowed as why:
        print(f"{name:17} skipped: {why}", flush=True)
        return None
    return run_in_world(name)


def run_tests(name: str, attack: Attack) -> Seen:
    """The long form of files of the suite; each test's figures are its properties."""
    began, folder = time.monotonic(), Path(tempfile.mkdtemp(prefix=f"gpu-faults-{name}-"))
    log, report = folder / "log", folder / "report.xml"
    command = [
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--timeout={LONGEST_S}",
        "-o", "junit_family=xunit1", f"--junitxml={report}", *attack.tests,
    ]  # fmt: skip
    with log.open("wb") as output:
        code = subprocess.run(
            command, cwd=ROOT, env=dict(os.environ) | environment(**WHOLE, **attack.env),
            stdout=output, stderr=subprocess.STDOUT, check=False,
        ).returncode  # fmt: skip
    seen = read(report) if report.exists() else Seen({}, [])
    if code and not seen.violations:
        seen.violations.append(f"pytest ended with {code}")
    if not seen.figures.get("tests") and not seen.violations:
        seen.violations.append("no test was run")
    told(name, seen, time.monotonic() - began, folder)
    return seen


def read(report: Path) -> Seen:
    """Return pytest's record: how many tests, their figures, and which were wrong."""
    seen = Seen({"tests": 0}, [])
    for case in ET.parse(report).iter("testcase"):
        seen.figures["tests"] += 1
        for figure in case.iter("property"):
            name, value = figure.get("name", ""), float(figure.get("value", "nan"))
            seen.figures[name] = max(value, seen.figures.get(name, value))
        for why in case.iter("skipped"):
            seen.skipped.append(f"{case.get('name')} was skipped: {why.get('message')}")
        for kind in ("failure", "error"):
            seen.violations += [
                f"{case.get('name')}: {(wrong.get('message') or '').splitlines()[0][:200]}"
                for wrong in case.iter(kind)
            ]
    return seen


if __name__ == "__main__":
    sys.exit(main())
