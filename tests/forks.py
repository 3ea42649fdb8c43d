"""`gpu-broker` without the cost of its start: a process that has imported it forks.

A start of `serve` is 0.8 s of imports and some 0.1 s of work. A forked one has the arguments, the
environment, the streams and the process group of a started one, and runs the same `main` to its
end; `/proc/<pid>/cmdline` and `environ`, and limits, are the template's. Where the start itself is
the point, a test gives `Broker` a `program`, or starts `PROGRAM`.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpu_lease_broker import main

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import IO

AT_START = ("LANG", "LC_", "LD_", "MALLOC_", "PYTHON", "TZ")
"""Beginnings of variables that the loader or the interpreter reads when a process starts."""

NEEDED = ("broker.app", "broker.cli.commands.serve", "broker.cli.serving.broker")
"""Modules that `serve` imports when it is called for."""

STARTS = 2
"""Starts with a folder of libraries before there is a template for it."""

MOST_REQUEST = 131_072
"""Bytes of a request that a socket takes in one piece."""

LIBRARIES = "LD_LIBRARY_PATH"
"""The one of them that a template can have."""

_asked: Counter[str] = Counter()


def can_fork(env: Mapping[str, str]) -> bool:
    """Return whether a forked process would see this environment as a started one does.

    Another folder of libraries takes another template, which pays from a third start on.
    """
    if any(name.startswith(AT_START) and name != LIBRARIES for name in env):
        return False
    libraries = env.get(LIBRARIES, "")
    _asked[libraries] += 1
    return not libraries or _asked[libraries] > STARTS


class Forked:
    """A forked `gpu-broker`, with what tests use of a `subprocess.Popen`.

    Args:
        args: its command line, with the path of the program.
        env: its environment.
        output: its stdout and stderr.
    """

    def __init__(self, args: Sequence[str], env: Mapping[str, str], output: IO[str]) -> None:
        self.args = args
        self.returncode: int | None = None
        self._ended, theirs = socket.socketpair()
        text = json.dumps({"args": list(args), "env": dict(env), "folder": str(Path.cwd())})
        request = text.encode()
        assert len(request) < MOST_REQUEST
        with theirs:
            template = _template(env.get(LIBRARIES, ""))
            socket.send_fds(template, [request], [output.fileno(), theirs.fileno()])
        self.pid = int(self._ended.recv(32))
        self._handle = os.pidfd_open(self.pid)

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handle, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def poll(self) -> int | None:
        """Return the exit code; None while it runs."""
        with suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code when it has ended."""
        if self.returncode is None:
            self._ended.settimeout(timeout)
            try:
                self.returncode = int(self._ended.recv(32))
            except (BlockingIOError, TimeoutError):
                raise subprocess.TimeoutExpired(self.args, timeout or 0) from None
            os.close(self._handle)
            self._ended.close()
        return self.returncode


@cache
def _template(libraries: str) -> socket.socket:
    """Start the process that forks; it ends with this one."""
    env = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.forks", str(theirs.fileno())],
            cwd=Path(__file__).parents[1],
            env=env | ({LIBRARIES: libraries} if libraries else {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            process_group=0,
        )

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


class _Template:
    """The process that forks: it reads requests until their socket is closed.

    Args:
        requests: the socket.
    """

    def __init__(self, requests: socket.socket) -> None:
        self._requests = requests
        self._files = selectors.DefaultSelector()
        self._files.register(requests, selectors.EVENT_READ)
        self._ends: dict[int, socket.socket] = {}

    def run(self) -> dict[str, Any] | None:
        """Fork for each request: in a child, return the request; None: there will be no more."""
        while True:
            for key, _ in self._files.select():
                if key.data:
                    self._reap(key.fd, key.data)
                    continue
                text, files, *_ = socket.recv_fds(self._requests, MOST_REQUEST, 2)
                if not text:
                    return None
                if self._forked(*files):
                    return dict(json.loads(text))

    def _forked(self, output: int, end: int) -> bool:
        """Fork; return whether this is the child."""
        pid = os.fork()
        if not pid:
            os.setpgid(0, 0)  # where a test stops it, the suite is not hung up
            os.dup2(output, 1)
            os.dup2(output, 2)
        os.close(output)
        if not pid:
            os.close(end)
            self._close()
            return True
        with suppress(PermissionError, ProcessLookupError):
            os.setpgid(pid, pid)
        self._ends[pid] = socket.socket(fileno=end)
        self._ends[pid].send(str(pid).encode())
        self._files.register(os.pidfd_open(pid), selectors.EVENT_READ, pid)
        return False

    def _reap(self, handle: int, pid: int) -> None:
        status = os.waitpid(pid, 0)[1]
        with self._ends.pop(pid) as end, suppress(BrokenPipeError):
            end.send(str(os.waitstatus_to_exitcode(status)).encode())
        self._files.unregister(handle)
        os.close(handle)

    def _close(self) -> None:
        """Close in a child what is the template's."""
        for handle in [key.fd for key in self._files.get_map().values() if key.data]:
            os.close(handle)
        for end in self._ends.values():
            end.close()
        self._files.close()
        self._requests.close()


def _run() -> None:
    """Import what `serve` needs, and fork; a child goes on as `gpu-broker`."""
    for name in NEEDED:
        import_module(name)
    gc.freeze()
    with socket.socket(fileno=int(sys.argv[1])) as requests:
        asked = _Template(requests).run()
    if asked is None:
        return
    os.environ.clear()
    os.environ.update(asked["env"])
    os.chdir(asked["folder"])
    sys.path[0] = str(Path(asked["args"][0]).parent)
    sys.argv = asked["args"]
    sys.orig_argv = [sys.executable, *sys.argv]
    main()


if __name__ == "__main__":
    _run()
