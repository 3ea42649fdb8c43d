"""The scenario in which nothing happens, and what `make e2e-hosts` says; CI runs them all."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.api.brokers import environment
from tests.hosts.nets import NotAllowed, private_world
from tests.hosts.stories import STORIES
from tests.hosts.world import ROOT

if TYPE_CHECKING:
    from pathlib import Path


def e2e_hosts(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.hosts", *args],
        cwd=ROOT, env=environment(**env), capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip


def test_leases_stay_on_their_host_and_none_is_lost() -> None:
    """Two GPU hosts, their agents and a store: a line of figures, and no violation."""
    try:
        private_world()
    except NotAllowed as why:
        pytest.skip(str(why))
    done = e2e_hosts("local")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("local      ok  "), done.stdout
    assert " failed 0 " in done.stdout


def test_machine_without_namespaces_is_told_why(tmp_path: Path) -> None:
    """No scenario runs, and nobody is left to wonder."""
    (tmp_path / "unshare").write_text("#!/bin/sh\necho 'unshare failed: not permitted' >&2; exit 1")
    (tmp_path / "unshare").chmod(0o755)
    done = e2e_hosts(PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert (done.returncode, done.stdout.count("\n")) == (0, 1)
    assert done.stdout.startswith("e2e-hosts: skipped: this machine does not let us"), done.stdout
    assert "unshare failed: not permitted" in done.stdout


def test_scenario_that_does_not_exist_is_refused() -> None:
    """The answer names those that do."""
    done = e2e_hosts("earthquake")
    assert done.returncode == 2
    assert all(name in done.stderr for name in STORIES)
