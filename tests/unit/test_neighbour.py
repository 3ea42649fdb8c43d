"""Another distribution's package `broker` beside ours."""

from __future__ import annotations

import subprocess
from pathlib import Path

from gpu_lease_broker import OURS
from tests.api.brokers import PROGRAM, environment

ROOT = Path(__file__).parents[2]


def test_package_of_another_distribution_is_refused_in_words(tmp_path: Path) -> None:
    """Nothing of it is imported."""
    (tmp_path / "broker").mkdir()
    theirs = tmp_path / "broker" / "__init__.py"
    theirs.write_text("raise SystemExit('imported')\n")
    done = subprocess.run(
        [PROGRAM, "status"], env=environment(PYTHONPATH=str(tmp_path)), capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (69, "")
    assert done.stderr.startswith(f"gpu-broker: {theirs} is another distribution's")
    assert "pip install --force-reinstall gpu-lease-broker" in done.stderr


def test_our_own_package_is_known_by_its_beginning() -> None:
    assert (ROOT / "broker" / "__init__.py").read_text().startswith(OURS)
