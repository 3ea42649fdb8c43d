"""Start of the command: another package `broker` beside ours, and an interrupt of the imports."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from gpu_lease_broker import OURS
from tests.api.brokers import PROGRAM, environment

INTERRUPTED = """
import builtins, os, signal, sys, gpu_lease_broker
imports = builtins.__import__
def interrupted(name, *more, **named):
    if name == "broker.cli":
        os.kill(os.getpid(), signal.SIGINT)
    return imports(name, *more, **named)
builtins.__import__ = interrupted
gpu_lease_broker.main()
"""

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


def test_interrupt_of_the_imports_ends_the_command_without_a_traceback() -> None:
    """By the signal, as a shell's loop expects; a parent that ignores it is heeded."""
    words = [sys.executable, "-c", INTERRUPTED, "--version"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")
    ignoring = ["sh", "-c", 'trap "" INT; exec "$0" "$@"', *words]
    done = subprocess.run(ignoring, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
