"""Starts of commands beside Slurm's and jobd's: from the submission, and from one job to the next.

Slurm runs here as its own daemons, of Debian's `slurm-wlm` and `munge`: one node with one CPU, with
its defaults. jobd runs as its broker and one worker, of a virtual environment of its own. Both live
in a temporary folder and on loopback alone. Ours is one GPU of the embedded store. All take turns
in each round. The machine's load is in all figures: read them beside each other, and beside
`python -c pass` of the same rounds. A scheduler that cannot run here is left out, and it says why.
"""

from __future__ import annotations

import argparse
import getpass
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final

from peer_servers import NotMeasured, peers_python

from agent_sdk.scripts import library
from agent_sdk.testing import running_broker

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

DAEMONS: Final = ("munged", "slurmctld", "slurmd")

SBIN: Final = f"{os.environ['PATH']}:/usr/sbin:/sbin"

JOBS: Final = 8

SAY: Final = "echo at $(date +%s%N)"
"""Command of a job: it says when it runs. jobd's client prints lines of its own too."""

JOB: Final = f"{SAY}; sleep 0.5; {SAY}"

SAID: Final = re.compile(r"^at (\d+)$", re.MULTILINE)

QUEUED: Final = {"srun", "job submit --wait", "gpu-broker run"}
"""Commands that run a job once it is its turn."""

START_S: Final = 30.0
"""Most seconds until a scheduler takes jobs."""

CONF: Final = """
ClusterName=bench
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
CredType=cred/munge
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=1 State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def free_ports(count: int) -> list[int]:
    """Return ports that were free a moment ago."""
    with ExitStack() as stack:
        found = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in found:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in found]


@contextmanager
def slurm() -> Iterator[dict[str, str]]:
    """Run Slurm's daemons, and yield the environment of its commands; end them by their pids.

    Raises:
        NotMeasured: they are not installed, or do not come up.
    """
    if missing := [name for name in (*DAEMONS, "srun") if not shutil.which(name, path=SBIN)]:
        raise NotMeasured(f"no {', '.join(missing)}: apt-get install slurm-wlm munge")
    with tempfile.TemporaryDirectory(prefix="beside-slurm-") as made:
        folder = Path(made)
        folder.chmod(0o755)
        for name in ("state", "spool"):
            (folder / name).mkdir()
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o400)
        conf = folder / "slurm.conf"
        conf.write_text(
            CONF.format(
                host=socket.gethostname(), folder=folder, user=getpass.getuser(),
                ports=free_ports(2),
            )
        )  # fmt: skip
        env = {**os.environ, "SLURM_CONF": str(conf), "PATH": SBIN}
        munged = [
            "munged", "-f", f"--socket={folder}/munge.sock", f"--key-file={folder}/munge.key",
            f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log",
            f"--seed-file={folder}/munged.seed",
        ]  # fmt: skip
        try:
            for command in (munged, ["slurmctld", "-i"], ["slurmd"]):
                done = subprocess.run(command, env=env, check=False, capture_output=True, text=True)
                if done.returncode:
                    raise NotMeasured(f"{command[0]} ended with {done.returncode}: {done.stderr}")
            _wait_idle(env)
            yield env
        finally:
            for name in reversed(DAEMONS):
                with suppress(OSError, ValueError):
                    _end(int((folder / f"{name}.pid").read_text()))


def _wait_idle(env: Mapping[str, str]) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        said = subprocess.run(
            ["sinfo", "-h", "-o", "%t"], env=env, capture_output=True, text=True, check=False
        )
        if said.stdout.strip() == "idle":
            return
        time.sleep(0.2)
    raise NotMeasured("Slurm's node does not become idle")


def _end(pid: int) -> None:
    os.kill(pid, signal.SIGTERM)
    for _ in range(100):
        time.sleep(0.1)
        os.kill(pid, 0)  # an OSError ends the wait: it is gone
    os.kill(pid, signal.SIGKILL)


@contextmanager
def jobd() -> Iterator[tuple[list[str], dict[str, str]]]:
    """Run jobd's broker and a worker; yield the command that runs a job, and its environment.

    The worker has no `systemd-run` on its path: with one it would need a user's own systemd.

    Raises:
        NotMeasured: it cannot be installed, or its broker does not come up.
    """
    programs = Path(peers_python()).parent
    with tempfile.TemporaryDirectory(prefix="beside-jobd-") as made, ExitStack() as stack:
        folder, (port,) = Path(made), free_ports(1)
        (folder / "bin").mkdir()
        for name in ("sh", "date", "sleep"):
            (folder / "bin" / name).symlink_to(shutil.which(name) or name)
        env = {
            **os.environ, "HOME": made, "JOBD_CONFIG_DIR": made, "JOBD_STATE_DIR": made,
            "JOBD_ALLOW_NO_AUTH": "1", "JOBD_PORT": str(port), "JOBD_WORKER_HOST": "bench",
            "JOBD_URL": f"http://127.0.0.1:{port}",
        }  # fmt: skip
        worker = {**env, "PATH": str(folder / "bin")}
        for name, its in (("jobd", env), ("jobd-worker", worker)):
            process = subprocess.Popen(
                [programs / name], env=its, cwd=folder,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            stack.callback(process.wait)
            stack.callback(process.terminate)
            _wait_open(port)
        submit = [str(programs / "job"), "submit", "--project", "bench", "--cwd", made]
        yield [*submit, "--wait", "--"], env


def _wait_open(port: int) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", port)).close()
            return
        time.sleep(0.1)
    raise NotMeasured("jobd's broker does not come up")


def first_line_ms(command: Sequence[str], env: Mapping[str, str]) -> float:
    """Return the milliseconds from the start of a command to its first line."""
    began, took = time.perf_counter(), 0.0
    with subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        for line in process.stdout or ():
            if not took and not line.startswith(b"{"):  # jobd's client first tells of the job
                took = time.perf_counter() - began
    if not took or process.returncode:
        raise RuntimeError(f"{command[0]} ended with {process.returncode}")
    return took * 1000


def gaps_ms(submit: Sequence[str], env: Mapping[str, str]) -> list[float]:
    """Return the milliseconds from the end of each of the jobs to the first line of the next."""
    jobs = [
        subprocess.Popen(
            [*submit, "sh", "-c", JOB], env=env, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )
        for _ in range(JOBS)
    ]  # fmt: skip
    spans = sorted(tuple(map(int, SAID.findall(job.communicate()[0]))) for job in jobs)
    return [(after[0] - before[1]) / 1e6 for before, after in pairwise(spans)]


def median(found: Sequence[float]) -> str:
    """Return the median, and the least and the most."""
    return f"{statistics.median(found):.0f} ({min(found):.0f} to {max(found):.0f})"


def main() -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="starts of each kind")
    parser.add_argument("--queues", type=int, default=2, help="queues of each kind")
    asked = parser.parse_args()
    with ExitStack() as stack:
        kinds = kinds_of(stack)
        starts: dict[str, list[float]] = {name: [] for name in kinds}
        queues: dict[str, list[float]] = {name: [] for name in kinds}
        for _ in range(asked.rounds):
            for name, (command, env) in kinds.items():
                say = ["sh", "-c", SAY] if name in QUEUED else []
                starts[name].append(first_line_ms([*command, *say], env))
        for _ in range(asked.queues):
            for name in QUEUED & kinds.keys():
                queues[name] += gaps_ms(*kinds[name])
    print("| ms, median (least to most) | to the first line | from one job's end to the next |")
    print("|---|---:|---:|")
    for name, found in starts.items():
        print(f"| `{name}` | {median(found)} | {median(queues[name]) if queues[name] else ''} |")
    return 0


def kinds_of(stack: ExitStack) -> dict[str, tuple[list[str], dict[str, str]]]:
    """Start everything; return the commands that are measured, and their environments."""
    kinds: dict[str, tuple[list[str], dict[str, str]]] = {}
    try:
        kinds["srun"] = (["srun", "-Q"], stack.enter_context(slurm()))
    except NotMeasured as why:
        print(f"Slurm cannot run here: {why}", file=sys.stderr)
    try:
        kinds["job submit --wait"] = stack.enter_context(jobd())
    except NotMeasured as why:
        print(f"jobd cannot run here: {why}", file=sys.stderr)
    pool = stack.enter_context(running_broker(devices=1, memory_mb=1000))
    library.load(pool.client.redis)
    ours = {**os.environ, "REDIS_URL": pool.url, "GPU_BROKER_HOSTNAME": pool.host}
    program = str(Path(sys.executable).with_name("gpu-broker"))
    run = [program, "run", "-q", "--exclusive", "--memory", "100MiB", "--"]
    return kinds | {
        "gpu-broker run": (run, ours),
        "gpu-broker --version": ([program, "--version"], ours),
        "python -c 'print()'": ([sys.executable, "-c", "print()"], ours),
    }


if __name__ == "__main__":
    sys.exit(main())
