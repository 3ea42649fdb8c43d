"""Policy of teams: the one declaration of its fields, and how teams stand by it.

Lua has its own literal table; a test compares both. It stands in `lua/lib/teams.lua`, with the
rules: quotas that are lent and borrowed, and the order between teams that borrow.
"""

from __future__ import annotations

import math
import re
from dataclasses import Field, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Final

from agent_sdk.errors import error_for
from agent_sdk.keys import TEAM, TEAM_PARTY
from agent_sdk.policy import MOST_MB, TEN_YEARS_S, WEEK_S, PolicyField

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MOST_TEAMS: Final = 256
"""Most teams with a policy."""

MOST_PRIORITY: Final = 9

LOOK_AHEAD_S: Final = 60
"""Seconds of what a team holds that count as used already, as in `lua/lib/teams.lua`."""

_MILLION: Final = 1_000_000

_WORD = re.compile(r"([a-z_]+)=([0-9]{1,13})")


def _number(label: str, meaning: str, *, most: int, default: int | None = None) -> Any:
    metadata = {"label": label, "meaning": meaning, "most": most}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class TeamPolicy:
    """Policy of one team; None: no limit. `FIELDS` has more about each field."""

    weight: int = _number(
        "Weight among teams that borrow",
        "Share of what is borrowed, against the weights of the others; 0: after all others.",
        default=1, most=10_000,
    )  # fmt: skip
    nominal_mb: int = _number(
        "Quota of its own, MiB",
        "MiB that are the team's own: within it the team is served before teams that borrow, and "
        "gets back what others have borrowed.",
        default=0, most=MOST_MB,
    )  # fmt: skip
    borrow_mb: int | None = _number(
        "Most that it may borrow, MiB",
        "MiB that it may hold beyond its quota, of what others do not use.",
        most=MOST_MB,
    )
    lend_mb: int | None = _number(
        "Most that it lends, MiB",
        "MiB of its unused quota that others may hold.",
        most=MOST_MB,
    )
    max_priority: int | None = _number(
        "Highest priority of its requests",
        "Priority above which its requests are refused.",
        most=MOST_PRIORITY,
    )
    max_leases: int | None = _number(
        "Most leases", "Leases that all its agents may hold together.", most=_MILLION
    )
    max_waiters: int | None = _number(
        "Most places in the queue",
        "Places in the queue that all its agents may have together.",
        most=_MILLION,
    )
    max_hold_s: int | None = _number(
        "Longest lease, s; 0: no limit",
        "Seconds from its grant after which a lease ends, and the default of requests that name "
        "none; an operator may extend it.",
        most=TEN_YEARS_S,
    )
    max_ttl_s: int | None = _number(
        "Longest time to live, s; 0: no limit",
        "Seconds without renewal that its requests may ask for at most.",
        most=WEEK_S,
    )

    @property
    def most_mb(self) -> int | None:
        """MiB that it may ever hold: its quota, and what it may borrow; None: no limit."""
        return None if self.borrow_mb is None else self.nominal_mb + self.borrow_mb

    def limit(self, name: str) -> int | None:
        """Return a limit by its field; None: there is none."""
        found: int | None = getattr(self, name)
        return None if name in {"max_hold_s", "max_ttl_s"} and not found else found


@dataclass(frozen=True, slots=True)
class TeamField(PolicyField):
    """Field of a team's policy; its default None is no limit."""

    default: Any


def _declared(of: Field[Any]) -> TeamField:
    return TeamField(name=of.name, kind="number", default=of.default, **of.metadata)


FIELDS: Final[dict[str, TeamField]] = {x.name: _declared(x) for x in fields(TeamPolicy)}
"""Fields of a team's policy by name."""


def policy_of(values: Mapping[str, object]) -> TeamPolicy:
    """Return the policy with these values; None and what is not named: the default.

    Raises:
        BadRequest: there is no such field, or it takes no such value.
    """
    found: dict[str, Any] = {}
    for name, value in values.items():
        if name not in FIELDS:
            raise error_for(
                "bad_request",
                f"a team has no field {name!r:.80}; its fields are {', '.join(FIELDS)}",
            )
        if value is not None:
            found[name] = FIELDS[name].to_store(value)
    return TeamPolicy(**found)


def policy_in(status: TeamPolicy) -> TeamPolicy:
    """Return the policy alone of a team as it stands."""
    return TeamPolicy(**{name: getattr(status, name) for name in FIELDS})


def parse(line: str) -> TeamPolicy:
    """Return a policy by its line in the store; words that this version does not know are left."""
    said = {name: int(number) for name, number in _WORD.findall(line) if name in FIELDS}
    return TeamPolicy(**said)


def line_of(policy: TeamPolicy) -> str:
    """Return the line of a policy: a word for each field that is not its default."""
    values = ((name, getattr(policy, name), of.default) for name, of in FIELDS.items())
    return " ".join(f"{name}={value}" for name, value, default in values if value != default)


def to_store(teams: Mapping[str, TeamPolicy | Mapping[str, object]]) -> list[str]:
    """Return the policies of all teams in the verb's form: names and lines in turn.

    Raises:
        BadRequest: a name, a field or a value is wrong, or there are too many teams.
    """
    if len(teams) > MOST_TEAMS:
        raise error_for("bad_request", f"at most {MOST_TEAMS} teams may have a policy")
    words: list[str] = []
    for name, of in teams.items():
        if not isinstance(name, str) or not TEAM.fullmatch(name):
            raise error_for(
                "bad_request", f"a team's name must match {TEAM.pattern}, not {name!r:.80}"
            )
        words += (name, line_of(of if isinstance(of, TeamPolicy) else policy_of(of)))
    return words


@dataclass(frozen=True, slots=True)
class PartySums:
    """Sums of one party, an agent, an API key or a team: what counts against its caps.

    Attributes:
        mb, leases: what it holds, offers included.
        waiters: its places in the queue.
        reserved_mb: MiB of the devices that are reserved for its waiters.
        use, use_ms: of a team: MiB-seconds that it had used by then, on the pool's clock.
    """

    mb: int = 0
    leases: int = 0
    waiters: int = 0
    reserved_mb: int = 0
    use: float = 0.0
    use_ms: int = 0


NOTHING: Final = PartySums()


def sums_of(row: Mapping[str, str]) -> dict[str, PartySums]:
    """Return the sums of each party, by the hash `agents`.

    Raises:
        ValueError: it is of another form.
    """
    return {name: _sums(name, row) for name in {field.partition("#")[0] for field in row}}


def _sums(name: str, row: Mapping[str, str]) -> PartySums:
    use, _, use_ms = row.get(f"{name}#use", "0@0").partition("@")
    return PartySums(
        mb=int(row.get(name, 0)),
        leases=int(row.get(f"{name}#leases", 0)),
        waiters=int(row.get(f"{name}#waiters", 0)),
        reserved_mb=int(row.get(f"{name}#reserved", 0)),
        use=float(use),
        use_ms=int(use_ms),
    )


def decayed(use: float, mb: int, for_ms: int, half_life_s: int) -> float:
    """Return MiB-seconds after so long in which `mb` were held; half-life 0: no use decays."""
    if for_ms <= 0:
        return use
    if half_life_s == 0:
        return use + mb * for_ms / 1000
    left: float = 2.0 ** (-for_ms / 1000 / half_life_s)
    return use * left + mb * (half_life_s / math.log(2)) * (1 - left)


@dataclass(frozen=True, slots=True, kw_only=True)
class TeamStatus(TeamPolicy):
    """Team as it stands: its policy, and what it has.

    Attributes:
        listed: it has a policy; False: only leases or waiters.
        used_mb, leases: what it holds, offers included.
        waiters: its places in the queue.
        reserved_mb: MiB of the devices that are reserved for its waiters.
        borrowed_mb: MiB that it holds beyond its quota.
        lent_mb: MiB of its quota that others hold: its part of what they borrow beyond memory that
            is in no quota, by what each team has left to lend.
        use_mb_s: MiB-seconds that it has used by now, decayed.
        share: the order of teams that borrow, the smaller first: `use_mb_s` and a minute of what
            it holds, by its weight; None: its weight is 0, so it comes last.
        used_share: its part of the use of all teams, 0 to 1.
        wanted_share: its part of the weights of all teams, 0 to 1.
    """

    name: str
    listed: bool
    used_mb: int
    leases: int
    waiters: int
    reserved_mb: int
    borrowed_mb: int
    lent_mb: int
    use_mb_s: float
    share: float | None
    used_share: float
    wanted_share: float


def statuses(
    policies: Mapping[str, TeamPolicy],
    sums: Mapping[str, PartySums],
    *,
    now_ms: int,
    half_life_s: int,
    capacity_mb: int,
) -> tuple[TeamStatus, ...]:
    """Return every team that has a policy, leases or waiters, by name."""
    names = sorted({*policies, *_teams(sums)})
    of = {name: policies.get(name, TeamPolicy()) for name in names}
    has = {name: sums.get(TEAM_PARTY + name, NOTHING) for name in names}
    use = {
        name: decayed(x.use, x.mb, now_ms - x.use_ms, half_life_s) if policies else 0.0
        for name, x in has.items()
    }
    ahead = {name: use[name] + LOOK_AHEAD_S * has[name].mb for name in names}
    lent = _lent(of, has, capacity_mb) if policies else dict.fromkeys(names, 0)
    weights, uses = sum(x.weight for x in of.values()), sum(ahead.values())
    return tuple(
        TeamStatus(
            **{field: getattr(of[name], field) for field in FIELDS},
            name=name,
            listed=name in policies,
            used_mb=has[name].mb,
            leases=has[name].leases,
            waiters=has[name].waiters,
            reserved_mb=has[name].reserved_mb,
            borrowed_mb=max(0, has[name].mb - of[name].nominal_mb) if policies else 0,
            lent_mb=lent[name],
            use_mb_s=use[name],
            share=ahead[name] / of[name].weight if of[name].weight else None,
            used_share=ahead[name] / uses if uses else 0.0,
            wanted_share=of[name].weight / weights if weights else 0.0,
        )
        for name in names
    )


def _teams(sums: Mapping[str, PartySums]) -> Iterable[str]:
    return (
        party.removeprefix(TEAM_PARTY)
        for party, x in sums.items()
        if party.startswith(TEAM_PARTY) and (x.leases or x.waiters)
    )


def _lent(
    of: Mapping[str, TeamPolicy], has: Mapping[str, PartySums], capacity_mb: int
) -> dict[str, int]:
    """Return what each team's quota gives to others now."""
    idle = {}
    for name, policy in of.items():
        unused_mb = max(0, policy.nominal_mb - has[name].mb)
        idle[name] = unused_mb if policy.lend_mb is None else min(policy.lend_mb, unused_mb)
    in_no_quota_mb = max(0, capacity_mb - sum(x.nominal_mb for x in of.values()))
    borrowed_mb = sum(max(0, has[name].mb - x.nominal_mb) for name, x in of.items())
    lent_mb, all_idle_mb = max(0, borrowed_mb - in_no_quota_mb), sum(idle.values())
    part = min(1.0, lent_mb / all_idle_mb) if all_idle_mb else 0.0
    return {name: round(mb * part) for name, mb in idle.items()}
