"""Q1 and Q2 as one look at the key space shows them: what teams hold, by what they may.

A limit binds when memory is given, not afterwards: an operator may lower it, another team may take
what is its own, a lost lease may be recovered. So a team's leases are looked at up to the newest
one that was given to it under the policy that stands, in the order of the events: with that one it
was within its limits, and none of those that were there before can have grown. What is above a
limit can so only fall.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.queue_audit import team_line

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
    mb: int
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


def audit_teams(
    client: redis.Redis, keys: Keys, records: Rows, devices: Rows, most_mb: int = 0
) -> None:
    """Assert what the pool says of its teams, and Q1 and Q2.

    `most_mb`: the most that all devices ever held together, where they have become smaller.
    """
    pool: Any = client.hgetall(keys.pool)
    capacity_mb = sum(int(d["total_mb"]) - int(d["system_mb"]) for d in devices.values())
    assert int(pool.get("capacity_mb", 0)) == capacity_mb, "S2: capacity"
    lines: Any = client.hgetall(f"{keys.base}:teams")
    teams = {name: team_line(line) for name, line in lines.items()}
    lends_less = any("lend_mb" in of for of in teams.values())
    assert int(pool.get("teams", 0)) == len(teams), "Q2: how many teams have policies"
    assert int(pool.get("team_lend_limits", 0)) == int(lends_less), "Q1: whether any lends less"
    if not teams:
        return
    events: Any = client.xrange(keys.events)
    holdings, changed = _holdings(records, [entry for _, entry in events])
    for team in {x.team for x in holdings}:
        of = teams.get(team, {})
        _audit_ceilings(team, of, [x for x in holdings if x.team == team], changed)
        _audit_limit(team, teams, holdings, changed, max(capacity_mb, most_mb))


def _holdings(records: Rows, events: list[dict[str, str]]) -> tuple[list[Holding], int]:
    """Return what each token holds or asks, and the place of the last change of policies."""
    found, changed = dict[str, Holding](), -1
    for token, r in records.items():
        if r["state"] not in {"active", "offered", "waiting"}:
            continue
        sizes = (part.rpartition("=")[2] for part in r["devices"].split(",") if part)
        found[token] = Holding(
            token, r.get("team", "default"), sum(map(int, sizes)), r["state"],
            r["request"].split("|"),
        )  # fmt: skip
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
    last, of = max(x.since for x in given), teams.get(team, {})
    nominal_mb = of.get("nominal_mb", 0)
    then = [x for x in holdings if x.since <= last and x.state != "waiting"]
    mine = [x for x in then if x.team == team]
    held_mb = sum(x.mb for x in mine)
    assert held_mb <= nominal_mb + of.get("borrow_mb", NEVER), f"Q2: team {team} has {held_mb} MiB"
    assert len(mine) <= of.get("max_leases", NEVER), f"Q2: team {team} has {len(mine)} leases"
    if held_mb <= nominal_mb or not any("lend_mb" in each for each in teams.values()):
        return
    kept_mb = 0
    for name in {*teams, "default"} - {team}:
        other = teams.get(name, {})
        own_mb = other.get("nominal_mb", 0) - other.get("lend_mb", NEVER)
        kept_mb += max(own_mb, sum(x.mb for x in then if x.team == name))
    assert held_mb + kept_mb <= most_mb, (
        f"Q1: team {team} has {held_mb} MiB, others keep {kept_mb} of {most_mb}"
    )
