"""The key file: what it keeps, what it refuses, and that running brokers follow it."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from broker.api_keys import Keyring, Principal, add, digest_of, new_key, parse, read, remove
from broker.key_file import KeysError
from broker.settings import SettingsError, load_settings
from tests.program import called

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

HEX = "ab" * 32


def gpu_broker(*args: str | Path, **settings: str) -> subprocess.CompletedProcess[str]:
    return called("keys", *args, **settings)


def test_key_has_256_bits_and_is_kept_nowhere(tmp_path: Path) -> None:
    """The file has its SHA-256 alone, and is its owner's."""
    file = tmp_path / "keys"
    key = add(file, "ann", "operator")
    assert len(key) == len("gbk_") + 43
    assert len({new_key() for _ in range(1000)}) == 1000
    assert key not in file.read_text()
    assert digest_of(key) in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    assert Keyring(file).find(key) == Principal("ann", "operator", digest_of(key))
    assert Keyring(file).find(key + "x") is None


def find(ring: Keyring, key: str) -> Principal | None:
    """Find a key as a request does: look whether one is needed, then whose this is."""
    return ring.find(key) if ring.locked else None


def test_keyring_follows_its_file(tmp_path: Path) -> None:
    """A key that is new opens, one that is gone does not, and a broken file opens to nobody."""
    file = tmp_path / "keys"
    first = add(file, "ann", "operator")
    ring = Keyring(file)
    second = add(file, "bob", "agent", ("scout-*",))
    assert find(ring, second).agents == ("scout-*",)
    assert remove(file, "ann")
    assert find(ring, first) is None
    assert remove(file, "ann") is False
    assert remove(file, "bob")
    assert ring.locked
    assert find(ring, second) is None
    third = add(file, "cay", "viewer")
    assert find(ring, third)
    file.write_text("cay is a viewer\n")
    assert find(ring, third) is None
    file.unlink()
    assert find(ring, third) is None
    assert ring.locked


def test_first_key_locks_a_ring_that_was_open(tmp_path: Path) -> None:
    """A broker that runs asks for keys from the moment that there is one."""
    file = tmp_path / "keys"
    ring = Keyring(file)
    assert ring.locked is False
    key = add(file, "ann", "operator")
    assert ring.locked is True
    assert find(ring, key).name == "ann"


def test_file_that_cannot_be_read_is_said_so(tmp_path: Path) -> None:
    """A folder in its place, or rights that are missing: no traceback, and no open door."""
    with pytest.raises(KeysError, match="is no file"):
        read(tmp_path)


def test_keyring_without_keys_is_open(tmp_path: Path) -> None:
    """No file, nothing in the environment."""
    assert Keyring(tmp_path / "none").locked is False
    assert Keyring(None).locked is False
    assert Keyring(None, f"ann operator {HEX}").locked is True
    assert Keyring(tmp_path / "none", f"ann operator {HEX}").locked is True


@pytest.mark.parametrize(
    "line",
    [
        "ann", "ann operator", "ann operator short", f"ann king {HEX}", f"an*n viewer {HEX}",
        f"ann operator {HEX.upper()}", f"ann agent {HEX} a,b more", f"ann agent {HEX} a;b",
        f"ann agent {HEX} 'a'",
    ],
)  # fmt: skip
def test_line_that_is_none_is_an_error_with_its_number(line: str) -> None:
    """Nobody is let in by half a line."""
    with pytest.raises(KeysError, match="line 3"):
        parse(["# a comment", "", line])


def test_name_twice_is_an_error(tmp_path: Path) -> None:
    """A revoke by a name that stands twice could not tell which of the two to end."""
    with pytest.raises(KeysError, match="already"):
        parse([f"ann viewer {HEX}", f"ann operator {HEX}"])
    file = tmp_path / "keys"
    add(file, "ann", "viewer")
    before = file.read_text()
    with pytest.raises(KeysError):
        add(file, "ann", "operator")
    with pytest.raises(KeysError):
        add(file, "not a name", "operator")
    assert file.read_text() == before
    assert sorted(os.listdir(tmp_path)) == [".keys.lock", "keys"]  # noqa: PTH208 - no draft


def test_file_that_others_may_write_is_refused(tmp_path: Path) -> None:
    """They could let themselves in."""
    file = tmp_path / "keys"
    add(file, "ann", "operator")
    file.chmod(0o666)
    with pytest.raises(KeysError, match="chmod go-w"):
        read(file)
    with pytest.raises(KeysError):
        Keyring(file)


def test_settings_say_what_is_wrong_with_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start without the keys that were meant would be an open door."""
    monkeypatch.setenv("GPU_BROKER_KEYS_FILE", str(tmp_path / "gone"))
    with pytest.raises(SettingsError, match="gpu-broker keys new"):
        load_settings()
    monkeypatch.delenv("GPU_BROKER_KEYS_FILE")
    monkeypatch.setenv("GPU_BROKER_KEYS", "ann operator secret")
    with pytest.raises(SettingsError, match="line 1 of the keys") as wrong:
        load_settings()
    assert "secret" not in str(wrong.value)


def test_commands_make_list_and_end_keys(tmp_path: Path) -> None:
    """By default where a broker on this machine looks for them."""
    state = {"GPU_BROKER_STATE_DIR": str(tmp_path / "state")}
    made = gpu_broker("new", "ann", "--role", "operator", **state)
    assert made.returncode == 0
    key = made.stdout.strip()
    assert Keyring(tmp_path / "state" / "keys").find(key).name == "ann"
    as_json = gpu_broker(
        "new", "bob", "--role", "agent", "--agents", "a, b-*", "-o", "json", **state
    )
    assert json.loads(as_json.stdout)["agents"] == ["a", "b-*"]
    listed = gpu_broker("list", **state).stdout
    assert "a,b-*" in listed
    assert key not in listed
    found = json.loads(gpu_broker("list", "-o", "json", **state).stdout)
    assert [entry["name"] for entry in found["keys"]] == ["ann", "bob"]
    assert gpu_broker("revoke", "ann", **state).returncode == 0
    gone = gpu_broker("revoke", "ann", **state)
    assert (gone.returncode, "is called ann" in gone.stderr) == (1, True)
    assert gpu_broker("new", "bob", "--role", "viewer", **state).returncode == 1
    assert gpu_broker("new", "bob", "--role", "king", **state).returncode == 2
