"""Criteria of the documented end-to-end procedure, each judged from what was seen."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

LONGEST_S = 2.5
"""Longest time of a batch, without an orchestrator too: the promised 2 s, and room for work."""

OK = 200


@dataclass
class Seen:
    """Observations of a walk; nothing yet.

    Attributes:
        unit: whether the unit is well-formed; None: there was no systemd-analyze to ask.
        health: the status of /health after the start.
        safe_demo, open_demo, snapshot, flip, validation, whole_run: exit codes of the scripts.
        safe_cycle, open_cycle: what run_safe_mode_demo.py saw in each mode.
        watchdogs: agent -> the state of its old GPU watchdog.
        safe_run, open_run, killed_run, again_run: what the pipeline did.
        holders: who was seen to hold a GPU in open_run.
        active_after: active_leases after open_run.
        mcp: what the agent over MCP saw, by transport.
        left: the leases that are left at the end.
    """

    unit: bool | None = None
    health: int = 0
    safe_demo: int = -1
    open_demo: int = -1
    snapshot: int = -1
    flip: int = -1
    validation: int = -1
    whole_run: int = -1
    safe_cycle: dict[str, Any] = field(default_factory=dict)
    open_cycle: dict[str, Any] = field(default_factory=dict)
    gpu_info: dict[str, Any] = field(default_factory=dict)
    watchdogs: dict[str, str] = field(default_factory=dict)
    safe_run: dict[str, Any] = field(default_factory=dict)
    open_run: dict[str, Any] = field(default_factory=dict)
    killed_run: dict[str, Any] = field(default_factory=dict)
    again_run: dict[str, Any] = field(default_factory=dict)
    holders: set[str] = field(default_factory=set)
    active_after: float = -1
    mcp: dict[str, Any] = field(default_factory=dict)
    left: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """One row of the table."""

    name: str
    met: bool
    evidence: str

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Criterion:
    """One criterion of the procedure; `look` gives whether it is met, and what shows it."""

    name: str
    look: Callable[[Seen], tuple[bool, str]]

    def judge(self, seen: Seen) -> Verdict:
        """By what was seen."""
        return Verdict(self.name, *self.look(seen))


def devices(run: dict[str, Any]) -> list[str]:
    """Return the device of each batch of a pipeline."""
    return [step["device"] for step in run.get("steps", [])]


def complete(run: dict[str, Any]) -> bool:
    """Return whether a pipeline did all that it was to do."""
    return run.get("exit_code") == 0 and 0 < run["articles"] == run["completed"]


def slowest(run: dict[str, Any]) -> float:
    """Return seconds of the slowest batch."""
    return max((float(step["seconds"]) for step in run.get("steps", [])), default=0.0)


def _starts(seen: Seen) -> tuple[bool, str]:
    unit = {True: "unit verified", False: "unit NOT well-formed", None: "unit not verified"}
    how = f"{unit[seen.unit]}, its ExecStart run by hand: /health {seen.health}"
    return seen.health == OK and seen.unit is not False, how


def _gpu_info(seen: Seen) -> tuple[bool, str]:
    info = seen.gpu_info
    gpus = info.get("gpus")
    said = f"available {info.get('available')}, {len(gpus or [])} in the list"
    return "available" in info and isinstance(gpus, list), said


def _safe_mode(seen: Seen) -> tuple[bool, str]:
    note = seen.safe_cycle.get("policy_post", {}).get("note", "no note")
    return seen.safe_demo == 0 and note != "no note", f"POST /policy: {note}"


def _respected(seen: Seen) -> tuple[bool, str]:
    safe, others_off = set(devices(seen.safe_run)), set(seen.watchdogs.values()) == {"off"}
    on_gpu = set(devices(seen.open_run))
    met = (
        (safe, on_gpu, seen.holders) == ({"cpu"}, {"gpu"}, {"analyst"})
        and others_off
        and seen.active_after == 0
        and (seen.open_demo, seen.snapshot, seen.flip, seen.validation, seen.whole_run)
        == (0, 0, 0, 0, 0)
    )
    held = ", ".join(sorted(seen.holders)) or "nobody"
    said = f"on: {'/'.join(safe) or '-'}; off: Analyst {'/'.join(on_gpu) or '-'}, held by {held}"
    return met, f"{said}; {seen.active_after:g} left; watchdogs {'off' if others_off else 'ON'}"


def _fallback(seen: Seen) -> tuple[bool, str]:
    run = seen.killed_run
    where = devices(run)
    met = complete(run) and where[:1] == ["gpu"] and where[-1:] == ["cpu"]
    met = met and slowest(run) < LONGEST_S
    return met, f"batches on {', '.join(where) or '-'}; slowest {slowest(run):.2f} s"


def _stable(seen: Seen) -> tuple[bool, str]:
    runs = (seen.safe_run, seen.open_run, seen.killed_run, seen.again_run)
    done = sum(run.get("completed", 0) for run in runs)
    met = all(complete(run) for run in runs) and devices(seen.again_run)[-1:] == ["gpu"]
    met = met and seen.left == {}
    left = "?" if seen.left is None else len(seen.left)
    return met, f"{done} articles in {len(runs)} runs; leases left: {left}"


def _lease(seen: Seen) -> tuple[bool, str]:
    lease = seen.safe_cycle.get("lease", {})
    met = lease.get("note") == "SAFE_MODE" and "gpu" not in lease and "token" not in lease
    opened = seen.open_cycle.get("lease", {}).get("gpu")
    return met, f"on: {lease.get('note', 'no note')}, no gpu, no token; off: GPU {opened}"


def _mcp(seen: Seen) -> tuple[bool, str]:
    runs = [seen.mcp.get(way, {}) for way in ("stdio", "http")]
    met = all(
        run.get("leased") == [run.get("ran_on")]
        and (run["queued"], run["then"], run["left"]) == ("waiting", "active", [])
        for run in runs
    )
    said = (run.get("problem", f"{run.get('queued', '-')}, {run.get('then', '-')}") for run in runs)
    return met, "stdio: {}; HTTP: {}".format(*said)


def _shares(seen: Seen) -> tuple[bool, str]:
    runs = [seen.mcp.get(way, {}) for way in ("stdio", "http")]
    met = all(
        "taken back" in run.get("preempt", "")
        and run["released_in_time"]
        and (run["asked"], run["behind"], run["again"]) == (0, "waiting", "active")
        and "wants" in run["wanted"]
        and run["goes_on_at"] == run["saved_at"] + 1
        for run in runs
    )
    said = (run.get("problem", f"goes on at {run.get('goes_on_at', '-')}") for run in runs)
    return met, "told, saved, gave back, asked; stdio: {}; HTTP: {}".format(*said)


CRITERIA = (
    Criterion("Orchestrator systemd start", _starts),
    Criterion("`/gpu/info` works", _gpu_info),
    Criterion("SAFE_MODE enforced", _safe_mode),
    Criterion("Agents respect SAFE_MODE", _respected),
    Criterion("Fallback path", _fallback),
    Criterion("E2E run stable", _stable),
    Criterion("Lease SAFE_MODE behavior", _lease),
    Criterion("Agent leases over MCP", _mcp),
    Criterion("Agent is preempted over MCP", _shares),
)
"""All criteria, in the order of the procedure."""


def as_table(verdicts: list[Verdict]) -> str:
    """Return a Markdown table, which is also good to read at a shell."""
    width = max(len(verdict.name) for verdict in verdicts)
    rows = [f"| {x.name:{width}} | {'✅' if x.met else '❌'} | {x.evidence} |" for x in verdicts]
    return "\n".join(
        [f"| {'Criterion':{width}} |    | Seen |", f"|{'-' * (width + 2)}|----|---|", *rows]
    )
