"""A real reporter on a scripted machine: real holders, real squatters, real signals."""

from __future__ import annotations

import os
import time
from itertools import pairwise
from pathlib import Path

import pytest

from tests.api.brokers import eventually
from tests.attribution.machine import SLEEP, Machine
from tests.drivers import build


def test_holder_s_child_is_its_own_and_is_told_when_it_takes_too_much(machine: Machine) -> None:
    """Its use is counted once; beyond the lease it is unleased, and the holder hears of it."""
    with machine.reporter(), machine.holder("keep", memory_mb=4000, ttl_s=1.5) as holder:
        machine.client.set_policy(overuse_action="notify")
        machine.is_now((holder.child, 3500))
        (row,) = eventually(lambda: machine.gpu().processes, 5)
        assert (row.token, row.name.startswith("python")) == (holder.token, True)
        assert machine.gpu().free_mb == 10_000 - 300 - 4000
        machine.is_now((holder.child, 6000))
        eventually(lambda: machine.found() == {("overuse", holder.token)}, 5)
        assert machine.gpu().free_mb == 10_000 - 300 - 6000
        assert holder.hears() == "overuse"
        (lease,) = machine.client.leases()
        assert lease.notices == ("overuse",)
        machine.is_now((holder.child, 3500))
        assert holder.hears() == ""
        assert machine.found() == set()


@pytest.mark.parametrize("may_kill", [True, False])
def test_squatter_is_ended_only_by_a_reporter_that_may(machine: Machine, may_kill: bool) -> None:
    """enforce and --may-kill: it gets SIGTERM; without, that is only said. Both are events."""
    options = ["--may-kill"] if may_kill else []
    with machine.reporter(*options), machine.python(SLEEP) as squatter:
        assert squatter.stdout
        squatter.stdout.readline()
        machine.is_now((squatter.pid, 2000))
        eventually(lambda: machine.found() == {("squatter", str(squatter.pid))}, 5)
        assert machine.gpu().free_mb == 10_000 - 300 - 2000
        assert machine.events("process_ended") == [], "observe ends nobody"
        machine.client.set_policy(squatter_action="enforce", enforce_after_s=0)
        (said,) = eventually(lambda: machine.events("process_ended"), 5)
        assert (said["pid"], said["signal"]) == (str(squatter.pid), "TERM" if may_kill else "NONE")
        if may_kill:
            assert squatter.wait(5) == -15
            eventually(lambda: machine.found() == set(), 5)
        else:
            time.sleep(1)
            assert squatter.poll() is None
            assert len(machine.events("process_ended")) == 1


def test_over_user_is_ended_before_its_neighbour_dies(machine: Machine) -> None:
    """kill_on_oom and --may-kill: on a GPU that is nearly full, who takes more than it leased."""
    with (
        machine.reporter("--may-kill"),
        machine.holder(memory_mb=4000) as neighbour,
        machine.holder(memory_mb=4000) as greedy,
    ):
        machine.client.set_policy(kill_on_oom=True)
        machine.is_now((neighbour.child, 4000), (greedy.child, 5000))
        eventually(lambda: ("overuse", greedy.token) in machine.found(), 5)
        time.sleep(1)
        assert machine.events("process_ended") == [], "there is room left"
        machine.is_now((neighbour.child, 4000), (greedy.child, 5900))
        (said,) = eventually(lambda: machine.events("process_ended"), 5)
        assert (said["pid"], said["token"]) == (str(greedy.child), greedy.token)
        eventually(lambda: _over(greedy.child), 5)
        assert not _over(neighbour.child)


def _over(pid: int) -> bool:
    """A child that its parent has not yet waited for is over, too."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return True
    return stat.rpartition(")")[2].split()[0] == "Z"


def test_idle_lease_is_reclaimed_by_policy_after_its_holder_was_told(machine: Machine) -> None:
    """enforce: a notice at idle_after_s, the end of its renewals enforce_after_s later."""
    with machine.reporter(), machine.holder("keep", memory_mb=4000, ttl_s=1) as holder:
        machine.client.set_policy(idle_action="enforce", idle_after_s=10, enforce_after_s=2)
        began = time.monotonic()
        assert holder.hears() == "idle"
        assert time.monotonic() - began > 9
        assert holder.hears() == "lost revoked"
        assert time.monotonic() - began > 11
        (said,) = machine.events("revoke")
        assert (said["by"], said["reason"]) == ("host h1", "no process used its GPU")


def test_dead_holder_s_memory_comes_back_when_its_processes_are_gone(machine: Machine) -> None:
    """Withheld while they are there, dirty after the grace; free by itself when they end."""
    machine.client.deadline_s = 10
    with machine.reporter(), machine.holder(memory_mb=4000, ttl_s=1) as holder:
        machine.client.set_policy(expiry_grace_s=2)
        machine.is_now((holder.child, 3000))
        eventually(lambda: machine.gpu().processes, 5)
        holder.process.kill()
        eventually(lambda: machine.client.reap() and machine.gpu().withheld_mb == 4000, 5)
        assert machine.gpu().free_mb == 10_000 - 300 - 4000
        eventually(lambda: machine.client.reap() and machine.gpu().state == "dirty", 6)
        assert machine.found() == {("orphan", str(holder.child))}
        assert f"process {holder.child}" in machine.gpu().reason
        assert machine.gpu().left_mb == 10_000 - 300 - 3000, "what it holds on to"
        assert machine.gpu().free_mb == 0, "a dirty device is lent to no one"
        holder.end_child()
        machine.is_now()
        eventually(lambda: machine.gpu().state == "ok", 5)
        assert machine.gpu().free_mb == 10_000 - 300


def test_dead_holder_s_memory_is_free_as_soon_as_its_processes_are(machine: Machine) -> None:
    """A sample after the expiry shows nobody of it: the grace is over, whatever others use."""
    with machine.reporter(), machine.holder(memory_mb=4000, ttl_s=1) as holder:
        machine.client.set_policy(expiry_grace_s=600)
        machine.is_now((holder.child, 3000), (os.getpid(), 1000))
        eventually(lambda: machine.gpu().processes, 5)
        holder.process.kill()
        holder.end_child()
        machine.is_now((os.getpid(), 1000))
        eventually(lambda: machine.client.reap() and not machine.client.leases(), 5)
        eventually(lambda: machine.gpu().withheld_mb == 0, 3)
        assert machine.gpu().free_mb == 10_000 - 300 - 1000


def test_gpu_in_quarantine_stays_there_through_a_restart_until_undrained(machine: Machine) -> None:
    """XID 79: withheld, who has it is told; the new reporter knows; an operator gives it back."""
    with machine.reporter() as first:
        with machine.holder("keep", memory_mb=1000, ttl_s=1) as holder:
            machine.is_now(xids=[79])
            eventually(lambda: machine.gpu().state == "quarantined", 5)
            assert holder.hears() == "degraded"
            assert machine.gpu().xid == 79
            assert [e["xid"] for e in machine.events("xid")] == ["79"]
        first.terminate()
        assert first.wait(10) == 0
    machine.is_now()
    with machine.reporter():
        time.sleep(1)
        assert machine.gpu().state == "quarantined"
        assert "undrain" in machine.gpu().reason
        machine.client.undrain("device", "GPU-a")
        time.sleep(1)
        assert machine.gpu().state == "ok"
        assert len(machine.events("quarantined")) == len(machine.events("unquarantined")) == 1
    eventually(lambda: machine.client.reap() and not machine.client.leases(), 10)


def test_error_code_that_comes_while_the_store_is_away_is_not_lost(machine: Machine) -> None:
    """A driver tells it once; the reporter goes on saying it until somebody has heard."""
    with machine.reporter():
        machine.client.redis.client_pause(1500, all=True)
        machine.is_now(xids=[79])
        time.sleep(1.6)
        eventually(lambda: machine.gpu().quarantine, 5)
        assert [e["xid"] for e in machine.events("xid")] == ["79"]


def test_driver_that_hangs_delays_no_heartbeat_by_more_than_a_second(machine: Machine) -> None:
    """The host goes on saying that it lives; what was known of its GPU stands, and is old."""
    every_s = 1.0
    machine.env["GPU_BROKER_REPORT_S"] = str(every_s)
    with machine.reporter():
        machine.is_now(hang_s=10)
        times = set()
        until = time.monotonic() + 7
        while time.monotonic() < until:
            (host,) = machine.client.hosts()
            times.add(host.reported_ms)
            time.sleep(0.05)
        reports = sorted(times)
        gaps = [after - before for before, after in pairwise(reports)]
        assert len(gaps) >= 3
        assert max(gaps) <= (every_s + 1) * 1000 + 300
        assert machine.gpu().state == "error"


def test_host_of_eight_gpus_costs_little(machine: Machine, tmp_path: Path) -> None:
    """A report of 8 GPUs, each with processes, through NVML: at most 5 % of a core every 5 s."""
    library = build(tmp_path)
    words = [f"process={gpu}/{os.getpid() if n else os.getppid()}/{100 + n}"
             for gpu in range(8) for n in range(4)]  # fmt: skip
    machine.env |= {
        "GPU_BROKER_DEVICES": "nvml",
        "ENABLE_NVML": "true",
        "LD_LIBRARY_PATH": str(library),
        "FAKE_NVML": ",".join(words),
    }
    with machine.reporter() as process:
        eventually(lambda: len(machine.client.devices()) == 8, 10)
        (gpu, *_) = machine.client.devices()
        assert {row.pid for row in gpu.processes} == {os.getpid(), os.getppid()}

        def cpu_s() -> float:
            stat = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")

        began, before = machine.gpu_reports(), cpu_s()
        eventually(lambda: machine.gpu_reports() >= began + 10, 30)
        spent_s = (cpu_s() - before) / (machine.gpu_reports() - began)
        assert spent_s <= 0.05 * 5
