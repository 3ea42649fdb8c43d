"""`gpu-broker run --in`: the command's container or sandbox, and its end with the lease."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent_sdk.engines.containers import LABEL, container_label
from broker.attribution.processes import Programs
from broker.run.containers import contained
from tests.api.brokers import PROGRAM
from tests.containers import GPUS, SYSTEM, args, lease, podman, podman_in
from tests.stores import until
from tests.unit.brokers import broker_of_the_file
from tests.unit.cli_runs import run, settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent_sdk.testing import TestBroker

WITHIN_S = 60

UNTIL_TOLD = "trap 'echo told; exit 5' TERM; echo up; while :; do sleep 0.05; done"

DEAF = "trap '' TERM; echo up; while :; do sleep 0.05; done"

READ_ONLY = ("--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--unshare-all")

pool = broker_of_the_file(devices=1, memory_mb=1000)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a podman that runs containers here."""
    env = podman_in(tmp_path_factory.mktemp("podman"))
    if isinstance(env, str):
        pytest.skip(env)
    return env


@pytest.fixture
def sandbox() -> None:
    """A bwrap that makes sandboxes here."""
    if not shutil.which("bwrap"):
        pytest.skip("bwrap is not installed")
    done = subprocess.run(
        ["bwrap", *READ_ONLY, "true"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"bwrap makes no sandbox here: {done.stderr.strip()}")


@contextmanager
def running(
    pool: TestBroker, engine: dict[str, str], *words: str
) -> Iterator[subprocess.Popen[str]]:
    """`run` of a container, once its command says that it is up."""
    process = subprocess.Popen(
        [PROGRAM, "run", "-q", "--memory", "1", *words], env=settings(pool) | engine,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "up\n", process.stderr and process.stderr.read()
            yield process
        finally:
            process.kill()


def cmdlines() -> Iterator[bytes]:
    """The command line of each process, also of those in containers."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            yield path.read_bytes()


def left(engine: dict[str, str]) -> str:
    """The ids of the containers that are there."""
    done = podman(engine, "ps", "--all", "--quiet", "--filter", f"label={LABEL}")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_container_has_the_lease_and_gives_its_code(
    pool: TestBroker, engine: dict[str, str]
) -> None:
    """Its variables, and those by which the SDK finds the pool; nothing of the container stays."""
    done = run(
        pool, "-q", "--memory", "100", "--for", "jax", "--in", "podman", "--", *SYSTEM, "sh", "-c",
        "env; exit 7", **engine, GPU_BROKER_POOL="default", SECRET="mine",
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (7, "")
    env = dict(line.split("=", 1) for line in done.stdout.splitlines())
    assert env["NVIDIA_VISIBLE_DEVICES"] == env["CUDA_VISIBLE_DEVICES"] == f"SIM-{pool.host}-0"
    assert (env["GPU_LEASE_MEMORY_MB"], env["GPU_BROKER_HOSTNAME"]) == ("100", pool.host)
    assert len(env["GPU_LEASE_TOKEN"]) == 32
    assert env["XLA_PYTHON_CLIENT_MEM_FRACTION"]
    assert env["GPU_BROKER_POOL"] == "default"
    assert not {"REDIS_URL", "SECRET"} & env.keys()
    assert left(engine) == ""
    assert pool.client.leases() == ()


@pytest.mark.parametrize("mine", ["0.9", "0.05"])
def test_container_is_bounded_whatever_our_own_environment_has(
    pool: TestBroker, tmp_path: Path, mine: str
) -> None:
    """None of it reaches a container: a variable of an engine there is no setting of the user."""
    program = tmp_path / "podman"
    program.write_text('#!/bin/sh\n[ "$1" = run ] || exit 0\nprintf "%s\\n" "$@"; env\n')
    program.chmod(0o755)
    done = run(
        pool, "--memory", "100", "--for", "jax", "--in", "podman", "--", "image",
        PATH=f"{tmp_path}:{os.environ['PATH']}", XLA_PYTHON_CLIENT_MEM_FRACTION=mine,
    )  # fmt: skip
    assert "set already" not in done.stderr
    said = done.stdout.splitlines()
    assert "--env=XLA_PYTHON_CLIENT_MEM_FRACTION" in said
    assert "XLA_PYTHON_CLIENT_MEM_FRACTION=0.05" in said


def test_apptainer_hands_the_variables_on_as_the_command_has_them() -> None:
    """It counts the machine's GPUs: the numbers of an engine that reads numbers stay."""
    added = {"CUDA_VISIBLE_DEVICES": "1", "GPU_BROKER_ATTEMPT": "2"}
    env = {"HOME": "/root", **added}
    _, found = contained(
        "apptainer", lease(GPUS[1]), ["image"], env, added, numbered=True
    )  # fmt: skip
    assert found == env | {f"APPTAINERENV_{name}": value for name, value in added.items()}


@pytest.mark.parametrize(
    ("script", "grace", "code", "said"), [(UNTIL_TOLD, "30", 5, "told\n"), (DEAF, "1", 137, "")]
)
def test_lost_lease_ends_the_container(
    pool: TestBroker, engine: dict[str, str], script: str, grace: str, code: int, said: str
) -> None:
    """By its stop signal, once, and by SIGKILL after the grace."""
    words = ["--ttl", "2", "--grace", grace, "--in", "podman", "--", *SYSTEM, "sh", "-c", script]
    with running(pool, engine, *words) as process:
        (held,) = pool.client.leases()
        pool.client.revoke(held.token, force=True, why="test")
        assert process.wait(WITHIN_S) == code
        assert process.stdout is not None
        assert process.stdout.read() == said
    until(lambda: not left(engine), WITHIN_S, 0.3)


def test_run_killed_takes_the_container_with_it(pool: TestBroker, engine: dict[str, str]) -> None:
    """No signal reaches a container through a client that is dead: the guard ends it by its id."""
    with running(pool, engine, "--in", "podman", "--", *SYSTEM, "sh", "-c", DEAF) as process:
        (held,) = pool.client.leases()
        label = f"label={LABEL}={container_label(held.token)}"
        told = podman(engine, "ps", "--quiet", "--filter", label).stdout.split()
        (pid,) = podman(engine, "inspect", "--format", "{{.State.Pid}}", *told).stdout.split()
        (program,) = Programs().look([int(pid)]).values()
        assert program.token == held.token, "a host's reporter finds its lease by its environment"
        process.kill()
        until(lambda: not left(engine), WITHIN_S, 0.3)
        until(lambda: not Path(f"/proc/{pid}").exists(), WITHIN_S)
    pool.client.revoke(held.token, force=True, why="the killed run's")


@pytest.mark.parametrize("deaf", [False, True])
def test_detached_container_does_not_outlive_its_lease(
    pool: TestBroker, engine: dict[str, str], deaf: bool
) -> None:
    """The client is over at once, and leaves it to the engine; one that is being stopped lives."""
    marker = f"1000{os.getpid()}"
    done = run(
        pool, "--memory", "1", "--grace", "1s", "--in", "podman", "--", "--detach", *SYSTEM,
        "sh", "-c", "trap '' TERM; sleep $0 & wait" if deaf else "exec sleep $0", marker, **engine,
    )  # fmt: skip
    assert done.returncode == 0
    assert "left processes behind" in done.stderr
    assert not [each for each in cmdlines() if marker.encode() in each]
    until(lambda: not left(engine), WITHIN_S, 0.3)  # the engine removes it when it likes


@pytest.mark.skipif(os.geteuid() != 0, reason="podman 4 reads names of devices from /run/cdi alone")
def test_podman_knows_the_names_of_gpus(engine: dict[str, str]) -> None:
    """A CDI file of this form is what NVIDIA's toolkit writes; its names are UUIDs, too."""
    folder = Path("/var/run/cdi")
    folder.mkdir(exist_ok=True)
    file = folder / f"gpu-broker-test-{os.getpid()}.json"
    edits = '{"env": ["INJECTED=%s"]}'
    devices = ", ".join(f'{{"name": "{uuid}", "containerEdits": {edits % uuid}}}' for uuid in GPUS)
    file.write_text(f'{{"cdiVersion": "0.3.0", "kind": "nvidia.com/gpu", "devices": [{devices}]}}')
    try:
        done = podman(engine, "run", "--rm", *args("podman", GPUS[1]), *SYSTEM, "env")
    finally:
        file.unlink()
    assert f"INJECTED={GPUS[1]}" in done.stdout, done.stderr


def test_driver_limits_no_container_so_it_is_not_promised(pool: TestBroker) -> None:
    """Its cgroup is the engine's."""
    program = "docker" if shutil.which("docker") else "podman"
    if not shutil.which(program):
        pytest.skip("neither docker nor podman is installed")
    done = run(pool, "--enforce", "--in", program, "--", "image")
    assert done.returncode == 2
    assert "leave --enforce or --in" in done.stderr


def test_engine_that_is_away_is_told(pool: TestBroker) -> None:
    """Its own message and code, and that a container may be left."""
    if not shutil.which("docker"):
        pytest.skip("docker's client is not installed")
    done = run(
        pool, "--memory", "1", "--in", "docker", "--", "image",
        DOCKER_HOST="unix:///nonexistent/docker.sock",
    )  # fmt: skip
    assert done.returncode == 125
    assert "docker did not say whether a container of the lease is left" in done.stderr


@pytest.mark.usefixtures("sandbox")
def test_sandbox_without_network_reaches_the_pool_by_its_socket(pool: TestBroker) -> None:
    """A unix socket is a file: it is in the sandbox, and no network is needed for it."""
    script = (
        "import os, socket, agent_sdk\n"
        "assert [name for _, name in socket.if_nameindex()] == ['lo']\n"
        "client = agent_sdk.LeaseClient.from_env()\n"
        "mine = client.adopt(os.environ['GPU_LEASE_TOKEN'])\n"
        "more = client.acquire('inside', memory_mb=100)\n"
        "print(mine.memory_mb, more.devices[0].uuid)\n"
        "client.release(more)\n"
    )
    done = run(
        pool, "-q", "--memory", "100", "--in", "bwrap", "--", *READ_ONLY, "--", sys.executable,
        "-c", script,
    )  # fmt: skip
    assert done.stdout == f"100 SIM-{pool.host}-0\n", done.stderr
    assert pool.client.leases() == ()


@pytest.mark.usefixtures("sandbox")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_sandbox_ends_with_run(pool: TestBroker, number: signal.Signals) -> None:
    """Also one with pids of its own, whose first process has no parent outside."""
    words = ["--in", "bwrap", "--", *READ_ONLY, "--", "sh", "-c", "echo up; exec sleep 1000"]
    with running(pool, {}, *words) as process:
        (held,) = pool.client.leases()
        process.send_signal(number)
        process.wait(WITHIN_S)
        until(lambda: not _sharing(held.token), WITHIN_S)
    if number == signal.SIGKILL:
        pool.client.revoke(held.token, force=True, why="the killed run's")
    assert pool.client.leases() == ()


def _sharing(token: str) -> list[int]:
    """The processes with a lease's token in their environment."""
    pids = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    return [pid for pid, each in Programs().look(pids).items() if each.token == token]


def test_bwraps_options_and_the_command_are_told_apart(pool: TestBroker) -> None:
    """The error says how."""
    if not shutil.which("bwrap"):
        pytest.skip("bwrap is not installed")
    done = run(pool, "--in", "bwrap", "--", "--ro-bind", "/", "/", "true")
    assert done.returncode == 2
    assert "--ro-bind / / --dev /dev --proc /proc -- COMMAND" in " ".join(done.stderr.split())
