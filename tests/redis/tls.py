"""Servers that speak TLS, and the options of their clients."""

from __future__ import annotations

import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.servers import binary, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def openssl(folder: Path, *args: str) -> None:
    subprocess.run(["openssl", *args], cwd=folder, check=True, capture_output=True)


@contextmanager
def serving(certificates: Path, *args: str, at: int | None = None) -> Iterator[int]:
    """The port of a server, or Sentinel, that wants a client's certificate."""
    port = at or free_port()
    command = [str(binary("redis")), *args, "--port", "0", "--tls-port", str(port),
               "--bind", "127.0.0.1", "--tls-cert-file", "server.crt", "--tls-key-file",
               "server.key", "--tls-ca-cert-file", "ca.crt", "--tls-auth-clients", "yes",
               "--tls-replication", "yes", "--logfile", f"log-{port}"]  # fmt: skip
    with subprocess.Popen(command, cwd=certificates, stderr=subprocess.DEVNULL,
                          stdout=subprocess.DEVNULL) as process:  # fmt: skip
        time.sleep(0.7)
        if process.poll() is not None:
            pytest.skip("this server was built without TLS")
        try:
            yield port
        finally:
            process.terminate()


def options(folder: Path, *, client: bool = True) -> str:
    own = f"&ssl_certfile={folder}/client.crt&ssl_keyfile={folder}/client.key" if client else ""
    return f"?ssl_ca_certs={folder}/ca.crt{own}"
