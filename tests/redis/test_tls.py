"""`rediss://` with client certificates, sync and async."""

from __future__ import annotations

import asyncio
import shutil
import time
from typing import TYPE_CHECKING

import pytest

from agent_sdk import (
    AsyncLeaseClient,
    BrokerUnavailable,
    Denied,
    LeaseClient,
    OutcomeUnknown,
    Store,
)
from tests.redis.tls import openssl, options, serving
from tests.reports import register
from tests.servers import free_port
from tests.stores import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


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
    """Return the port of a plain server."""
    with serving(certificates, "--save", "") as port:
        yield port


def url(port: int, folder: Path, *, client: bool = True) -> str:
    return f"rediss://127.0.0.1:{port}{options(folder, client=client)}"


async def check_leases(store: Store) -> None:
    """By both clients."""
    with LeaseClient(store, hostname="h1") as client:
        register(client)
        with client.lease("a", memory_mb=10, ttl_s=1) as lease:
            await asyncio.sleep(1.3)  # renewed on a connection of its own
            assert not lease.lost
    client = AsyncLeaseClient(store, hostname="h1")
    async with client.lease("a", memory_mb=10) as held:
        assert not held.on_cpu
    await client.close()


async def test_lease_over_tls(port: int, certificates: Path) -> None:
    """One server."""
    await check_leases(Store(url(port, certificates)))


@pytest.mark.parametrize("who", ["blocking", "asyncio"])
async def test_plain_words_to_a_port_of_tls_are_an_error_at_once(port: int, who: str) -> None:
    """The server hangs up on them, as a proxy without its server does: it is asked in TLS."""
    began = time.monotonic()
    with pytest.raises(BrokerUnavailable, match="rediss://, not redis://"):
        await ask(f"redis://127.0.0.1:{port}", who)
    assert time.monotonic() - began < 15


@pytest.mark.parametrize("who", ["blocking", "asyncio"])
async def test_certificate_that_is_not_trusted_is_an_error_at_once(port: int, who: str) -> None:
    """It says what to name."""
    began = time.monotonic()
    with pytest.raises(BrokerUnavailable, match="ssl_ca_certs"):
        await ask(f"rediss://127.0.0.1:{port}", who)
    assert time.monotonic() - began < 15


async def ask(where: str, who: str) -> None:
    """One reading that would be tried for 30 s."""
    if who == "asyncio":
        async with AsyncLeaseClient(Store(where), hostname="h1", deadline_s=30) as client:
            await client.pool()
    else:
        with LeaseClient(Store(where), hostname="h1", deadline_s=30) as client:
            client.pool()


async def test_lease_over_tls_by_a_sentinel_that_has_a_password(
    port: int, certificates: Path
) -> None:
    """Sentinel's password is its own, and the store does not ask for it."""
    conf = certificates / "sentinel.conf"
    conf.write_text(f"sentinel monitor gpu 127.0.0.1 {port} 1\nrequirepass secret\n")
    with serving(certificates, str(conf), "--sentinel") as sentinel:
        where = f"rediss+sentinel://127.0.0.1:{sentinel}/gpu{options(certificates)}"
        await check_leases(Store(f"{where}&sentinel_password=secret"))
        with LeaseClient(Store(where), deadline_s=1) as client, pytest.raises(Denied):
            client.devices()


async def test_lease_over_tls_on_a_cluster_that_has_a_password(certificates: Path) -> None:
    """Asked by who wants to know where the pool is, and by the node that has it."""
    bus = ("--cluster-enabled", "yes", "--tls-cluster", "yes", "--cluster-port", str(free_port()))
    with serving(certificates, "--save", "", *bus, "--requirepass", "secret") as node:
        with Store(url(node, certificates).replace("://", "://:secret@")).connect() as admin:
            admin.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)
            until(lambda: "'cluster_state': 'ok'" in str(admin.execute_command("CLUSTER INFO")))
        where = f"rediss+cluster://:secret@127.0.0.1:{node}{options(certificates)}"
        await check_leases(Store(where))


def test_who_has_no_certificate_gets_no_further(port: int, certificates: Path) -> None:
    """And is told that the store cannot be reached, and why."""
    with (
        LeaseClient(Store(url(port, certificates, client=False)), deadline_s=1) as client,
        pytest.raises((BrokerUnavailable, OutcomeUnknown)),
    ):
        client.acquire("a", memory_mb=10)
