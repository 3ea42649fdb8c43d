"""A holder that the kernel stops for longer than its lease lasts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from tests.api.brokers import environment
from tests.pools import device

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_sdk import LeaseClient
    from tests.pools import Pool
    from tests.servers import Server

HOLDER = """
import sys
from agent_sdk import LeaseClient, LeaseLost, Store
client = LeaseClient(Store(sys.argv[1]), pool=sys.argv[2], hostname="h1")
lease = client.acquire("stopped", memory_mb=900, ttl_s=1)
client.keep(lease)
print(lease.token, lease.fence, flush=True)
sys.stdin.readline()
print(lease.lost, lease.trusted_s, flush=True)
sys.stdin.readline()
try:
    client.renew(lease)
except LeaseLost as lost:
    print(lost.code, flush=True)
sys.stdin.readline()
print(client.release(lease), flush=True)
"""


def test_lease_of_a_holder_stopped_past_its_ttl_is_lost_at_once(
    server: Server, pool: Pool, connect: Callable[..., LeaseClient]
) -> None:
    """The first look says lost; its renewal and its release do not touch the new holder."""
    pool.report((device("SIM-h1-0"),), deadline_ms=60_000)
    client = connect()
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, server.url, pool.keys.pool_name],
        env=environment(PYTHONPATH=os.getcwd()),  # noqa: PTH109 - as PYTHONPATH wants it
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
        process_group=0,  # it is stopped, and the suite is not hung up
    )
    with holder:
        try:
            token, fence = holder.stdout.readline().split()
            time.sleep(1.3)
            assert client.lookup(token).state == "active"
            os.kill(holder.pid, signal.SIGSTOP)
            time.sleep(1.2)
            new = client.acquire("new", memory_mb=900, ttl_s=10)
            assert new.fence > int(fence)
            holder.stdin.write("look\n")
            os.kill(holder.pid, signal.SIGCONT)
            assert holder.stdout.readline().split() == ["True", "0.0"]
            before = pool.stored()
            holder.stdin.write("renew\n")
            assert holder.stdout.readline().strip() == "expired"
            holder.stdin.write("release\n")
            assert holder.stdout.readline().strip() == "False"
            after = pool.stored()
            last = f"{pool.keys.base}:pool"
            for clock in ("last_ms", "looked_ms"):
                before[last].pop(clock)
                after[last].pop(clock)
            assert after == before
            assert client.renew(new).remaining_ms > 9000
            assert client.release(new) is True
        finally:
            holder.kill()
