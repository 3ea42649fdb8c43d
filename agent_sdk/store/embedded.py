"""Embedded store: a private redis-server or valkey-server in a state folder.

It outlives the process that started it: a broker killed by SIGKILL takes no lease along. Three
files in the folder carry kernel locks (flock), which end with their holder however it dies; a
fourth, ``stopped``, lists the files on this disk that a clean stop left (see `clean_stop`):

- ``lock``: held during each start, join and leave, so these never overlap.
- ``users``: shared by every broker that uses the store. A leaving broker that gets it
  alone was the last, and shuts the server down.
- ``server.lock``: held by the server itself, through a descriptor that it inherits. While
  it is held no second server is started on this AOF. A process id may be reused and a
  socket file may be stale or deleted; this lock is neither.
"""

import fcntl
import logging
import os
import re
import socket as socketlib
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from agent_sdk.store import aof, clean_stop
from agent_sdk.store.server_binary import ENVIRONMENT, EmbeddedError, ServerBinary, find_server
from agent_sdk.store.trusted_path import foreign_link

log = logging.getLogger(__name__)

_SOCKET_PATH_BYTES = 107  # sun_path of unix(7) without its closing NUL
_POLL_S = 0.02
_QUOTED_LINES = 10

_BAD_AOF = re.compile(
    r"(Bad file format|Unexpected end of file|Unknown command '.*') reading the append only file"
)

TABLES = """\
hash-max-listpack-entries 24
zset-max-listpack-entries 0
"""
"""Settings with which a server looks things up in tables, where it would search lists.

The pool, its devices and the zsets of placement are looked up in at every lease. A lease's record
has some ten fields, so it stays a list, which takes less memory.
"""

# An RDB preamble of Valkey 9 cannot be read by Redis 7: without it, installing another
# server later does not cost the state.
_CONF = """\
# Written by gpu-broker whenever it starts its embedded store: changes here are lost.
# No TCP port: it would be open to every user of this machine.
port 0
dir {folder}
unixsocket redis.sock
unixsocketperm 600
pidfile redis.pid
logfile redis.log
daemonize yes
save ""
appendonly yes
appendfsync everysec
# Plain commands, which any Redis 7 or Valkey can read, and so can you.
aof-use-rdb-preamble no
maxmemory-policy noeviction
{tables}"""


class EmbeddedTimeoutError(EmbeddedError):
    """Error of an act that took too long. It may still happen; the call may be repeated."""


class EmbeddedStore:
    """Hold of one user on the store in ``state_dir``; constructing it touches nothing.

    ``server`` is started if none runs; by default ``find_server()`` is asked at that
    moment, so joining needs no server program. Methods block. An instance is for one
    thread at a time; any number of instances, here or in other processes, share a folder.

    ``began_anew``: this instance started the server without data that could not be read.
    """

    def __init__(self, state_dir: Path, *, server: ServerBinary | None = None) -> None:
        self._folder = state_dir.absolute()
        self._log = self._folder / "redis.log"
        self._server = server
        self._users_fd: int | None = None
        self.began_anew = False

    @property
    def socket(self) -> Path:
        """Path of the server's unix socket, even if it does not answer now."""
        return self._folder / "redis.sock"

    @property
    def url(self) -> str:
        """URL of the same socket for ``redis.Redis.from_url``."""
        return f"unix://{quote(os.fsencode(self.socket))}"

    def start_or_join(self, timeout_s: float = 10.0) -> bool:
        """Wait until the server answers and this instance counts as a user of it.

        Return True if this call started the server, False if it was there. Calling again counts
        once, and starts a server that has died since.

        Raises:
            EmbeddedUnavailable: A server had to be started and this machine has none.
            EmbeddedTimeoutError: No answer within ``timeout_s``: it hangs or still loads.
            EmbeddedError: The folder cannot be used, or the server died at its start.
        """
        deadline = time.monotonic() + timeout_s
        length = len(os.fsencode(self.socket))
        if length > _SOCKET_PATH_BYTES:
            raise EmbeddedError(
                f"{self.socket} has {length} bytes, a unix socket path at most "
                f"{_SOCKET_PATH_BYTES}: set GPU_BROKER_STATE_DIR to a shorter folder"
            )
        with self._plain_errors():
            _make_private(self._folder)
            with self._alone(deadline):
                started = self._bring_up(deadline)
                # Counting this late is safe: the server is ended only under `lock`.
                if self._users_fd is None:
                    users = os.open(self._folder / "users", os.O_RDWR | os.O_CREAT, 0o600)
                    fcntl.flock(users, fcntl.LOCK_SH | fcntl.LOCK_NB)
                    self._users_fd = users
        return started

    def refuses(self) -> bool:
        """Tell whether no server listens: a hanging or loading one does. Costs a connect."""
        with socketlib.socket(socketlib.AF_UNIX) as probe:
            probe.setblocking(False)
            try:
                probe.connect(str(self.socket))
            except (ConnectionRefusedError, FileNotFoundError):
                return True
            except OSError:  # its backlog is full, say
                return False
        return False

    def leave(self, timeout_s: float = 10.0) -> bool:
        """Stop being a user; the last one ends the server, with its AOF on disk.

        Return True if this was the last user, and no server is left; False if others go on, or this
        instance was no user. It is none afterwards in any case.

        Raises:
            EmbeddedTimeoutError: The server hung, or another process was starting or
                leaving, for all of ``timeout_s``: the server may still run.
            EmbeddedError: The server refused to end, or the folder is gone.
        """
        deadline = time.monotonic() + timeout_s
        users, self._users_fd = self._users_fd, None
        if users is None:
            return False
        try:
            with self._plain_errors(), self._alone(deadline):
                fcntl.flock(users, fcntl.LOCK_UN)
                last = _try_lock(users)
                if last:
                    self._shut_down(deadline)
                return last
        finally:
            # Closing alone would leave the lock to a child that was forked meanwhile.
            fcntl.flock(users, fcntl.LOCK_UN)
            os.close(users)

    def _bring_up(self, deadline: float) -> bool:
        if self._answers(deadline):
            return False
        untouched = clean_stop.take_note(self._folder)
        if done := aof.find_again(self._folder):
            log.warning("the embedded store: %s", done)
        for mend in (aof.cut, aof.set_aside, None):
            log_from = self._launch(deadline)
            if self._answers(deadline):
                if not untouched:
                    self._distrust(deadline)
                return True
            said = self._log.read_bytes()[log_from:].decode(errors="replace")
            if mend is None or not _BAD_AOF.search(said):
                break
            if done := mend(self._folder):
                log.warning("the embedded store: %s", done)
                self.began_anew |= mend is aof.set_aside
        tail = "\n".join(said.splitlines()[-_QUOTED_LINES:]) or "nothing"
        raise EmbeddedError(f"the embedded store died at its start; {self._log} says:\n{tail}")

    def _distrust(self, deadline: float) -> None:
        """Close all pools that no clean stop has left here."""
        try:
            with self._client(deadline) as client:
                clean_stop.distrust(client)
        except redis.RedisError as error:
            raise self._no_answer(error) from error

    def _launch(self, deadline: float) -> int:
        """Start the server; return the position of its own lines in redis.log."""
        server = self._server or find_server()
        conf = self._folder / "redis.conf"
        conf.write_bytes(os.fsencode(_CONF.format(folder=_quoted(self._folder), tables=TABLES)))
        lock = self._folder / "server.lock"
        with lock.open("ab") as held, self._log.open("ab") as log, conf.open("rb") as stdin:
            log_from = log.tell()
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # It daemonizes: only its first process is waited for, and the server is no
            # child of ours, to be reaped when it ends. It gets its file on stdin because it
            # takes a path for a pattern, and opens port 6379 when nothing matches. The
            # socket is an argument too: `ps` has no room for it otherwise.
            try:
                subprocess.run(  # noqa: S603 -- the server found above, by full path, no shell
                    [server.path, "--unixsocket", self.socket, "-"],
                    stdin=stdin,
                    stdout=log,
                    stderr=log,
                    env=ENVIRONMENT,
                    pass_fds=(held.fileno(),),
                    start_new_session=True,
                    timeout=_left_s(deadline),
                    check=False,  # failure shows as a dead server, and its log says why
                )
            except subprocess.TimeoutExpired as error:
                raise EmbeddedTimeoutError(f"{server.path} did not start in time") from error
        return log_from

    def _shut_down(self, deadline: float) -> None:
        # Asking first keeps a SHUTDOWN from waiting in the socket of a hung server and
        # ending it, much later, under its next users.
        if not self._answers(deadline):
            return
        try:
            with self._client(deadline) as client:
                clean_stop.forget_server(client)
                client.shutdown()
        except redis.TimeoutError as error:
            raise self._no_answer(error) from error
        except redis.RedisError as error:
            raise EmbeddedError(
                f"the embedded store in {self._folder} refused to end: {error}; see {self._log}"
            ) from error
        while not self._is_dead():
            if time.monotonic() > deadline:
                raise EmbeddedTimeoutError(f"the store in {self._folder} is still ending")
            time.sleep(_POLL_S)
        clean_stop.write_note(self._folder)

    def _answers(self, deadline: float) -> bool:
        """Wait for an answer: return True with one, False when no server lives to give it."""
        while True:
            try:
                with self._client(deadline) as client:
                    client.ping()
            except redis.ResponseError:
                return True  # not PONG, yet an answer: the disk is full, a script is long
            except redis.RedisError as error:
                # Its subclasses, LOADING and NOAUTH among them, come from a living server.
                unreachable = type(error) is redis.ConnectionError
                if unreachable and self._is_dead():
                    return False
                if time.monotonic() > deadline:
                    raise self._no_answer(error) from error
            else:
                return True
            time.sleep(_POLL_S)

    def _is_dead(self) -> bool:
        with (self._folder / "server.lock").open("ab") as probe:
            return _try_lock(probe.fileno())

    def _no_answer(self, error: Exception) -> EmbeddedTimeoutError:
        return EmbeddedTimeoutError(
            f"no answer on {self.socket} in time ({error}): its server (see redis.pid) hangs, "
            "still loads, or runs on another machine that shares this folder"
        )

    def _client(self, deadline: float) -> redis.Redis:
        return redis.Redis(
            unix_socket_path=str(self.socket),
            socket_timeout=_left_s(deadline),
            socket_connect_timeout=_left_s(deadline),
            retry=Retry(NoBackoff(), 0),
        )

    @contextmanager
    def _alone(self, deadline: float) -> Iterator[None]:
        path = self._folder / "lock"
        with path.open("ab") as lock:
            while not _try_lock(lock.fileno()):
                if time.monotonic() > deadline:
                    raise EmbeddedTimeoutError(f"others held {path}, starting or leaving")
                time.sleep(_POLL_S)
            try:
                yield
            finally:
                fcntl.flock(lock, fcntl.LOCK_UN)

    @contextmanager
    def _plain_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise EmbeddedError(
                f"no embedded store in {self._folder}: {error}; "
                "GPU_BROKER_STATE_DIR names another folder"
            ) from error


def _make_private(folder: Path) -> None:
    if why := foreign_link(folder):
        raise EmbeddedError(f"{why}: set GPU_BROKER_STATE_DIR to a folder of our own")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if found.st_uid != os.geteuid():
        raise EmbeddedError(
            f"{folder} belongs to user {found.st_uid}, not to us ({os.geteuid()}): "
            "set GPU_BROKER_STATE_DIR to a folder of our own"
        )
    mode = stat.S_IMODE(found.st_mode)
    foreign = not (folder / "lock").exists() and any(folder.iterdir())
    if mode & 0o077 and foreign:
        # Closing /tmp or /var/lib to all other users would be worse than not starting.
        raise EmbeddedError(
            f"{folder} is open to other users and holds other files: set "
            "GPU_BROKER_STATE_DIR to a folder of our own, or chmod 700 it"
        )
    if mode != 0o700:  # noqa: PLR2004 -- the mode that this function is about
        folder.chmod(0o700)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _left_s(deadline: float) -> float:
    # Never 0: a socket would take that as "do not wait at all".
    return max(deadline - time.monotonic(), _POLL_S)


def _quoted(path: Path) -> str:
    text = str(path).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{text}"'
