"""Differences between a pool's policy and a file's."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from agent_sdk.policy import FIELDS
from agent_sdk.teams import policy as team_policy
from broker.cli.policies.file import MODELS, NAMES, models_of, said, team_values
from broker.text.screen import one_line, paint

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from agent_sdk.teams.policy import TeamPolicy
    from broker.cli.policies.file import PolicyFile

NONE: Final = "none"

ADDED, REMOVED, CHANGED = "added", "removed", "changed"

MARKS: Final = {ADDED: ("+", "green"), REMOVED: ("-", "red"), CHANGED: ("~", "yellow")}


@dataclass(frozen=True, slots=True)
class PolicyChange:
    """One difference.

    Attributes:
        team: its team; None: it is of the pool.
        field: its name in a file; None: the team as a whole.
        before, after: the values as a file has them; of a whole team all that is no default.
    """

    what: str
    team: str | None
    field: str | None
    before: Any
    after: Any

    @property
    def row(self) -> dict[str, Any]:
        """Fields by name, for JSON."""
        return asdict(self)


def changes_of(
    pool: Mapping[str, Any], teams: Mapping[str, TeamPolicy], wanted: PolicyFile
) -> list[PolicyChange]:
    """Return what a file changes: fields of the pool, then teams by name."""
    found = [
        PolicyChange(CHANGED, None, name, said(FIELDS[name], pool[name]), said(FIELDS[name], value))
        for name, value in wanted.pool.items()
        if pool[name] != value
    ]
    if wanted.teams is not None:
        for team in sorted(teams.keys() | wanted.teams.keys()):
            found += _of_team(team, teams.get(team), wanted.teams.get(team))
    return found


def _of_team(
    team: str, before: TeamPolicy | None, after: TeamPolicy | None
) -> Iterator[PolicyChange]:
    if before is None or after is None:
        old, new = (None if x is None else team_values(x) for x in (before, after))
        yield PolicyChange(ADDED if before is None else REMOVED, team, None, old, new)
        return
    for name, field in NAMES.items():
        old, new = getattr(before, field), getattr(after, field)
        if old != new:
            of = team_policy.FIELDS[field]
            yield PolicyChange(CHANGED, team, name, said(of, old), said(of, new))
    was, is_now = models_of(before), models_of(after)
    for model in sorted(was.keys() | is_now.keys()):
        old_quota, new_quota = was.get(model), is_now.get(model)
        if old_quota != new_quota:
            name = f"{MODELS}: {model}"
            yield PolicyChange(CHANGED, team, name, old_quota or NONE, new_quota or NONE)


def text_of(changes: list[PolicyChange]) -> str:
    """Return the changes for people, a line each."""
    return "\n".join(map(_line, changes)) if changes else "nothing to change"


def _line(change: PolicyChange) -> str:
    mark, colour = MARKS[change.what]
    whose = f"team {change.team}" if change.team else ""
    if change.field is None:
        values = change.before if change.after is None else change.after
        words = ", ".join(f"{name} {value}" for name, value in values.items())
        text = f"{whose}: {words}" if words else whose
    else:
        name = f"{whose}: {change.field}" if whose else change.field
        text = f"{name}: {_shown(change.before)} -> {_shown(change.after)}"
    return one_line(paint(f"{mark} {text}", colour))


def _shown(value: str) -> str:
    return "no limit" if value == "null" else value
