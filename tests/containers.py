"""Container engines for the suite: a real podman, and a daemon that notes what docker asks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from io import BytesIO
from pathlib import Path
from socketserver import ThreadingUnixStreamServer
from typing import TYPE_CHECKING, Any

from agent_sdk import Lease
from agent_sdk.engines.containers import runtime_args
from agent_sdk.protocol.messages import Device, Grant

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent_sdk.lease import HeldLease

TOKEN = "t" * 16

GPUS = ("GPU-5a4d2c1b-0000-4000-8000-000000000001", "GPU-5a4d2c1b-0000-4000-8000-000000000002")

IMAGE = "localhost/system:1"

SYSTEM = ("-v", "/usr:/usr:ro", IMAGE)
"""Words of `podman run` for a container with this machine's own programs."""

CONF = """
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
netns = "none"
[engine]
runtime = "{runtime}"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""

STORAGE = """
[storage]
driver = "vfs"
graphroot = "{folder}/root"
runroot = "{folder}/run"
"""


def lease(*uuids: str, kind: type[HeldLease] = Lease) -> HeldLease:
    devices = tuple(Device(uuid, n, "h1", "GPU", 1000, 2000) for n, uuid in enumerate(uuids))
    return kind(Grant(TOKEN, "ann", 1, 0, 60_000, 60_000, None, devices, 1e12))


def args(runtime: str, *uuids: str, root: Path = Path("/nonexistent")) -> tuple[str, ...]:
    return tuple(runtime_args(runtime, "x", ["A"], lease(*uuids).devices, root))


def podman_in(folder: Path) -> dict[str, str] | str:
    """Set podman up in a folder; return its environment, or the reason for which it cannot run."""
    why = "podman is not installed"
    for runtime in ("runc", "crun") if shutil.which("podman") else ():
        (folder / "containers.conf").write_text(CONF.format(runtime=runtime))
        (folder / "storage.conf").write_text(STORAGE.format(folder=folder))
        env = {
            "CONTAINERS_CONF": str(folder / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"),
            "XDG_RUNTIME_DIR": str(folder),
        }
        loaded = podman(env, "import", "--quiet", str(_image(folder)), IMAGE)
        done = podman(env, "run", "--rm", "--init", *SYSTEM, "true")
        if done.returncode == 0:
            return env
        why = f"podman runs no container here: {(loaded.stderr + done.stderr).strip()}"
    return why


def podman(env: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["podman", *words], env=os.environ | env, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip


def _image(folder: Path) -> Path:
    """An image of links into /usr, which is mounted."""
    path = folder / "image.tar"
    with tarfile.open(path, "w") as tar:
        for name in ("bin", "lib", "lib64", "sbin"):
            if Path("/usr", name).exists():
                link = tarfile.TarInfo(name)
                link.type, link.linkname = tarfile.SYMTYPE, f"usr/{name}"
                tar.addfile(link)
    return path


class _Daemon(BaseHTTPRequestHandler):
    """Daemon that notes the containers that it is to create, and creates none."""

    def do_HEAD(self) -> None:
        self._answer(200, b"")

    do_GET = do_HEAD  # noqa: N815 - the names are http.server's

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append(json.load(BytesIO(body)))  # type: ignore[attr-defined] # the stub server
        self._answer(500, b'{"message": "noted"}')

    def _answer(self, code: int, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Api-Version", "1.45")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if body:
            self.wfile.write(body)

    def address_string(self) -> str:  # a unix socket's peer has none
        return ""

    def log_message(self, *_: Any) -> None:
        """Write nothing."""


@contextmanager
def docker_daemon(folder: Path) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A daemon's URL, and the bodies of the requests to create containers."""
    path = str(folder / "docker.sock")
    with ThreadingUnixStreamServer(path, _Daemon) as server:
        server.daemon_threads = True
        server.asked = []  # type: ignore[attr-defined] # the stub server
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"unix://{path}", server.asked  # type: ignore[attr-defined] # the stub server
        finally:
            server.shutdown()
            thread.join()
