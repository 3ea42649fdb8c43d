"""Two machines of one name, one GPU of two hosts: real reporters, one of another boot."""

from __future__ import annotations

import json
import subprocess
import tempfile
from contextlib import ExitStack, contextmanager
from typing import IO, TYPE_CHECKING
from uuid import uuid4

import pytest

from agent_sdk import HostUnknown, LeaseClient, Store
from broker.identity import has_ended, own_identity
from tests.api.brokers import PROGRAM, environment, eventually
from tests.program import called

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.servers import Server

ELSEWHERE = (
    "unshare", "-m", "sh", "-c",
    'mount --bind "$BOOT_ID" /proc/sys/kernel/random/boot_id && exec "$0" host',
)  # fmt: skip

NO_PROC = ("unshare", "-m", "sh", "-c", 'mount -t tmpfs none /proc && exec "$0" host')


class Site:
    """A pool, and reporters of it, each with one GPU that a file tells of."""

    def __init__(self, server: Server, folder: Path) -> None:
        self._folder = folder
        self.env = {"REDIS_URL": server.url, "GPU_BROKER_POOL": f"twins-{uuid4().hex[:8]}"}
        self.client = LeaseClient(
            Store(server.url), pool=self.env["GPU_BROKER_POOL"], hostname="ubuntu"
        )

    @contextmanager
    def reporter(
        self, uuid: str, host: str = "ubuntu", *, within: tuple[str, ...] = ()
    ) -> Iterator[tuple[subprocess.Popen[bytes], IO[str]]]:
        """`gpu-broker host` for the length of a block, and its log."""
        gpu = {"uuid": uuid, "total_mb": 1000, "processes": []}
        scenario = self._folder / f"{uuid}.yaml"
        scenario.write_text(json.dumps({"steps": [{"after_s": 0, "devices": [gpu]}]}))
        boot = self._folder / "boot_id"
        boot.write_text("11111111-2222-3333-4444-555555555555\n")
        env = environment(
            **self.env, SAFE_MODE="false", GPU_BROKER_HOSTNAME=host, GPU_BROKER_REPORT_S="0.5",
            GPU_BROKER_DEVICES=f"scenario:{scenario}", BOOT_ID=str(boot),
        )  # fmt: skip
        command = [*within, PROGRAM] if within else [PROGRAM, "host"]
        with tempfile.TemporaryFile("w+") as log:
            process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
            try:
                yield process, log
            finally:
                process.kill()
                process.wait()

    def holds(self, uuid: str) -> str:
        """The host of a device, or empty."""
        return next((d.host for d in self.client.devices() if d.uuid == uuid), "")

    def events(self, name: str) -> int:
        return sum(event.event == name for event in self.client.events(1000))


def said(log: IO[str]) -> str:
    log.seek(0)
    return log.read()


def need_mounts() -> None:
    if subprocess.run(["unshare", "-m", "true"], check=False).returncode:
        pytest.skip("needs the right to make a mount namespace")


@pytest.fixture
def site(server: Server, tmp_path: Path) -> Iterator[Site]:
    site = Site(server, tmp_path)
    with site.client:
        yield site


@pytest.mark.parametrize("within", [(), ELSEWHERE], ids=["here", "elsewhere"])
def test_two_machines_of_one_name_are_said_and_one_alone_is_believed(
    site: Site, within: tuple[str, ...]
) -> None:
    """They differ in boot, or are containers with a GPU each: event, doctor and logs say so."""
    if within:
        need_mounts()
    with ExitStack() as stack:
        _, one = stack.enter_context(site.reporter("GPU-1"))
        eventually(lambda: site.holds("GPU-1"), 20)
        _, two = stack.enter_context(site.reporter("GPU-2", within=within))
        eventually(lambda: "GPU_BROKER_HOSTNAME" in said(two), 20)
        eventually(lambda: "GPU_BROKER_HOSTNAME" in said(one), 20)
        assert site.holds("GPU-2") == ""
        (gpu,) = site.client.devices()
        assert (gpu.uuid, gpu.state) == ("GPU-1", "ok")
        assert site.events("host_contested") == 1
        doctor = called("doctor", **site.env)
        assert doctor.returncode == 1
        assert "WRONG  two machines report as host ubuntu" in doctor.stdout
        assert "\n       give it another name: GPU_BROKER_HOSTNAME\n" in doctor.stdout


def test_name_of_a_machine_that_is_silent_is_free_at_its_deadline(site: Site) -> None:
    """The second, which was refused, has it then; by itself."""
    with site.reporter("GPU-1") as (first, _):
        eventually(lambda: site.holds("GPU-1"), 20)
        with site.reporter("GPU-2", within=ELSEWHERE) as (second, log):
            eventually(lambda: "GPU_BROKER_HOSTNAME" in said(log) or second.poll(), 20)
            if second.poll():
                pytest.skip("needs the right to make a mount namespace")
            first.kill()
            eventually(lambda: site.holds("GPU-2"), 20)


def test_reporter_that_is_started_anew_takes_over_at_once(site: Site) -> None:
    """Killed, and back with another GPU, well within the deadline of the one before."""
    with site.reporter("GPU-1") as (first, _):
        eventually(lambda: site.holds("GPU-1"), 20)
        first.kill()
        first.wait()
    with site.reporter("GPU-2"):
        eventually(lambda: site.holds("GPU-2"), 20)
        eventually(lambda: {d.uuid: d.state for d in site.client.devices()}["GPU-1"] == "lost", 20)
    assert site.events("host_contested") <= 1


def test_gpu_of_two_hosts_stays_where_it_was_and_is_said(site: Site) -> None:
    """It does not flip; when its host is gone the other one has it, and its lease holds."""
    with site.reporter("GPU-1", "old") as (first, one):
        eventually(lambda: site.holds("GPU-1") == "old", 20)
        with site.reporter("GPU-1", "new") as (_, two):
            eventually(lambda: "two hosts list GPU GPU-1, old and new" in said(two), 20)
            eventually(lambda: "two hosts list GPU GPU-1, old and new" in said(one), 20)
            assert site.holds("GPU-1") == "old"
            assert site.events("device_contested") == 1
            assert "GPU GPU-1 of host old is listed by host new too" in called(
                "doctor", **site.env
            ).stdout  # fmt: skip
            lease = site.client.acquire("a", memory_mb=10, exclusive=True, host="old", ttl_s=0)
            first.kill()
            eventually(lambda: site.holds("GPU-1") == "new", 20)
            assert [x.token for x in site.client.leases()] == [lease.token]


def test_reporter_that_fails_beside_another_takes_none_of_its_devices(site: Site) -> None:
    """A second reporter of this machine whose driver fails says nothing of what the first lists."""
    with site.reporter("GPU-1"):
        eventually(lambda: site.holds("GPU-1"), 20)
        env = environment(
            **site.env, SAFE_MODE="false", GPU_BROKER_HOSTNAME="ubuntu", GPU_BROKER_REPORT_S="0.5",
            GPU_BROKER_DEVICES="nvml", ENABLE_NVML="true",
        )  # fmt: skip
        with tempfile.TemporaryFile("w+") as log:
            other = subprocess.Popen([PROGRAM, "host"], env=env, stdout=log, stderr=log)
            try:
                eventually(lambda: "libnvidia" in said(log), 20)
                for _ in range(2):
                    before = site.client.hosts()[0].reported_ms
                    eventually(lambda before=before: site.client.hosts()[0].reported_ms > before, 5)
                assert [d.state for d in site.client.devices()] == ["ok"]
            finally:
                other.kill()
                other.wait()


def test_identity_names_this_very_process() -> None:
    """A process that is over is known to be, one of another boot or namespace never."""
    mine = own_identity()
    boot, machine, namespace, pid, start = mine.split(".")
    assert not has_ended(mine)
    assert has_ended(f"{boot}.{machine}.{namespace}.{pid}.{int(start) + 1}")
    assert not has_ended(f"{'0' * 12}.{machine}.{namespace}.{pid}.{int(start) + 1}")
    assert not has_ended(f"{boot}.{machine}.1.{pid}.{int(start) + 1}")
    assert not has_ended("")


@pytest.mark.parametrize(("asked", "near"), [("UBUNTU", True), ("ubuntu.lan", True), ("x", False)])
def test_refusal_names_the_host_that_was_asked_in_the_words_of_the_shell(
    site: Site, asked: str, near: bool
) -> None:
    """`gpu-broker run`; the way out is an option, no argument of a call."""
    with site.reporter("GPU-1"):
        eventually(lambda: site.holds("GPU-1"), 20)
        env = site.env | {"GPU_BROKER_HOSTNAME": asked}
        done = subprocess.run(
            [PROGRAM, "run", "--wait", "0", "--", "true"], env=environment(**env),
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (done.returncode, f"host {asked} has no GPUs" in done.stderr) == (1, True), done
        assert ("--host ubuntu" in done.stderr) == near
        assert 'host="any"' not in done.stderr
        on_cpu = subprocess.run(
            [PROGRAM, "run", "--or-cpu", "--", "true"], env=environment(**env),
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (on_cpu.returncode, f"host {asked} has no GPUs" in on_cpu.stderr) == (0, True), (
            on_cpu
        )
        assert ("--host ubuntu" in on_cpu.stderr) == near
        with pytest.raises(HostUnknown, match=f"host {asked} has no devices") as refused:
            site.client.acquire("a", memory_mb=10, host=asked)
        assert refused.value.near == ("ubuntu" if near else "")
        with pytest.raises(HostUnknown, match=f"host {asked} has no devices in this pool"):
            site.client.drain("host", asked)


def test_reporter_without_proc_reports_all_the_same(site: Site) -> None:
    """A sandbox may have none: the reporter cannot identify itself, and its GPU is leased."""
    need_mounts()
    with site.reporter("GPU-1", within=NO_PROC) as (_, log):
        eventually(lambda: site.holds("GPU-1"), 20)
        (gpu,) = site.client.devices()
        assert (gpu.state, gpu.reporter) == ("ok", "")
        assert "Traceback" not in said(log)
