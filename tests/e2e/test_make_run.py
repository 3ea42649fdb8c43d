"""`make run` installs what running needs, and `make test` the rest."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def pins(lock: str) -> dict[str, str]:
    """Name -> version and hashes of all that a lock pins."""
    text = (ROOT / lock).read_text()
    found = re.findall(r"^([a-z0-9-]+)(==\S+(?: \\\n +--hash=\S+)+)", text, re.MULTILINE)
    return dict(found)


def named(requirements: list[str]) -> set[str]:
    """The packages that requirements name."""
    names = (re.match(r"[A-Za-z0-9-]+", each) for each in requirements)
    return {name[0].lower() for name in names if name}


def would_do(target: str, folder: Path) -> str:
    """Return the commands that make would run in a fresh clone."""
    makefile = folder / "Makefile"
    makefile.write_bytes((ROOT / "Makefile").read_bytes())
    for name in ("requirements.lock", "requirements-run.lock", "pyproject.toml"):
        (folder / name).touch()
    command = ["make", "--dry-run", "--file", str(makefile), target]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


def test_run_installs_the_small_lock_alone(tmp_path: Path) -> None:
    """With the interpreter's own venv, from hashes."""
    does = would_do("run", tmp_path)
    assert "python3 -m venv .venv" in does
    assert "--require-hashes -r requirements-run.lock" in does
    assert "-r requirements.lock" not in does


def test_test_installs_the_whole_lock_alone(tmp_path: Path) -> None:
    """`make run` after it finds what it needs."""
    does = would_do("test", tmp_path)
    assert "--require-hashes -r requirements.lock" in does
    assert "requirements-run.lock" not in does
    (tmp_path / ".venv").mkdir()
    for stamp in (".ready", ".runs"):
        (tmp_path / ".venv" / stamp).touch()
    assert "pip" not in subprocess.run(
        ["make", "--dry-run", "run"], cwd=tmp_path, check=True, capture_output=True, text=True
    ).stdout  # fmt: skip


def test_small_lock_is_a_part_of_the_whole_one() -> None:
    """Version for version and hash for hash: what runs is what was tested."""
    small, whole = pins("requirements-run.lock"), pins("requirements.lock")
    assert len(small) > 20
    assert {name: whole.get(name) for name in small} == small


def test_small_lock_has_what_running_needs_and_no_development_kit() -> None:
    """The broker, the embedded store's server, and what installs a checkout."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    small = pins("requirements-run.lock").keys()
    assert named(project["project"]["dependencies"]) <= small
    assert named(extras["broker"] + extras["embedded"]) <= small
    assert named(project["dependency-groups"]["checkout"]) <= small
    kit = named(extras["dev"] + extras["bench"] + extras["agents"]) - {"gpu-lease-broker"}
    assert not kit & small
