"""A broker that dies while agents hold leases."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from agent_sdk import LeaseClient, Store
from tests.api.brokers import GRANTING, Broker

if TYPE_CHECKING:
    from tests.servers import Server


def test_lease_held_while_its_broker_is_killed_goes_on(server: Server, pool_name: str) -> None:
    """Holders renew without any broker, and another replica shows and releases what they hold."""
    here = {"REDIS_URL": server.url, "GPU_BROKER_POOL": pool_name}
    other = {"GPU_BROKER_DEVICES": "none", "GPU_BROKER_HOSTNAME": "h2"}
    with ExitStack() as stack:
        enter = stack.enter_context
        first = enter(Broker(**GRANTING | here))
        second = enter(Broker(**GRANTING | here | other))
        first.wait()
        second.wait()
        client = enter(LeaseClient(Store(server.url), pool=pool_name, hostname="h1"))
        leases = [enter(client.lease("agent", memory_mb=400, ttl_s=1)) for _ in range(2)]
        by_http = first.granted(min_memory_mb=100, ttl_s=30)
        first.kill()
        time.sleep(3.3)
        assert [lease.lost for lease in leases] == [False, False]
        assert all(lease.trusted_s > 0 for lease in leases)
        shown = second.allocations()
        assert set(shown) == {lease.token for lease in leases} | {by_http["token"]}
        assert [shown[lease.token]["fence"] for lease in leases] == [x.fence for x in leases]
        (gpu,) = second.http.get("/gpu/info").json()["gpus"]
        assert (gpu["memory_reserved_mb"], gpu["leases"]) == (900, 3)
        for token in shown:
            assert second.release(token).status_code == 200
        assert second.allocations() == {}
        for lease in leases:
            assert lease.wait_lost(2)
            assert lease.lost_reason == "released"
