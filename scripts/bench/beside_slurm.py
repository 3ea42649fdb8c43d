"""Starts of commands beside Slurm's: from the submission, and from one job's end to the next.

Slurm runs here as its own daemons, of Debian's `slurm-wlm` and `munge`: one node with one CPU, with
its defaults, in a temporary folder and on loopback alone. Ours is one GPU of the embedded store.
Both take turns in each round. The machine's load is in all figures: read them beside each other,
and beside `python -c pass` of the same rounds.
"""

from __future__ import annotations

import argparse
import getpass
import os
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

from agent_sdk.scripts import library
from agent_sdk.testing import running_broker

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

DAEMONS: Final = ("munged", "slurmctld", "slurmd")

SBIN: Final = f"{os.environ['PATH']}:/usr/sbin:/sbin"

JOBS: Final = 8

JOB: Final = ("sh", "-c", "date +%s%N; sleep 0.5; date +%s%N")

START_S: Final = 30.0
"""Most seconds until Slurm's node is idle."""

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
        RuntimeError: they are not installed, or do not come up.
    """
    if missing := [name for name in (*DAEMONS, "srun") if not shutil.which(name, path=SBIN)]:
        raise RuntimeError(f"no {', '.join(missing)}: apt-get install slurm-wlm munge")
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
                subprocess.run(command, env=env, check=True, capture_output=True)
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
    raise RuntimeError("Slurm's node does not become idle")


def _end(pid: int) -> None:
    os.kill(pid, signal.SIGTERM)
    for _ in range(100):
        time.sleep(0.1)
        os.kill(pid, 0)  # an OSError ends the wait: it is gone
    os.kill(pid, signal.SIGKILL)


def first_line_ms(command: Sequence[str], env: Mapping[str, str]) -> float:
    """Return the milliseconds from the start of a command to its first line."""
    began = time.perf_counter()
    with subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        line = process.stdout.readline() if process.stdout else b""
        took = time.perf_counter() - began
    if not line or process.returncode:
        raise RuntimeError(f"{command[0]} ended with {process.returncode}")
    return took * 1000


def gaps_ms(submit: Sequence[str], env: Mapping[str, str]) -> list[float]:
    """Return the milliseconds from the end of each of the jobs to the first line of the next."""
    jobs = [
        subprocess.Popen([*submit, *JOB], env=env, stdout=subprocess.PIPE, text=True)
        for _ in range(JOBS)
    ]
    spans = sorted(tuple(map(int, job.communicate()[0].split())) for job in jobs)
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
        try:
            theirs = stack.enter_context(slurm())
        except (RuntimeError, subprocess.CalledProcessError) as error:
            print(f"Slurm cannot run here: {error}", file=sys.stderr)
            return 1
        pool = stack.enter_context(running_broker(devices=1, memory_mb=1000))
        library.load(pool.client.redis)
        ours = {**os.environ, "REDIS_URL": pool.url, "GPU_BROKER_HOSTNAME": pool.host}
        program = str(Path(sys.executable).with_name("gpu-broker"))
        run = [program, "run", "-q", "--exclusive", "--memory", "100MiB", "--"]
        kinds = {
            "srun": (["srun", "date", "+%s%N"], theirs),
            "gpu-broker run": ([*run, "date", "+%s%N"], ours),
            "gpu-broker --version": ([program, "--version"], ours),
            "python -c 'print()'": ([sys.executable, "-c", "print()"], ours),
        }
        starts: dict[str, list[float]] = {name: [] for name in kinds}
        for _ in range(asked.rounds):
            for name, (command, env) in kinds.items():
                starts[name].append(first_line_ms(command, env))
        queues: dict[str, list[float]] = {"srun": [], "gpu-broker run": []}
        for _ in range(asked.queues):
            queues["srun"] += gaps_ms(["srun", "-Q"], theirs)
            queues["gpu-broker run"] += gaps_ms(run, ours)
    print("| ms, median (least to most) | to the first line | from one job's end to the next |")
    print("|---|---:|---:|")
    for name, found in starts.items():
        print(f"| `{name}` | {median(found)} | {median(queues[name]) if name in queues else ''} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
