"""Memory limits that the driver enforces: in real cgroups, through the real binding.

The stand-in for the driver keeps the limits as the driver does, beyond any process; that an
allocation beyond one fails, only a GPU with driver 615 can show.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any

import pytest

from broker.run.cgroups import PREFIX, place_of
from tests.api.brokers import PROGRAM, Broker, environment, eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.hardware.machines import Reported

NONE = 2**64 - 1
MIB = 2**20

SAYS = "from broker.run.cgroups import place_of; import os; print(place_of().folder, flush=True)"
"""A command that says in which cgroup it is."""


def writable() -> Path | None:
    """Return our own cgroup, if we may make others in it."""
    own = place_of()
    return own.folder if own is not None and os.access(own.folder, os.W_OK) else None


pytestmark = pytest.mark.skipif(writable() is None, reason="no writable cgroup v2 here")


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A cgroup that is delegated to the test's commands; nothing may be left in it."""
    own = writable()
    assert own is not None
    folder = own / f"gpu-broker-test-{token_hex(4)}"
    folder.mkdir()
    yield folder
    eventually(lambda: not [*folder.glob("*/")], 5)
    folder.rmdir()


@pytest.fixture
def machine(reported: Callable[..., Reported], cgroup: Path) -> Reported:
    """Two GPUs of a driver that can limit memory."""
    host = reported("driver_615", GPU_BROKER_CGROUP=str(cgroup))
    host.until(lambda rows: len(rows) == 2)
    return host


def limits(machine: Reported) -> list[tuple[int, int, int, str]]:
    """Return what was set, in order: GPU, soft, hard, cgroup."""
    told = Path(machine.settings["FAKE_NVML_FILE"] + ".limits")
    rows = [line.split(" ", 3) for line in told.read_text().splitlines()] if told.exists() else []
    return [(int(gpu), int(soft), int(hard), path) for gpu, soft, hard, path in rows]


def ran(machine: Reported, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a command that says in which cgroup it is, in 1 GiB."""
    words = ("run", "--memory", "1GiB", *options, "--", sys.executable, "-c", SAYS)
    return machine.command(*words)


def test_limit_is_set_before_the_command_starts_and_gone_after_it(machine: Reported) -> None:
    """On the cgroup that the command is in, as much as the lease holds; the broker is in none."""
    done = ran(machine, "--enforce")
    assert done.returncode == 0, done.stderr
    assert "the driver limits the command to 1.0 GiB" in done.stderr
    ((_, soft, hard, path),) = limits(machine)
    assert (soft, hard) == (0, 1024 * MIB)
    assert done.stdout.strip() == path
    assert Path(path).name.startswith(PREFIX)
    assert not Path(path).exists()
    ours = place_of(machine.broker.process.pid)
    assert ours is not None
    assert not ours.asks
    eventually(lambda: not any(d.limited for d in machine.sdk().devices()), 5)


def test_lease_is_shown_as_enforced_and_a_new_reporter_finds_its_limit(
    machine: Reported,
) -> None:
    """In status, in JSON and for the page; after a restart no limit is set anew."""
    words = ["run", "--memory", "1GiB", "--enforce", "--", "sleep", "60"]
    with subprocess.Popen([PROGRAM, *words], env=environment(**machine.settings)) as running:
        agent = machine.sdk()
        eventually(lambda: any(d.limited for d in agent.devices()), 10)
        (lease,) = agent.leases()
        assert "enforced" in machine.command("status").stdout
        told = json.loads(machine.command("leases", "-o", "json").stdout)
        assert [row["enforced"] for row in told["leases"]] == [True]
        row = machine.broker.http.get(f"/lease/{lease.token}").json()
        assert row["enforced"] is True
        before = limits(machine)
        machine.broker.process.send_signal(signal.SIGKILL)
        machine.broker.process.wait()
        sampled = max(d.sampled_ms for d in agent.devices())
        with Broker(**machine.settings) as later:
            later.wait()
            eventually(lambda: min(d.sampled_ms for d in agent.devices()) > sampled, 10)
            device = next(d for d in agent.devices() if d.limited)
            assert device.limited == (lease.token,)
            assert limits(machine) == before
            running.terminate()
            running.wait()
            eventually(lambda: not any(d.limited for d in agent.devices()), 5)


WHY = {
    "version=610.43": "came with driver 615",
    "limits=4": "it must run as root",
    "limits=6": "its parent lacks +dmem",
}


def test_command_is_not_started_without_the_limit_that_it_asks_for(machine: Reported) -> None:
    """An older driver, a reporter without the right, a kernel that was not prepared."""
    for words, why in WHY.items():
        machine.words("count=2", words)
        done = ran(machine, "--enforce")
        assert (done.returncode, done.stdout) == (1, "")
        assert why in done.stderr
    assert machine.sdk().leases() == ()


def test_policy_asks_for_limits_too(machine: Reported) -> None:
    """`required` starts nothing without one, `where_possible` says so and starts it."""
    agent = machine.sdk()
    machine.words("count=2")
    agent.set_policy(memory_limit="where_possible")
    anyway = ran(machine)
    assert anyway.returncode == 0, anyway.stderr
    assert "the driver does not limit the command: " in anyway.stderr
    assert anyway.stdout
    agent.set_policy(memory_limit="required")
    assert ran(machine).returncode == 1
    machine.words("count=2", "limits=1")
    limited = ran(machine)
    assert limited.returncode == 0, limited.stderr
    assert Path(limited.stdout.strip()).name.startswith(PREFIX)
    agent.set_policy(memory_limit="off")
    free = ran(machine)
    assert (free.returncode, "limit" in free.stderr) == (0, False)


def test_reporter_that_does_not_use_nvml_says_so(
    reported: Callable[..., Reported], cgroup: Path
) -> None:
    """Simulated GPUs have no driver."""
    machine = reported("driver_615", GPU_BROKER_CGROUP=str(cgroup), GPU_BROKER_DEVICES="sim:1x9000")
    machine.until(lambda rows: len(rows) == 1)
    done = ran(machine, "--enforce")
    assert (done.returncode, done.stdout) == (1, "")
    assert "does not read its GPUs through NVML" in done.stderr


def test_reason_without_end_is_said_shortened(
    reported: Callable[..., Reported], cgroup: Path, tmp_path: Path
) -> None:
    """A report has room for the beginning of it, and all else of the report is taken."""
    over = tmp_path / "over" / ("as-deep-as-folders-are" * 4)
    (over / "nvidia_ml_py-13.dist-info").mkdir(parents=True)
    (over / "nvidia_ml_py-13.dist-info" / "METADATA").write_text(
        "Name: nvidia-ml-py\nVersion: 13\n"
    )
    (over / "pynvml.py").write_text("class NVMLError(Exception):\n    pass\n")  # another package's
    machine = reported(
        "nvml_out_of_the_way", ENABLE_NVML="true", PYTHONPATH=str(over),
        GPU_BROKER_CGROUP=str(cgroup),
    )  # fmt: skip
    machine.until(lambda rows: [row["state"] for row in rows] == ["ok"])
    done = ran(machine, "--enforce")
    assert done.returncode == 1
    assert "NVML cannot be used, and nvidia-smi is asked in its place" in done.stderr
    assert "refused" not in machine.broker.said()


def test_several_gpus_are_limited_each(machine: Reported) -> None:
    """A lease of two whole GPUs has a limit on both."""
    machine.words("count=2", "limits=1", "allocated=0/0", "allocated=1/0")
    done = machine.command("run", "--gpus", "2", "--enforce", "--", "true")
    assert done.returncode == 0, done.stderr
    assert sorted(gpu for gpu, *_ in limits(machine)) == [0, 1]


def test_scope_of_an_sdk_program_is_limited_to_all_its_leases(
    machine: Reported, cgroup: Path
) -> None:
    """The name of a systemd scope asks for it; a program outside of one is not limited."""
    scope = cgroup / f"{PREFIX}notebook.scope"
    scope.mkdir()
    program = (
        "import os, sys; from agent_sdk import LeaseClient\n"
        "open(sys.argv[1] + '/cgroup.procs', 'w').write(str(os.getpid()))\n"
        "client = LeaseClient.from_env()\n"
        "for mb in (1000, 500): client.keep(client.acquire('notebook', memory_mb=mb, "
        "placement='pack'))\n"
        "input()\n"
        "client.close()\n"
    )
    settings = environment(**machine.settings) | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", program, str(scope)]
    with subprocess.Popen(command, env=settings, stdin=subprocess.PIPE, text=True) as running:
        eventually(lambda: limits(machine)[-1:] and limits(machine)[-1][2] == 1500 * MIB, 10)
        lease = machine.sdk().acquire("other", memory_mb=100, placement="pack")
        time.sleep(1)
        assert limits(machine)[-1][2:] == (1500 * MIB, str(scope))
        assert all(lease.token not in device.limited for device in machine.sdk().devices())
        running.communicate("\n")
    eventually(lambda: limits(machine)[-1][2] == NONE, 5)
    eventually(lambda: not scope.exists(), 5)


def test_limit_outlives_a_run_that_was_killed_until_its_cgroup_is_empty(
    machine: Reported,
) -> None:
    """Nothing is left in the driver or in the tree of cgroups, whichever process dies."""
    words = ["run", "--memory", "1GiB", "--enforce", "--ttl", "5s", "--", "sleep", "60"]
    with subprocess.Popen([PROGRAM, *words], env=environment(**machine.settings)) as running:
        eventually(lambda: any(d.limited for d in machine.sdk().devices()), 10)
        running.kill()
    path = limits(machine)[-1][3]
    eventually(lambda: limits(machine)[-1][2] == NONE, 15)
    eventually(lambda: not Path(path).exists(), 5)


def test_reporter_s_own_cgroup_is_never_limited(
    reported: Callable[..., Reported], cgroup: Path
) -> None:
    """A broker that was started in the command's scope would limit itself: it says so."""
    scope = cgroup / f"{PREFIX}all.scope"
    scope.mkdir()
    machine: Any = reported("driver_615", GPU_BROKER_CGROUP=str(cgroup))
    machine.until(lambda rows: len(rows) == 2)
    (scope / "cgroup.procs").write_text(str(machine.broker.process.pid))
    inside = subprocess.run(
        [PROGRAM, "run", "--memory", "1GiB", "--enforce", "--", "true"],
        env=environment(**machine.settings), capture_output=True, text=True, check=False,
        preexec_fn=lambda: (scope / "cgroup.procs").write_text(str(os.getpid())),
    )  # fmt: skip
    assert inside.returncode == 1
    assert "the reporter runs in the command's cgroup" in inside.stderr
    assert limits(machine) == []
    (cgroup.parent / "cgroup.procs").write_text(str(machine.broker.process.pid))
    scope.rmdir()
