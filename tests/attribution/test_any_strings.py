"""Whatever processes, drivers and users are called: a report is never refused for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker.attribution.processes import Program
from broker.devices.sample import GpuProcess
from tests.attribution.worlds import Host, gpu, holders, lease
from tests.pools import Pool, token

if TYPE_CHECKING:
    from tests.servers import Server

ANYTHING = st.text(max_size=400)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(name=ANYTHING, reason=ANYTHING, many=st.integers(0, 400), xids=st.lists(st.integers(1, 999)))
def test_report_of_anything_is_taken(
    server: Server, name: str, reason: str, many: int, xids: list[int]
) -> None:
    """Long lists, control characters, letters of any script, dozens of error codes."""
    leases = [lease(token(n), 1, None, state="active") for n in range(many)]
    programs = tuple(
        Program(pid, pid, name[:32], name[:32], "", (f"{pid}:{pid}",), (pid,))
        for pid in range(1, 90)
    )
    processes = [GpuProcess(p.pid, 10) for p in programs]
    host = Host(idle_after_s=0, idle_action="notify")
    device = gpu(*processes, reason=reason, nvml_error=reason, xids=tuple(dict.fromkeys(xids))[:20])
    lost = gpu(state="lost", reason=reason, processes=None, used_mb=None)
    with server.connect() as client:
        pool = Pool(client)
        for each in (device, device, lost):
            for uuid, said in host.look((each,), holders(*leases), programs).reports.items():
                fields: dict[str, Any] = {**said}
                assert pool.report(((uuid, fields),))[0] == "REPORTED", said
