"""Tool `gpu_run`: a command under a lease, on this machine. Over stdio alone, where allowed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Final

from mcp.server.elicitation import ElicitationResult
from mcp.server.mcpserver import Resolve
from pydantic import Field

from broker.mcp.confirmation import Confirmation, asked_of_person, require_confirmed
from broker.mcp.models import RunResult
from broker.mcp.refusals import refused
from broker.mcp.tools import Confirm, Exclusive, Gpus, MemoryMb
from broker.mcp_terms import MOST_WAIT_S

if TYPE_CHECKING:
    from broker.mcp.jobs import Job, Jobs

Command = Annotated[
    list[str] | None,
    Field(description="program and its arguments; no shell: name sh -c for one", min_length=1),
]
Cwd = Annotated[str | None, Field(description="folder to run it in; null: the server's")]
WaitS = Annotated[
    float, Field(ge=0, description="seconds that this call waits for its end, at most 15")
]
TimeS = Annotated[float | None, Field(ge=1, description="end it after so many seconds")]
JobName = Annotated[str | None, Field(description="of an earlier answer: how is that command?")]
Stop = Annotated[bool, Field(description="with job: end that command")]

STARTED: Final = "call gpu_run with this job alone; with stop=true to end it"


class RunTool:
    """Tool over the commands of a session.

    Args:
        jobs: the commands.
        agent: the name under which they lease.
        ttl_s: seconds for which their leases outlive a crash.
    """

    def __init__(self, jobs: Jobs, agent: str, ttl_s: float) -> None:
        self._jobs = jobs
        self._always = ["--agent", agent, "--ttl", str(ttl_s)]

    async def gpu_run(
        self,
        confirmed: Annotated[ElicitationResult[Confirmation], Resolve(asked_of_person)],
        command: Command = None,
        memory_mb: MemoryMb = None,
        gpus: Gpus = 1,
        exclusive: Exclusive = False,
        cwd: Cwd = None,
        time_s: TimeS = None,
        wait_s: WaitS = 10.0,
        job: JobName = None,
        stop: Stop = False,
        confirm: Confirm = False,
    ) -> RunResult:
        """Run a command under a lease of its own on this machine, and show its last output.

        It waits for its lease, keeps it, and gives it back at its end. state=running: call again
        with job alone. It ends with this session at the latest.
        """
        del confirm
        if job is not None:
            found = self._jobs.get(job)
            if found is None:
                raise refused("job_unknown", "no such job", "start the command again")
            if stop:
                found.stop()
            return await self._told(found, wait_s)
        require_confirmed(confirmed)
        if command is None or memory_mb is None:
            raise refused(
                "bad_request",
                "neither command with memory_mb nor job is given",
                "name command, as a list, and memory_mb, in MiB on each GPU",
            )
        options = [*self._always, "--gpus", str(gpus)]
        options += ["--memory", f"{memory_mb}MiB"] if memory_mb else []
        options += ["--exclusive"] if exclusive else []
        options += ["--time", f"{time_s:.0f}s"] if time_s else []
        try:
            started = await self._jobs.start(options, command, cwd)
        except (OSError, ValueError) as error:  # the latter: letters that no program can be given
            raise refused("not_started", str(error), "correct command or cwd") from error
        try:
            return await self._told(started, wait_s)
        except asyncio.CancelledError:  # no answer names the job: nothing else could stop it
            started.stop()
            raise

    async def _told(self, job: Job, wait_s: float) -> RunResult:
        await job.ended(min(wait_s, MOST_WAIT_S))
        code = job.exit_code
        return RunResult(
            state="running" if code is None else "ended",
            job=job.name,
            exit_code=code,
            output=job.text,
            cut=job.cut,
            next=STARTED if code is None else "read the output; the lease is given back",
        )
