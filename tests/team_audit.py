"""Q1 and Q2 as one look at the key space shows them: what teams hold, by what they may.

A limit binds when memory is given, not afterwards: an operator may lower it, another team may take
what is its own, a lost lease may be recovered. So a team's leases are looked at up to the newest
one that was given to it under the policy that stands, in the order of the events: with that one it
was within its limits, and none of those that were there before can have grown. What is above a
limit can so only fall.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.queue_audit import models_of, quota_word, team_line

if TYPE_CHECKING:
    import redis

    from agent_sdk.keys import Keys

Rows = dict[str, dict[str, str]]

NEVER = 10**15

GIVEN = {"granted", "offered"}
"""Events by which a token gets devices within the limits of its team."""


@dataclass(slots=True)
class Holding:
    """A token that holds something, or waits, with the places of its events in the stream.

    Attributes:
        asked: of its first event, a request that was looked at by the team's limits.
        since: when it got what it holds; -1: nobody knows.
        within: it was given within its team's limits, not recovered.
        came_back: an offer was withdrawn from it, so that it waits again.
    """

    token: str
    team: str
    parts: tuple[tuple[str, int], ...]
    state: str
    request: list[str]
    asked: int = -1
    since: int = -1
    within: bool = False
    came_back: bool = False
    extended: bool = False
    recovered: bool = False
    hold_ms: int = 0
    last: str = field(default="", repr=False)

    @property
    def mb(self) -> int:
        """MiB that it holds."""
        return sum(mb for _, mb in self.parts)

    def see(self, place: int, event: str) -> None:
        """Take the next event of this token."""
        if event in {"waiting", "granted"} and self.asked < 0:
            self.asked = place
        if event in GIVEN and not (event == "granted" and self.last == "offered"):
            self.since, self.within = place, True
        elif event == "recovered":
            self.since, self.within, self.recovered = place, False, True
        self.came_back = self.came_back or event == "withdrawn"
        self.extended = self.extended or event == "extended"
        self.last = event if event in {*GIVEN, "withdrawn"} else self.last


def sums_by_model(lines: dict[str, str], records: Rows, devices: Rows) -> dict[str, int]:
    """Sums of what teams hold, and what is reserved for them, of the models that they name."""
    named = {name: models_of(team_line(line)) for name, line in lines.items()}
    found: dict[str, int] = defaultdict(int)
    for record in records.values():
        team = record.get("team", "default")
        if record["state"] in {"active", "offered"}:
            for uuid, mb in _parts(record):
                if (model := devices[uuid]["model"]) in named.get(team, ()):
                    found[f"team {team}#model {model}"] += mb
        first = record.get("reserved", "").partition(",")[0]
        if first and (model := devices[first]["model"]) in named.get(team, ()):
            found[f"team {team}#reserved {model}"] += int(record["reservation_mb"])
    return {name: mb for name, mb in found.items() if mb}


def _parts(record: dict[str, str]) -> list[tuple[str, int]]:
    parts = (part.rpartition("=") for part in record["devices"].split(",") if part)
    return [(uuid, int(mb)) for uuid, _, mb in parts]


def audit_teams(
    client: redis.Redis, keys: Keys, records: Rows, devices: Rows, most_mb: int = 0
) -> None:
    """Assert what the pool says of its teams, and Q1 and Q2.

    `most_mb`: the most that all devices ever held together, where they have become smaller.
    """
    pool: Any = client.hgetall(keys.pool)
    whole = [d for d in devices.values() if d.get("divided") != "1"]  # else its parts count
    capacity_mb = sum(int(d["total_mb"]) - int(d["system_mb"]) for d in whole)
    assert int(pool.get("capacity_mb", 0)) == capacity_mb, "S2: capacity"
    lines: Any = client.hgetall(f"{keys.base}:teams")
    teams = {name: team_line(line) for name, line in lines.items()}
    lends_less = any("lend_mb" in of for of in teams.values())
    assert int(pool.get("teams", 0)) == len(teams), "Q2: how many teams have policies"
    assert int(pool.get("team_lend_limits", 0)) == int(lends_less), "Q1: whether any lends less"
    by_model = any(map(models_of, teams.values()))
    assert (pool.get("schema") == "4+models") == by_model, "Q2: quotas by model"
    if not teams:
        return
    events: Any = client.xrange(keys.events)
    holdings, changed = _holdings(records, devices, [entry for _, entry in events])
    for team in {x.team for x in holdings}:
        of = teams.get(team, {})
        _audit_ceilings(team, of, [x for x in holdings if x.team == team], changed)
        _audit_limit(team, teams, holdings, changed, max(capacity_mb, most_mb))


def _holdings(
    records: Rows, devices: Rows, events: list[dict[str, str]]
) -> tuple[list[Holding], int]:
    """Return what each token holds or asks, and the place of the last change of policies."""
    found, changed = dict[str, Holding](), -1
    for token, r in records.items():
        if r["state"] not in {"active", "offered", "waiting"}:
            continue
        parts = tuple((devices[uuid]["model"], mb) for uuid, mb in _parts(r))
        found[token] = Holding(
            token, r.get("team", "default"), parts, r["state"], r["request"].split("|")
        )
        if "hold_until_ms" in r and r["state"] == "active":
            found[token].hold_ms = int(r["hold_until_ms"]) - int(r["granted_at_ms"])
    for place, entry in enumerate(events):
        if entry["event"] == "teams":
            changed = place
        elif holding := found.get(entry.get("token", "")):
            holding.see(place, entry["event"])
    return list(found.values()), changed


def _audit_ceilings(team: str, of: dict[str, int], mine: list[Holding], changed: int) -> None:
    """Q2: requests that came under this policy are below the ceilings of their team."""
    most_ttl_ms = of.get("max_ttl_s", 0) * 1000
    most_hold_ms = of.get("max_hold_s", 0) * 1000
    for x in mine:
        if x.asked <= changed or x.recovered:
            continue
        _, _, _, ttl_ms, _, priority, *_ = x.request
        assert int(priority) <= of.get("max_priority", 9), f"Q2: priority of {x.token}"
        assert not most_ttl_ms or 0 < int(ttl_ms) <= most_ttl_ms, f"Q2: ttl of {x.token}"
        held_on = x.state != "active" or x.extended or 0 < x.hold_ms <= most_hold_ms
        assert not most_hold_ms or held_on, f"Q2: {x.token} is held for {x.hold_ms} ms"
    joined = [x for x in mine if x.state == "waiting" and not x.came_back]
    if any(x.asked > changed for x in joined):
        assert len(joined) <= of.get("max_waiters", NEVER), f"Q2: waiters of team {team}"


def _audit_limit(
    team: str, teams: dict[str, dict[str, int]], holdings: list[Holding], changed: int, most_mb: int
) -> None:
    """Q1, Q2: with what was given last, the team was within its quota, or others lent the rest."""
    given = [x for x in holdings if x.team == team and x.mb and x.within and x.since > changed]
    if not given:
        return
    newest, of = max(given, key=lambda x: x.since), teams.get(team, {})
    then = [x for x in holdings if x.since <= newest.since and x.state != "waiting"]
    mine, borrows = [x for x in then if x.team == team], False
    for model in {model for model, _ in newest.parts}:
        nominal_mb = of.get(quota_word(of, "nominal_mb", model), 0)
        held_mb = _of_quota(of, mine, model)
        most_of_it = nominal_mb + of.get(quota_word(of, "borrow_mb", model), NEVER)
        assert held_mb <= most_of_it, f"Q2: team {team} has {held_mb} MiB{_named(of, model)}"
        borrows = borrows or held_mb > nominal_mb
    assert len(mine) <= of.get("max_leases", NEVER), f"Q2: team {team} has {len(mine)} leases"
    if not borrows or not any("lend_mb" in each for each in teams.values()):
        return
    held_mb, kept_mb = sum(x.mb for x in mine), 0
    for name in {*teams, "default"} - {team}:
        other = teams.get(name, {})
        own_mb = other.get("nominal_mb", 0) - other.get("lend_mb", NEVER)
        theirs = [x for x in then if x.team == name]
        all_mb, rest_mb = sum(x.mb for x in theirs), _of_quota(other, theirs, "")
        kept_mb += all_mb - rest_mb + max(own_mb, rest_mb)
    assert held_mb + kept_mb <= most_mb, (
        f"Q1: team {team} has {held_mb} MiB, others keep {kept_mb} of {most_mb}"
    )


def _of_quota(of: dict[str, int], holdings: list[Holding], model: str) -> int:
    """MiB that count against a team's quota of a model: its own, or the pool-wide one."""
    word = quota_word(of, "nominal_mb", model)
    parts = (part for x in holdings for part in x.parts)
    return sum(mb for each, mb in parts if quota_word(of, "nominal_mb", each) == word)


def _named(of: dict[str, int], model: str) -> str:
    return f" of {model}" if model in models_of(of) else ""
