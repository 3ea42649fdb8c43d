"""State folders into which another user may have led us."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from agent_sdk import AsyncLeaseClient, LeaseClient
from agent_sdk.store.embedded import EmbeddedStore
from agent_sdk.store.server_binary import EmbeddedError
from broker.settings import load_settings
from tests.program import called

if TYPE_CHECKING:
    from pathlib import Path

NOBODY = 65534

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")


def test_state_folder_behind_a_link_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server and a client both refuse it: its maker may lead it elsewhere at any time."""
    private, link = tmp_path / "private", tmp_path / "link"
    private.mkdir(mode=0o700)
    link.symlink_to(private)
    os.chown(link, NOBODY, NOBODY, follow_symlinks=False)
    said = f"{link} is a link that user {NOBODY} made"
    with pytest.raises(EmbeddedError, match=said):
        EmbeddedStore(link / "state").start_or_join()
    assert not any(private.iterdir())
    monkeypatch.setenv("GPU_BROKER_STATE_DIR", str(link))
    monkeypatch.delenv("REDIS_URL", raising=False)
    for ask in (LeaseClient.from_env, AsyncLeaseClient.from_env, load_settings):
        with pytest.raises(ValueError, match=said):
            ask()
    for command, code in (("status", 1), ("leases", 1), ("doctor", 2)):
        done = called(command, GPU_BROKER_STATE_DIR=str(link))
        assert (done.returncode, said in done.stdout + done.stderr) == (code, True)
    os.chown(link, 0, 0, follow_symlinks=False)
    LeaseClient.from_env().close()


def test_state_folder_of_another_user_is_for_root_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator looks at a service's store; a user is not led to another's."""
    os.chown(tmp_path, NOBODY, NOBODY)
    monkeypatch.setenv("GPU_BROKER_STATE_DIR", str(tmp_path))
    monkeypatch.delenv("REDIS_URL", raising=False)
    LeaseClient.from_env().close()
    monkeypatch.setattr(os, "geteuid", lambda: 1234)
    with pytest.raises(ValueError, match=f"belongs to user {NOBODY}, not to us"):
        LeaseClient.from_env()
