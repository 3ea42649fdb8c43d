"""`scripts/bench/usage.py`: a year of sums is as small as the documents promise."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parents[2] / "scripts" / "bench" / "usage.py"

DAYS, MOST_MIB = 3, 64


def test_year_of_use_takes_at_most_64_mib() -> None:
    """100 agents with three models each and 50 hosts, by days as full as that."""
    done = subprocess.run(
        [sys.executable, BENCH, "--days", str(DAYS)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = re.search(r"^usage +6 keys +([\d.]+) MiB$", done.stdout, re.MULTILINE)
    assert found, done.stdout
    assert float(found[1]) / DAYS * 365 <= MOST_MIB
