"""`rediss://` with client certificates, sync and async."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from agent_sdk import AsyncLeaseClient, BrokerUnavailable, LeaseClient, OutcomeUnknown, Store
from tests.redis.test_acl import report
from tests.servers import binary, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def openssl(folder: Path, *args: str) -> None:
    subprocess.run(["openssl", *args], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CA, a certificate of the server and one of a client."""
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    new = ("-newkey", "rsa:2048", "-nodes")
    openssl(folder, "req", "-x509", *new, "-days", "2", "-subj", "/CN=ca", "-keyout", "ca.key",
            "-out", "ca.crt")  # fmt: skip
    (folder / "san").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    for name in ("server", "client"):
        openssl(folder, "req", *new, "-subj", f"/CN={name}", "-keyout", f"{name}.key",
                "-out", f"{name}.csr")  # fmt: skip
        openssl(folder, "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key",
                "-CAcreateserial", "-extfile", "san", "-out", f"{name}.crt")  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def port(certificates: Path) -> Iterator[int]:
    """Of a server that wants a client's certificate."""
    port = free_port()
    command = [str(binary("redis")), "--port", "0", "--tls-port", str(port), "--bind", "127.0.0.1",
               "--tls-cert-file", "server.crt", "--tls-key-file", "server.key",
               "--tls-ca-cert-file", "ca.crt", "--tls-auth-clients", "yes", "--save", "",
               "--logfile", "log"]  # fmt: skip
    with subprocess.Popen(command, cwd=certificates, stderr=subprocess.DEVNULL,
                          stdout=subprocess.DEVNULL) as process:  # fmt: skip
        time.sleep(0.7)
        if process.poll() is not None:
            pytest.skip("this server was built without TLS")
        try:
            yield port
        finally:
            process.terminate()


def url(port: int, folder: Path, *, client: bool = True) -> str:
    own = f"&ssl_certfile={folder}/client.crt&ssl_keyfile={folder}/client.key" if client else ""
    return f"rediss://127.0.0.1:{port}?ssl_ca_certs={folder}/ca.crt{own}"


async def test_lease_over_tls(port: int, certificates: Path) -> None:
    """By both clients."""
    store = Store(url(port, certificates))
    with LeaseClient(store, hostname="h1") as client:
        report(client)
        with client.lease("a", memory_mb=10, ttl_s=1) as lease:
            await asyncio.sleep(1.3)  # renewed on a connection of its own
            assert not lease.lost
    client = AsyncLeaseClient(store, hostname="h1")
    async with client.lease("a", memory_mb=10) as held:
        assert not held.on_cpu
    await client.close()


def test_who_has_no_certificate_gets_no_further(port: int, certificates: Path) -> None:
    """And is told that the store cannot be reached, and why."""
    with (
        LeaseClient(Store(url(port, certificates, client=False)), deadline_s=1) as client,
        pytest.raises((BrokerUnavailable, OutcomeUnknown)),
    ):
        client.acquire("a", memory_mb=10)
