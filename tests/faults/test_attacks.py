"""`make faults` itself: what it lists is there, and what goes wrong is told."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING

from tests.api.brokers import environment
from tests.faults.__main__ import run_tests
from tests.faults.attacks import ATTACKS, Attack
from tests.hosts.attacks import ATTACKS as IN_WORLDS
from tests.hosts.scenarios import SCENARIOS
from tests.hosts.world import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

STORY = '''
def test_well(record_property):
    """All is well."""
    record_property("seconds", 1.5)

def test_wrong():
    """It is not."""
    assert 2 + 2 == 5, "a sum"
'''


def faults(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.faults", *args]
    return subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
    )


def test_every_attack_is_there() -> None:
    """Each has its world or its tests, and no attack of the worlds is left out."""
    worlds = {name for name, attack in ATTACKS.items() if attack.world}
    assert IN_WORLDS.keys() <= worlds <= IN_WORLDS.keys() | SCENARIOS.keys()
    for name, attack in ATTACKS.items():
        assert attack.world != bool(attack.tests), name
        for path in attack.tests:
            file, _, test = path.partition("::")
            assert f"def {test}" in (ROOT / file).read_text(), path


def test_list_says_what_each_does() -> None:
    """A line each; a name that is none is refused."""
    listed = faults("--list")
    assert listed.returncode == 0
    assert [line.split()[0] for line in listed.stdout.splitlines()] == list(ATTACKS)
    assert faults("earthquake").returncode == 2


SKIPPED = '''
import os
import pytest

def test_well():
    """All is well."""

@pytest.mark.skip(reason="too long")
def test_long():
    """Nobody ran it."""

@pytest.mark.skipif(os.environ.get("GPU_BROKER_TESTS") != "all", reason="short form")
def test_of_the_long_form():
    """Run by make faults, whatever it was called with."""
'''


def test_what_was_skipped_is_not_called_ok(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is known of a test that was not run; of one that takes long it is run."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("GPU_BROKER_TESTS", raising=False)
    story = tmp_path / "test_story.py"
    story.write_text(SKIPPED)
    seen = run_tests("story", Attack("", tests=(str(story),)))
    assert (seen.violations, seen.skipped) == ([], ["test_long was skipped: too long"])
    said = capsys.readouterr().out
    assert said.startswith("story      skipped  ")
    assert "test_long was skipped: too long" in said


def test_what_was_not_run_at_all_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file without tests, as after a rename."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    story = tmp_path / "test_story.py"
    story.write_text('"""No tests."""\n')
    assert run_tests("story", Attack("", tests=(str(story),))).violations


def test_what_goes_wrong_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """WRONG, where the log is, and which test said what; figures all the same."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    story = tmp_path / "test_story.py"
    story.write_text(STORY)
    seen = run_tests("story", Attack("", tests=(str(story),)))
    assert seen.figures == {"tests": 2, "seconds": 1.5}
    assert [violation.partition(":")[0] for violation in seen.violations] == ["test_wrong"]
    said = capsys.readouterr().out
    assert said.startswith("story      WRONG, see ")
    assert "a sum" in said
