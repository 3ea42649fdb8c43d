"""Command in a container: its client is our child, but the container belongs to an engine.

A container does not end with the client that started it. So it carries a label of its lease, and
is ended by its id through the engine's own program.
"""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Final

from agent_sdk.engines.containers import LABEL, container_label
from agent_sdk.engines.visible import AMD
from broker.run.child import Child
from broker.run.partition import NotLimitedError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agent_sdk import Lease
    from agent_sdk.engines.containers import Runtime
    from broker.run.guard import Guard
    from broker.run.inherited import Inherited
    from broker.run.progress import Progress

ANSWER_S: Final = 10.0
"""Most seconds that an engine's program may take to answer."""

ENDED: Final = {"exited", "stopped", "removing", "dead"}
"""States of a container without a process. podman's filters do not know "stopping", in which the
process still lives.
"""

OPTIONS: Final = {
    "docker": ("run", "--rm", "--init"),
    "podman": ("run", "--rm", "--init"),
    "apptainer": ("exec",),
    "bwrap": ("--die-with-parent",),
}
"""First words of each runtime's command. Docker's and podman's later options take precedence."""

NO_SEPARATOR: Final = (
    "bwrap needs its own options and then -- before the command, as in: gpu-broker run --in bwrap "
    "-- --ro-bind / / --dev /dev --proc /proc -- COMMAND"
)


class Containers:
    """Containers of one lease, in one engine.

    Args:
        engine: docker or podman.
        token: the lease's token.

    Attributes:
        silent: the reason for which the engine did not tell what runs, at the last call, or empty.
    """

    def __init__(self, engine: str, token: str) -> None:
        self.engine = engine
        self.silent = ""
        self._ours = ("--all", "--filter", f"label={LABEL}={container_label(token)}")

    def alive(self) -> list[str]:
        """Return the ids of those that have not ended; none where the engine does not answer."""
        lines = self._ask("ps", *self._ours, "--format", "{{.ID}} {{.State}}")
        states = [line.partition(" ") for line in lines]
        return [each for each, _, state in states if state.lower() not in ENDED]

    def stop(self, grace_s: float) -> bool:
        """Have the engine end them by their stop signal, then SIGKILL; return True if any lives."""
        ids = self.alive()
        if ids:
            subprocess.Popen(  # noqa: S603 - the engine's program, which the user has chosen
                [self.engine, "stop", "-t", str(max(1, round(grace_s))), *ids],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip
        return bool(ids)

    def remove(self) -> bool:
        """Kill them and remove them, also those not started yet; return True if there was one."""
        if ids := self._ask("ps", "--quiet", *self._ours):
            self._ask("kill", *ids)  # podman's rm alone sends SIGTERM first, and waits for 10 s
            self._ask("rm", "--force", *ids)
        return bool(ids)

    def _ask(self, *words: str) -> list[str]:
        try:
            done = subprocess.run(  # noqa: S603 - see above
                [self.engine, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                errors="replace", timeout=ANSWER_S, check=False, start_new_session=True,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            self.silent = str(error)
            return []
        said = done.stderr.strip().rpartition("\n")[2]
        self.silent = (said or f"exit code {done.returncode}") if done.returncode else ""
        return done.stdout.splitlines()


class ContainerClient(Child):
    """Running client of an engine, with the lease's containers for its command.

    Processes that the client leaves are the engine's own (podman's conmon), and end with the
    container.
    """

    def __init__(
        self,
        command: Sequence[str],
        env: Mapping[str, str],
        guard: Guard,
        inherited: Inherited,
        containers: Containers,
    ) -> None:
        super().__init__(command, env, guard, inherited)
        self._containers = containers

    def terminate(self, grace_s: float) -> None:
        """Ask the container to end; the client, while there is none: it may be pulling an image."""
        if not self._containers.stop(grace_s):
            super().terminate(grace_s)

    def kill(self) -> None:
        """End the client and the container by SIGKILL."""
        super().kill()
        self._containers.remove()

    def terminate_rest(self, grace_s: float) -> None:
        """Ask the container to end: the client was detached, or was ended alone."""
        self._containers.stop(grace_s)

    def kill_rest(self) -> None:
        """End the container by SIGKILL."""
        self._containers.remove()

    @property
    def rest_lives(self) -> bool:
        """True if a container of the lease is left; ask once the client has ended."""
        self._bury()
        return bool(self._containers.alive())


def contained(
    runtime: Runtime,
    lease: Lease,
    words: Sequence[str],
    env: Mapping[str, str],
    added: Mapping[str, str],
    *,
    numbered: bool,
) -> tuple[list[str], dict[str, str]]:
    """Return the command that runs the user's words in a runtime, and its environment.

    Args:
        runtime: docker, podman, apptainer or bwrap.
        lease: the lease whose GPUs it gets.
        words: the runtime's own options, the image, and the command.
        env: the environment that the command would have without a container.
        added: those of its variables that are for the command, and not our own environment's.
        numbered: give CUDA numbers. A container counts its own GPUs, from 0.
    """
    first, ours, env = [runtime, *OPTIONS[runtime]], lease.args(runtime), dict(env)
    if runtime == "bwrap":
        at = words.index("--")
        return [*first, *words[:at], *ours, *words[at:]], env
    if runtime == "apptainer":  # it hands these on also with --cleanenv
        env |= {f"APPTAINERENV_{name}": value for name, value in added.items()}
        return [*first, *ours, *words], env
    more = [name for name in added if name not in lease.env()]
    if numbered and not any(d.uuid.startswith((AMD, "MIG-")) for d in lease.devices):
        env["CUDA_VISIBLE_DEVICES"] = ",".join(str(n) for n in range(len(lease.devices)))
    if lease.devices:
        env["GPU_BROKER_HOSTNAME"] = lease.devices[0].host
    return [*first, *ours, *(f"--env={name}" for name in more), *words], env


def without_limit(runtime: str, mode: str, teller: Progress) -> None:
    """Tell that the driver does not limit a container's memory to the lease.

    Raises:
        NotLimitedError: the pool requires that limit.
    """
    why = f"{runtime}'s containers have cgroups of their own"
    if mode == "required":
        raise NotLimitedError(why)
    if mode != "off":
        teller.not_limited(why)
