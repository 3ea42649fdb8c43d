"""Certificates and passwords that are renewed under running clients: read at each connection."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from agent_sdk import AsyncLeaseClient, BrokerUnavailable, LeaseClient, Store
from agent_sdk.store.url import parse
from tests.api.brokers import GRANTING, Broker, environment
from tests.api.sse import following
from tests.redis.tls import openssl, options, serving
from tests.servers import free_port, running
from tests.stores import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import redis

WHOLE: Any = {"memory_mb": 10, "exclusive": True, "host": "h2", "ttl_s": 300, "wait_s": 90}

PROGRAM = Path(sys.executable).parent / "gpu-broker"


@contextmanager
def host(url: str) -> Iterator[None]:
    """A host h2 of one simulated device, which reports every half second."""
    env = environment(**GRANTING | {"GPU_BROKER_HOSTNAME": "h2", "REDIS_URL": url})
    with subprocess.Popen([PROGRAM, "host"], env=env, stdout=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.terminate()


async def check_everybody(url: str, rotate: Callable[[], None], admin: redis.Redis) -> None:
    """Leases that are kept, a waiter of each client, a broker, its events and a host go on."""
    loop = asyncio.get_running_loop()
    with (
        Broker(**GRANTING, REDIS_URL=url) as broker,
        host(url),
        LeaseClient(Store(url), hostname="h1", deadline_s=10) as client,
    ):
        broker.wait()
        own = AsyncLeaseClient(Store(url), hostname="h1", deadline_s=10)
        await loop.run_in_executor(
            None, until, lambda: {h.host for h in client.hosts()} == {"h1", "h2"}
        )
        async with own.lease("kept", memory_mb=10, ttl_s=6) as lease:
            held, got = client.acquire("holder", **WHOLE), []
            first = threading.Thread(target=lambda: got.append(client.acquire("next", **WHOLE)))
            first.start()
            await loop.run_in_executor(None, until, lambda: len(client.queue()) == 1)
            second = asyncio.create_task(own.acquire("last", **WHOLE))
            await loop.run_in_executor(None, until, lambda: len(client.queue()) == 2)
            before = {h.host: h.reported_ms for h in client.hosts()}
            rotate()
            admin.client_kill_filter(_type="normal", skipme=True)
            with following(broker, silent_s=30) as events:
                client.release(held)
                await asyncio.to_thread(first.join, 60)
                assert [m.event for m in await asyncio.to_thread(events.take, 1)]
            client.release(got[0])
            assert await own.release(await second)
            assert not await lease.wait_lost(6.5), lease.lost_reason
            after = {h.host: h.reported_ms for h in client.hosts()}
            assert all(after[name] > before[name] for name in before)
        broker.wait()
        assert broker.release(broker.granted(min_memory_mb=1)["token"]).status_code == 200
        await own.close()


def prepare(folder: Path) -> None:
    """Have another CA at hand, and certificates of it."""
    new = folder / "new"
    new.mkdir(exist_ok=True)
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl(new, "req", "-x509", *key, "-days", "2", "-subj", "/CN=ca", "-keyout", "ca.key",
            "-out", "ca.crt")  # fmt: skip
    (new / "san").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    for name in ("server", "client"):
        openssl(new, "req", *key, "-subj", f"/CN={name}", "-keyout", f"{name}.key",
                "-out", f"{name}.csr")  # fmt: skip
        openssl(new, "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key",
                "-CAcreateserial", "-extfile", "san", "-out", f"{name}.crt")  # fmt: skip


def install(folder: Path) -> None:
    """Replace each file as a whole."""
    for path in sorted((folder / "new").iterdir()):
        path.replace(folder / path.name)


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    prepare(tmp_path)
    install(tmp_path)
    return tmp_path


def take_renewed(admin: redis.Redis, folder: Path) -> None:
    """Have a server read its files again."""
    files = [("tls-cert-file", "server.crt"), ("tls-key-file", "server.key")]
    named = [part for name, file in files for part in (name, str(folder / file))]
    admin.execute_command("CONFIG SET", "tls-ca-cert-file", str(folder / "ca.crt"), *named)


async def test_certificates_are_read_again(certificates: Path) -> None:
    """Another CA, server and client certificate: no client that trusts the old one gets in."""
    with serving(certificates, "--save", "") as port:
        url = f"rediss://127.0.0.1:{port}{options(certificates)}"
        prepare(certificates)
        with Store(url).connect() as admin:

            def rotate() -> None:
                admin.ping()
                install(certificates)
                take_renewed(admin, certificates)

            await check_everybody(url, rotate, admin)


async def test_certificates_are_read_again_where_sentinels_are_asked(certificates: Path) -> None:
    """By both clients, which ask them for each connection. A Sentinel reads its own files once."""
    conf, asked = certificates / "sentinel.conf", free_port()
    with serving(certificates, "--save", "") as port:
        conf.write_text(f"sentinel monitor gpu 127.0.0.1 {port} 1\n")
        url = f"rediss+sentinel://127.0.0.1:{asked}/gpu{options(certificates)}"
        own = AsyncLeaseClient(Store(url), hostname="h1")
        with (
            Store(f"rediss://127.0.0.1:{port}{options(certificates)}").connect() as admin,
            LeaseClient(Store(url), hostname="h1") as client,
        ):
            for _ in range(2):
                with serving(certificates, str(conf), "--sentinel", at=asked):
                    client.devices()
                    await own.devices()
                admin.ping()
                prepare(certificates)
                install(certificates)
                take_renewed(admin, certificates)
                admin.client_kill_filter(_type="normal", skipme=True)
        await own.close()


def write(path: Path, text: str) -> None:
    """Replace a file as a whole, as a mounted secret is."""
    path.with_suffix(".new").write_text(text)
    path.with_suffix(".new").replace(path)


async def test_password_is_read_again(tmp_path: Path) -> None:
    """The server refuses the old one from the moment that it is changed."""
    secret = tmp_path / "secret"
    with running("redis") as server, server.connect() as admin:

        def change(word: str) -> None:
            write(secret, f"{word}\n")
            admin.execute_command(
                "ACL SETUSER", "app", "reset", "on", "~*", "&*", "+@all", f">{word}"
            )

        change("one")
        url = f"redis://app@127.0.0.1:{server.port}?password_file={secret}"
        await check_everybody(url, lambda: change("two"), admin)


async def test_password_file_is_read_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In an event loop too, where each connection asks redis-py's provider in another way."""
    secret = tmp_path / "secret"
    secret.write_text("word\n")
    with running("redis") as server, server.connect() as admin:
        admin.config_set("requirepass", "word")
        url = f"redis://127.0.0.1:{server.port}?password_file={secret}"
        async with AsyncLeaseClient(Store(url)) as client:
            await client.pool()
    assert not caplog.records


def test_password_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    """Nothing was sent; and it works as soon as the file is there."""
    secret = tmp_path / "secret"
    with running("redis") as server, server.connect() as admin:
        admin.config_set("requirepass", "word")
        url = f"redis://127.0.0.1:{server.port}?password_file={secret}"
        with LeaseClient(Store(url), deadline_s=0.3) as client:
            for content in (None, "", "\n"):
                if content is not None:
                    write(secret, content)
                with pytest.raises(BrokerUnavailable, match="password_file"):
                    client.pool()
            write(secret, "word")
            client.pool()


def test_password_file_is_read_for_those_who_know_the_store(tmp_path: Path) -> None:
    """Sentinels have one of their own, a Cluster's nodes the store's; two passwords are refused."""
    (tmp_path / "own").write_text("own")
    (tmp_path / "theirs").write_text("theirs")
    files = f"password_file={tmp_path}/own&sentinel_password_file={tmp_path}/theirs"
    found = parse(f"redis+sentinel://me@h1/gpu?sentinel_username=you&{files}")
    assert found.options["credential_provider"].get_credentials() == ("me", "own")
    assert found.asking["credential_provider"].get_credentials() == ("you", "theirs")
    assert not {"username", "password"} & (found.options.keys() | found.asking.keys())
    found = parse(f"redis+cluster://h1?password_file={tmp_path}/own")
    assert found.asking["credential_provider"].get_credentials() == ("own",)
    with pytest.raises(ValueError, match="say one of them") as refused:
        parse(f"redis://me:hunter2@h1?password_file={tmp_path}/own")
    assert "hunter2" not in str(refused.value)
