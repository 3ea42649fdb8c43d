"""A pool in which everything occurs that a row of the page can show."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager, suppress
from threading import Thread
from typing import TYPE_CHECKING, Any, Final

from agent_sdk import LeaseClient
from agent_sdk.errors import LeaseError
from agent_sdk.protocol.report import About
from agent_sdk.store.store import Store
from tests.api.brokers import Broker, eventually
from tests.found import process, tell
from tests.servers import running

if TYPE_CHECKING:
    from collections.abc import Iterator

DAY_MS: Final = 86_400_000

H100 = ("NVIDIA H100 80GB HBM3", 81_559)
A100 = ("NVIDIA A100-SXM4-40GB", 40_960)
SLICE = ("NVIDIA A100-SXM4-40GB MIG 1g.10gb", 9_728)
L4 = ("NVIDIA L4", 23_034)

HOSTS: Final = {
    "gpu-host-1": [H100] * 8,
    "gpu-host-2": [A100, A100, A100, SLICE, SLICE, SLICE],
    "inference-03.rack-12.example.internal": [L4] * 4,
}
"""Models of the GPUs of each host, by index."""

AGENTS: Final = ("analyst", "critic", "embedder", "fact_checker", "memory", "reranker", "scout",
                 "synthesizer", "trainer", "newsreader")  # fmt: skip


def uuid_of(host: int, index: int) -> str:
    """Give the id of a GPU of the scenery."""
    return f"GPU-{host}-{index}"


def _device(host: int, index: int, name: str, total_mb: int) -> tuple[str, tuple[Any, ...]]:
    busy = (100, 97, 100, 64, 3, 0, 88, 41)[index]
    fields: dict[str, Any] = {
        "index": index, "name": name, "model": name, "state": "ok", "reason": "",
        "total_mb": total_mb, "system_mb": 512, "used_mb": 400, "simulated": 0,
        "utilization_gpu_pct": busy, "temperature_c": 34 + busy / 2,
        "power_draw_w": 70 + 6.3 * busy,
    }  # fmt: skip
    if (host, index) == (2, 2):
        fields |= {"state": "mig"}
    if name == SLICE[0]:
        fields |= {"utilization_gpu_pct": "", "temperature_c": "", "power_draw_w": "",
                   "parent": uuid_of(2, 2)}  # fmt: skip
    if (host, index) == (3, 2):
        fields |= {"state": "error", "reason": "GPU is lost. Reboot the system to recover this GPU"}
    return uuid_of(host, index), tuple(fields.items())


def report(client: LeaseClient) -> None:
    """Report every host once, for a day."""
    about = About(deadline_ms=DAY_MS, sampled_ms=0, epoch="", safe_mode=False, version="0.1.0")
    for number, (host, models) in enumerate(HOSTS.items(), 1):
        client.report(host, tuple(_device(number, i, *m) for i, m in enumerate(models)), **about)


def occupy(client: LeaseClient) -> None:
    """Lease, drain, quarantine, find."""
    client.acquire("trainer", devices=2, host="gpu-host-1", ttl_s=7200)
    for n in range(24):
        with suppress(LeaseError):
            client.acquire(AGENTS[n % 10], memory_mb=(6144, 8192, 12_288, 20_480)[n % 4],
                           host=("gpu-host-1", "gpu-host-2", "any")[n % 3], ttl_s=3600)  # fmt: skip
    for device in client.devices():
        tell(client, device.uuid, used_mb=400 + device.leased_mb * 4 // 5)
    client.drain("device", uuid_of(3, 1), why="fan noise")
    tell(client, uuid_of(1, 7), state="quarantined", xid=79, recovery_action=1, processes=[],
         quarantine="XID 79: the GPU has fallen off the bus")  # fmt: skip
    tell(
        client, uuid_of(1, 2), squatter="991", overuse=client.leases()[0].token, unleased_mb=6000,
        processes=[process(991, memory_mb=6000, name="jupyter", user="bob", finding="squatter")],
    )  # fmt: skip


def wait(client: LeaseClient, agent: str, **asked: Any) -> None:
    """Let an agent wait, in a thread of its own, until it is revoked or the pool is gone."""

    def stand() -> None:
        with suppress(LeaseError):
            client.acquire(agent, wait_s=3600, **asked)

    Thread(target=stand, daemon=True).start()
    eventually(lambda: any(each.agent == agent for each in client.queue()), 5)


@contextmanager
def scenery(*, reserved: bool = True) -> Iterator[tuple[Broker, LeaseClient]]:
    """Give a broker over all of it, and a client of its pool.

    `reserved`: wait for half a minute, until GPUs are reserved.
    """
    with ExitStack() as stack:
        server = stack.enter_context(running())
        client = stack.enter_context(LeaseClient(Store(server.url), hostname="gpu-host-1"))
        report(client)
        occupy(client)
        wait(client, "trainer", devices=8, host="gpu-host-1")
        wait(client, "vision-language-finetune", memory_mb=70_000, host="any")
        if reserved:
            reserve(client)
        settings = {"REDIS_URL": server.url, "GPU_BROKER_DEVICES": "none", "SAFE_MODE": "false"}
        broker = stack.enter_context(Broker(**settings, GPU_BROKER_HOSTNAME="broker-1"))
        yield broker.wait(), client
        for waiter in client.queue():
            client.revoke(waiter.token)


def reserve(client: LeaseClient) -> None:
    """Wait until GPUs are reserved for a request that has waited for 30 s; they stay so."""
    client.set_policy(reservation_idle_s=3600)
    eventually(lambda: any(waiter.reservation for waiter in client.queue()), 60, 0.5)
