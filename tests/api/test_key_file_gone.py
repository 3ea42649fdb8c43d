"""A key file that goes away or becomes another's while a broker runs: each answer says so."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from broker.api_keys import UNUSABLE, add, remove
from tests.api.brokers import GRANTING, Broker, eventually
from tests.program import called

if TYPE_CHECKING:
    from pathlib import Path

    from tests.servers import Server


@pytest.mark.parametrize("how", ["removed", "given away"])
def test_broker_that_cannot_use_its_keys_says_so_and_doctor_the_way_out(
    server: Server, tmp_path: Path, how: str
) -> None:
    """No client gets in, and none has to guess: 401, log and doctor each say it."""
    file = tmp_path / "keys"
    ann = {"Authorization": f"Bearer {add(file, 'ann', 'operator')}"}
    add(file, "bob", "viewer")
    settings = GRANTING | {"REDIS_URL": server.url, "GPU_BROKER_POOL": f"gone-{how[:5]}"}
    settings |= {"GPU_BROKER_KEYS_FILE": str(file)}
    with Broker(**settings) as broker:
        broker.wait()
        settings |= {"GPU_ORCHESTRATOR_PORT": str(broker.port)}
        assert broker.http.get("/policy", headers=ann).status_code == 200
        remove(file, "bob")
        if how == "removed":
            file.unlink()
        else:
            file.chmod(0o666)
        for headers in ({}, ann):
            answer = broker.http.get("/policy", headers=headers)
            assert (answer.status_code, answer.json()["detail"]) == (401, UNUSABLE)
            assert str(file) not in answer.text
        assert str(file) in eventually(lambda: [x for x in broker.said().splitlines() if
                                                "keys:" in x], 5)[0]  # fmt: skip
        doctor = called("doctor", **settings)
        assert doctor.returncode == 1
        wanted = "gpu-broker keys new" if how == "removed" else "chmod go-w"
        assert wanted in doctor.stdout
        if how == "removed":
            assert "refuses every key" in doctor.stdout
            ann = {"Authorization": f"Bearer {add(file, 'ann', 'operator')}"}
        else:
            file.chmod(0o600)
        assert broker.http.get("/policy", headers=ann).status_code == 200
        assert "refuses every key" not in called("doctor", **settings).stdout


def test_doctor_of_who_has_no_keys_says_that_the_broker_asks_for_some(
    server: Server, tmp_path: Path
) -> None:
    """The broker of another user: nothing is wrong with it, and it is not open to all either."""
    key = add(tmp_path / "keys", "ann", "operator")
    settings = GRANTING | {"REDIS_URL": server.url, "GPU_BROKER_POOL": "elsewhere"}
    with Broker(**settings, GPU_BROKER_KEYS_FILE=str(tmp_path / "keys")) as broker:
        broker.wait()
        url = f"http://127.0.0.1:{broker.port}"
        doctor = called("doctor", **settings, GPU_ORCHESTRATOR_URL=url)
        assert f"the broker at {url} asks for keys" in doctor.stdout
        assert "WRONG" not in doctor.stdout
        assert key not in doctor.stdout


def test_doctor_finds_a_key_file_without_a_key(server: Server, tmp_path: Path) -> None:
    """Every request is refused: nothing else says why."""
    file = tmp_path / "keys"
    add(file, "ann", "operator")
    settings = GRANTING | {"REDIS_URL": server.url, "GPU_BROKER_POOL": "keyless"}
    settings |= {"GPU_BROKER_KEYS_FILE": str(file)}
    with Broker(**settings) as broker:
        broker.wait()
        settings |= {"GPU_ORCHESTRATOR_PORT": str(broker.port)}
        assert "has no key" not in called("doctor", **settings).stdout
        remove(file, "ann")
        doctor = called("doctor", **settings)
        assert doctor.returncode == 1
        assert f"{file} has no key, and the broker at" in doctor.stdout
        assert "gpu-broker keys new" in doctor.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file to another user")
def test_last_key_that_is_revoked_is_said(tmp_path: Path) -> None:
    """Removing the last key says what that means."""
    add(tmp_path / "keys", "ann", "operator")
    done = called("keys", "revoke", "ann", "--file", tmp_path / "keys")
    assert (done.returncode, "last key" in done.stderr) == (0, True)
    os.chown(tmp_path / "keys", 65534, -1)
    refused = called("keys", "new", "bob", "--role", "viewer", "--file", tmp_path / "keys")
    assert (refused.returncode, "belongs to user 65534" in refused.stderr) == (1, True)
