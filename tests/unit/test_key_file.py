"""The key file: its contents, writers that meet, others' hands in it, brokers that follow it."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from agent_sdk.store.trusted_path import untrusted
from broker import key_file
from broker.api_keys import (
    ANYBODY,
    Keyring,
    Principal,
    add,
    digest_of,
    new_key,
    parse,
    read,
    remove,
)
from broker.key_file import KeysError
from broker.settings import SettingsError, load_settings
from tests.program import called

if TYPE_CHECKING:
    from collections.abc import Callable
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
    """A key that is new opens, one that is gone does not, and a broken file opens nothing."""
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
    """Half of a line lets no client in."""
    with pytest.raises(KeysError, match="line 3"):
        parse(["# a comment", "", line])


def test_change_of_a_file_with_a_wrong_line_names_that_line(tmp_path: Path) -> None:
    """The one that is to be mended; the file stays as it is."""
    file = tmp_path / "keys"
    add(file, "ann", "operator")
    file.write_text(f"{file.read_text()}half of a line\n")
    before = file.read_text()
    for change in (lambda: add(file, "bob", "viewer"), lambda: remove(file, "ann")):
        with pytest.raises(KeysError, match="line 3 of the keys is not"):
            change()
    assert file.read_text() == before


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
    assert "answers no request without a key" in made.stderr
    key = made.stdout.strip()
    assert Keyring(tmp_path / "state" / "keys").find(key).name == "ann"
    as_json = gpu_broker(
        "new", "bob", "--role", "agent", "--agents", "a, b-*", "-o", "json", **state
    )
    assert json.loads(as_json.stdout)["agents"] == ["a", "b-*"]
    assert "first key" not in as_json.stderr
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


NOBODY = 65534
"""A user that is neither we nor root."""

WRITERS = 10

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to other users")

CHANGE = """
import sys
from pathlib import Path
from broker.api_keys import add, remove
file, number = Path(sys.argv[1]), sys.argv[2]
for turn in range(3):
    add(file, f"new-{number}-{turn}", "agent")
    assert remove(file, f"old-{number}-{turn}")
"""


def names(file: Path) -> set[str]:
    """Give the names with a key in the file."""
    return {principal.name for principal in read(file)}


def test_ten_processes_lose_no_key_and_bring_none_back(tmp_path: Path) -> None:
    """Each makes three keys and ends three, all at once: the file has just that."""
    file = tmp_path / "keys"
    for number in range(WRITERS):
        for turn in range(3):
            add(file, f"old-{number}-{turn}", "operator")
    command = [sys.executable, "-c", CHANGE, str(file)]
    writers = [subprocess.Popen([*command, str(number)]) for number in range(WRITERS)]
    assert [writer.wait(60) for writer in writers] == [0] * WRITERS
    assert names(file) == {f"new-{n}-{turn}" for n in range(WRITERS) for turn in range(3)}


def test_ten_threads_lose_no_key(tmp_path: Path) -> None:
    """A lock of a process would let its threads through."""
    file = tmp_path / "keys"
    with ThreadPoolExecutor(WRITERS) as threads:
        keys = list(threads.map(lambda n: add(file, f"k{n}", "viewer"), range(WRITERS)))
    assert names(file) == {f"k{n}" for n in range(WRITERS)}
    assert all(Keyring(file).find(key) for key in keys)


def test_writer_that_holds_the_lock_for_long_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The waiting process says which lock it waits for, and changes nothing."""
    file = tmp_path / "keys"
    add(file, "ann", "operator")
    monkeypatch.setattr(key_file, "LOCK_S", 0.1)
    with key_file.alone(file), pytest.raises(KeysError, match=r"\.keys\.lock"):
        add(file, "bob", "viewer")
    assert names(file) == {"ann"}


def test_change_keeps_what_else_stands_in_the_file(tmp_path: Path) -> None:
    """Comments are kept."""
    file = tmp_path / "keys"
    add(file, "ann", "operator")
    file.write_text(file.read_text() + "# bob is on leave until May\n")
    add(file, "cay", "viewer")
    remove(file, "ann")
    assert "# bob is on leave until May" in file.read_text()
    assert names(file) == {"cay"}


@as_root
@pytest.mark.parametrize("change", [lambda f: add(f, "bob", "viewer"), lambda f: remove(f, "ann")])
def test_change_keeps_mode_owner_and_acl(tmp_path: Path, change: Callable[[Path], object]) -> None:
    """A service that could read the keys before can read them after."""
    file = tmp_path / "keys"
    add(file, "ann", "operator")
    os.chown(file, 0, 33)
    file.chmod(0o640)
    # user::rw-, user:34:r--, group::r--, mask::r--, other::---; see posix_acl_xattr.h
    entries = [(1, 6, None), (2, 4, 34), (4, 4, None), (16, 4, None), (32, 0, None)]
    acl = (2).to_bytes(4, "little") + b"".join(
        tag.to_bytes(2, "little") + may.to_bytes(2, "little")
        + (0xFFFFFFFF if who is None else who).to_bytes(4, "little")
        for tag, may, who in entries
    )  # fmt: skip
    try:
        os.setxattr(file, "system.posix_acl_access", acl)
        os.setxattr(file, "user.note", b"mine")
    except OSError:
        pytest.skip("this file system has no ACL")
    change(file)
    now = file.stat()
    assert (now.st_uid, now.st_gid, stat.S_IMODE(now.st_mode)) == (0, 33, 0o640)
    assert os.getxattr(file, "system.posix_acl_access") == acl
    assert os.getxattr(file, "user.note") == b"mine"


def test_change_through_a_link_changes_what_it_leads_to(tmp_path: Path) -> None:
    """The link stays one."""
    real, link = tmp_path / "real", tmp_path / "keys"
    add(real, "ann", "operator")
    link.symlink_to(real)
    add(link, "bob", "viewer")
    assert link.is_symlink()
    assert names(real) == {"ann", "bob"}


@as_root
@pytest.mark.parametrize("what", ["file", "folder", "folder above", "link"])
def test_keys_in_the_hands_of_another_user_are_refused(tmp_path: Path, what: str) -> None:
    """The owner of the file, of a folder or of a link on its way could let himself in."""
    folder = tmp_path / "above" / "keys.d"
    folder.mkdir(parents=True)
    file, link = folder / "keys", folder / "link"
    add(file, "ann", "operator")
    link.symlink_to(file)
    theirs = {"file": file, "folder": folder, "folder above": folder.parent, "link": link}[what]
    os.chown(theirs, NOBODY, NOBODY, follow_symlinks=False)
    path = link if what == "link" else file
    for refused in (lambda: read(path), lambda: Keyring(path), lambda: remove(path, "ann")):
        with pytest.raises(KeysError, match=f"{theirs} belongs to user {NOBODY}"):
            refused()


@pytest.mark.parametrize("mode", [0o757, 0o775, 0o1777])
def test_keys_in_a_folder_that_others_may_write_are_refused(tmp_path: Path, mode: int) -> None:
    """They could put another file in their place; so no key is made there either."""
    folder = tmp_path / "open"
    folder.mkdir()
    file = folder / "keys"
    add(file, "ann", "operator")
    folder.chmod(mode)
    with pytest.raises(KeysError, match=f"chmod go-w {folder}$"):
        read(file)
    with pytest.raises(KeysError, match=f"chmod go-w {folder}$"):
        add(folder / "more", "bob", "viewer")
    folder.chmod(0o755)
    assert names(file) == {"ann"}


def test_path_of_links_without_end_is_refused(tmp_path: Path) -> None:
    """It is refused as the kernel refuses it."""
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="symbolic links"):
        untrusted(tmp_path / "a")
    with pytest.raises(KeysError, match="cannot be read"):
        read(tmp_path / "a")


@pytest.mark.parametrize("what", ["pipe", "bytes", "large"])
def test_what_is_no_key_file_is_refused_and_holds_nothing_up(tmp_path: Path, what: str) -> None:
    """A pipe without a writer, or bytes that are no text, must not stop a broker."""
    file = tmp_path / "keys"
    ring = Keyring(file)
    if what == "pipe":
        os.mkfifo(file, 0o600)
    else:
        file.write_bytes(b"\xff\xfe" if what == "bytes" else b"#" * (key_file.MAX_BYTES + 1))
        file.chmod(0o600)
    with pytest.raises(KeysError):
        read(file)
    assert ring.locked is True
    assert ring.trouble


@as_root
@pytest.mark.parametrize("hidden", ["folder", "file"])
def test_key_that_a_broker_may_not_read_locks_it(tmp_path: Path, hidden: str) -> None:
    """Another user: at its start a refusal in words; while it runs no client is an operator."""
    folder = tmp_path / "etc"
    folder.mkdir(mode=0o755)
    for above in (tmp_path, *tmp_path.parents):
        above.chmod(above.stat().st_mode | 0o711)
    add(folder / "keys", "ann", "operator")
    (folder / "keys").chmod(0o644)
    away = (folder / "keys").rename(tmp_path / "keys")
    code = (
        "import os, sys; from pathlib import Path; from broker.api_keys import Keyring, ANYBODY\n"
        "file = Path(sys.argv[1]); ring = Keyring(file)\n"
        "print(ring.locked, ring.admits(ANYBODY), flush=True); sys.stdin.readline()\n"
        "print(ring.locked, ring.admits(ANYBODY), ring.trouble, flush=True)\n"
        "try: Keyring(file)\nexcept ValueError as error: print(error)\n"
    )
    setpriv = f"setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups --".split()
    with subprocess.Popen(
        [*setpriv, sys.executable, "-c", code, str(folder / "keys")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ) as broker:  # fmt: skip
        assert broker.stdout.readline() == "False True\n"
        away.rename(folder / "keys")
        (folder if hidden == "folder" else folder / "keys").chmod(
            0o700 if hidden == "folder" else 0
        )
        said, _ = broker.communicate("\n", timeout=20)
    now, anew = said.splitlines()
    assert now.startswith("True False ")
    assert "cannot be read by user" in now
    assert "cannot be read by user" in anew


def test_key_that_loses_its_trust_while_a_broker_runs_opens_nothing(tmp_path: Path) -> None:
    """Rights are looked at with each change of them, not of the text alone."""
    file = tmp_path / "keys"
    key = add(file, "ann", "operator")
    ring = Keyring(file)
    for spoilt, good in ((file, 0o600), (tmp_path, 0o700)):
        spoilt.chmod(good | 0o022)
        assert ring.locked is True
        assert ring.find(key) is None
        assert f"chmod go-w {spoilt}" in ring.trouble
        spoilt.chmod(good)
        assert ring.locked is True
        assert ring.find(key) == Principal("ann", "operator", digest_of(key))
        assert ring.trouble == ""


def test_removed_file_is_said_with_the_way_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """No client gets in, none is an operator, and the log says what to do: once."""
    file = tmp_path / "keys"
    add(file, "ann", "operator")
    ring = Keyring(file)
    remove(file, "ann")
    file.unlink()
    assert [ring.locked for _ in range(3)] == [True] * 3
    assert not ring.admits(ANYBODY)
    assert [r.message for r in caplog.records if "gpu-broker keys new" in r.message] == [
        f"keys: {ring.trouble}"
    ]
    key = add(file, "ann", "operator")
    assert ring.locked
    assert ring.find(key)


@as_root
def test_settings_refuse_keys_that_cannot_be_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Named or by default: the start ends with one sentence."""
    file = tmp_path / "keys"
    add(file, "ann", "operator")
    os.chown(file, NOBODY, NOBODY)
    for variable, value in (("GPU_BROKER_KEYS_FILE", file), ("GPU_BROKER_STATE_DIR", tmp_path)):
        with monkeypatch.context() as patch:
            patch.setenv(variable, str(value))
            with pytest.raises(SettingsError, match="belongs to user"):
                load_settings()


def test_key_of_a_team_says_so_in_its_line(tmp_path: Path) -> None:
    """With and without agents; the word comes last, and names one team."""
    file = tmp_path / "keys"
    bound = add(file, "ann", "agent", ("scout-*",), team="nlp")
    free = add(file, "bob", "agent", team="vision.2")
    plain = add(file, "cay", "agent")
    ring = Keyring(file)
    assert [find(ring, key).team for key in (bound, free, plain)] == ["nlp", "vision.2", ""]
    assert find(ring, bound).agents == ("scout-*",)
    assert find(ring, free).agents == ()
    for wrong in ("team=", "team=a,b", "team=a team=b", "team=nlp scout", "team=" + "x" * 65):
        with pytest.raises(KeysError, match="line 1"):
            parse([f"ann agent {HEX} {wrong}"])
    with pytest.raises(KeysError):
        add(file, "eve", "agent", team="no team")


def test_list_shows_teams_where_a_key_has_one(tmp_path: Path) -> None:
    """A column more, and only then."""
    file = tmp_path / "keys"
    assert gpu_broker("new", "ann", "--role", "operator", "--file", file).returncode == 0
    assert "TEAM" not in gpu_broker("list", "--file", file).stdout
    made = gpu_broker(
        "new", "bob", "--role", "agent", "--team", "nlp", "--file", file, "-o", "json"
    )
    assert json.loads(made.stdout)["team"] == "nlp"
    shown = gpu_broker("list", "--file", file).stdout.splitlines()
    assert shown[0].split() == ["NAME", "ROLE", "AGENTS", "TEAM", "SHA-256"]
    assert [line.split()[3] for line in shown[1:]] == ["any", "nlp"]
    listed = json.loads(gpu_broker("list", "--file", file, "-o", "json").stdout)
    assert [key["team"] for key in listed["keys"]] == [None, "nlp"]


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [(("--agents", "#1"), 1, "an agent of a key"), (("--agents", "a,scout#1"), 1, "'scout#1'"),
     (("--agents", "a team=nlp"), 1, "an agent of a key"), (("--agents", ""), 2, "leave it out"),
     (("--agents", " , "), 2, "leave it out"), (("--team", ""), 2, "leave it out"),
     (("--team", "a#b"), 1, "the team of a key"), (("--team", "a b"), 1, "the team of a key")],
)  # fmt: skip
def test_key_is_bound_as_it_was_asked_for(
    tmp_path: Path, words: tuple[str, ...], code: int, says: str
) -> None:
    """A `#` or a blank made a key of another team, or one that may name any agent."""
    file = str(tmp_path / "keys")
    made = gpu_broker("new", "bob", "--role", "agent", *words, "--file", file)
    assert (made.returncode, made.stdout) == (code, "")
    assert says in " ".join(made.stderr.split())
    assert not (tmp_path / "keys").exists()


def test_name_that_is_none_or_taken_is_told_as_such(tmp_path: Path) -> None:
    """Not by the number of a line of the file."""
    file = str(tmp_path / "keys")
    for name in ("a b", "", "a#b"):
        made = gpu_broker("new", name, "--role", "viewer", "--file", file)
        assert (made.returncode, "the name of a key must match" in made.stderr) == (1, True)
    assert gpu_broker("new", "ann", "--role", "viewer", "--file", file).returncode == 0
    again = gpu_broker("new", "ann", "--role", "viewer", "--file", file)
    assert (again.returncode, "called ann already" in again.stderr) == (1, True)


def test_line_that_binds_to_no_agent_is_refused() -> None:
    """Commas alone would mean any."""
    with pytest.raises(KeysError, match="line 1"):
        parse([f"bob agent {'0' * 64} ,"])
