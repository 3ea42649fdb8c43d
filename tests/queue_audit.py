"""The queue's invariants as one look at the key space shows them: S2 for waiters, and S11.

A second, plain implementation of who fits where: it looks at the devices' hashes alone.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import redis

    from agent_sdk.keys import Keys

Rows = dict[str, dict[str, str]]

ORDINARY = {
    "safe_mode": "0", "closed_until_ms": "0", "allow_fractional_shares": "1", "policy_version": "1",
    "max_memory_per_agent_mb": "1048576", "max_leases_per_agent": "256",
}  # fmt: skip
"""A policy that nobody changed: after a change S11 holds from each waiter's next poll."""

RESERVATION = {
    "reservation_mb", "reservation_since_ms", "reservation_until_ms", "reservation_fence",
}  # fmt: skip
"""Fields of a record as long as devices are reserved for it."""


def audit_queue(
    client: redis.Redis, keys: Keys, names: list[str], records: Rows, devices: Rows
) -> None:
    """Assert that the queue is what the waiters' records say, and S11."""
    base = keys.base
    waiters = {token: r for token, r in records.items() if r["state"] == "waiting"}
    pool: Any = client.hgetall(keys.pool)
    assert int(pool.get("waiting", 0)) == len(waiters), "S2: how many wait"
    queues = zsets(client, f"{base}:queue:", after(f"{base}:queue:", names))
    capped = zsets(client, f"{base}:capped:", after(f"{base}:capped:", names))
    places: dict[str, list[tuple[str, str, float]]] = defaultdict(list)
    for kind, rows in (("queue", queues), ("capped", capped)):
        for name, members in rows.items():
            for token, rank in members:
                places[token].append((kind, name, rank))
    assert places.keys() == waiters.keys(), "the queue and the ledger name different waiters"
    for token, r in waiters.items():
        at = {"queue": r["queue_id"], "capped": r.get("capped")}
        ((kind, name, rank),) = places[token]
        assert name == at[kind], f"{token} stands in {name}"
        assert rank == int(r["rank"]), f"{token} has another rank"
        assert ("capped" in r) == (kind == "capped"), f"{token} says it is in {r.get('capped')}"
    heads = {queue_id: members[0] for queue_id, members in queues.items()}
    assert _queues(client, base, names) == {queue_id: rank for queue_id, (_, rank) in heads.items()}
    limited: Any = client.smembers(f"{base}:limited")
    assert limited <= heads.keys(), f"no head is in {limited - heads.keys()}"
    backfill: Any = client.zrange(f"{base}:backfill", 0, -1, withscores=True)
    _audit_kept(waiters, devices, backfill)
    _audit_notices(waiters, records, dict(backfill), client.hgetall(f"{base}:preempting"))
    worklist: Any = client.zrange(f"{base}:worklist", 0, -1)
    assert waiters or not worklist, "nobody waits, yet there is a worklist"
    if all(pool.get(name) == value for name, value in ORDINARY.items()):
        sums: Any = client.hgetall(keys.agents)
        teams: Any = client.hgetall(f"{base}:teams")
        open_devices = {u: d for u, d in devices.items() if f"device:{u}" not in worklist}
        for queue_id, (token, _) in heads.items():
            r = waiters[token]

            def room(model: str, r: dict[str, str] = r) -> int:
                return room_of(r, sums, pool, teams, model)

            free = f"queue:{queue_id}" in worklist or not fits(token, r, open_devices, room)
            assert free, f"S11: {token} waits, and fits"


def team_line(line: str) -> dict[str, int]:
    """Numbers of a team's policy, as `teams` has them."""
    words = (word.partition("=") for word in line.split())
    return {name: int(number) for name, _, number in words}


def models_of(of: dict[str, int]) -> set[str]:
    """Models that a team's policy has quotas of."""
    return {name.partition("@")[2].replace("+", " ") for name in of if "@" in name}


def quota_word(of: dict[str, int], name: str, model: str) -> str:
    """Return the word of a quota in a policy: of a model that it names, else the pool-wide one."""
    return f"{name}@{model.replace(' ', '+')}" if model in models_of(of) else name


def room_of(
    record: dict[str, str],
    sums: dict[str, str],
    pool: dict[str, str],
    teams: dict[str, str],
    model: str,
) -> int:
    """MiB that the caps of its parties leave a waiter on devices of a model."""
    cap_mb, own_mb = int(pool["max_memory_per_agent_mb"]), int(record.get("reservation_mb", 0))

    def left(party: str, most_mb: int) -> int:
        used = int(sums.get(party, 0)) + int(sums.get(f"{party}#reserved", 0))
        return most_mb - used + own_mb

    rooms = [left(record["agent"], cap_mb)]
    if record.get("owner"):
        rooms.append(left(f"key {record['owner']}", cap_mb))
    if teams:
        team = record.get("team", "default")
        of = team_line(teams.get(team, ""))
        borrow, nominal = (quota_word(of, x, model) for x in ("borrow_mb", "nominal_mb"))
        if borrow in of:
            most_mb, party = of.get(nominal, 0) + of[borrow], f"team {team}"
            if model in models_of(of):
                held_mb = int(sums.get(f"{party}#model {model}", 0))
                rooms.append(most_mb - held_mb - int(sums.get(f"{party}#reserved {model}", 0)))
            else:
                named = [int(sums.get(f"{party}#{kind} {x}", 0))
                         for x in models_of(of) for kind in ("model", "reserved")]  # fmt: skip
                rooms.append(left(party, most_mb + sum(named)))
    return min(rooms)


def zsets(
    client: redis.Redis, prefix: str, names: Iterable[str]
) -> dict[str, list[tuple[str, float]]]:
    """Return members and scores of the sorted sets of these names, all in one exchange."""
    pipe = client.pipeline(transaction=False)
    for name in names:
        pipe.zrange(prefix + name, 0, -1, withscores=True)
    return dict(zip(names, pipe.execute(), strict=True))


def after(prefix: str, names: list[str]) -> list[str]:
    """Return the rest of the names that begin so."""
    return [name.removeprefix(prefix) for name in names if name.startswith(prefix)]


def _queues(client: redis.Redis, base: str, names: list[str]) -> dict[str, float]:
    """Every queue that is listed, below the selector that it belongs to, and its head's rank."""
    found = {}
    prefix = f"{base}:queues:"
    for selector, members in zsets(client, prefix, after(prefix, names)).items():
        for queue_id, rank in members:
            assert "/".join(queue_id.split("/")[:2]) == selector
            found[queue_id] = rank
    return found


def _audit_kept(waiters: Rows, devices: Rows, backfill: list[tuple[str, float]]) -> None:
    kept = {uuid: d["reserved_for"] for uuid, d in devices.items() if d["reserved_for"]}
    for uuid, token in kept.items():
        assert uuid in waiters[token]["reserved"].split(","), f"{uuid} is kept for {token}"
        assert devices[uuid]["state"] == "ok", f"{uuid} is kept, and {devices[uuid]['state']}"
        assert devices[uuid]["drained"] != "1", f"{uuid} is kept, and drained"
    for token, r in waiters.items():
        for uuid in filter(None, r.get("reserved", "").split(",")):
            assert kept.get(uuid) == token, f"{token} keeps {uuid} no more"
        terms = {name for name in r if name in RESERVATION}
        assert terms == (RESERVATION if r.get("reserved") else set()), f"{token} has {terms}"
    assert {uuid for uuid, _ in backfill} <= kept.keys(), "what is not reserved may be borrowed"


def _audit_notices(
    waiters: Rows, records: Rows, backfill: dict[str, float], preempting: dict[str, str]
) -> None:
    """Q3: a notice names a living waiter, which names the lease back and has devices for itself."""
    noticed = {t: r for t, r in records.items() if "preempt_at_ms" in r and r["state"] == "active"}
    for token, r in noticed.items():
        owner = waiters.get(r["preempt_for"])
        assert owner, f"Q3: {token} is to end for {r['preempt_for']}, which does not wait"
        assert token in owner.get("preempts", "").split(","), f"Q3: {token} has a stale notice"
        team, _, mb = preempting[token].partition(" ")
        sizes = (part.rpartition("=")[2] for part in r["devices"].split(","))
        assert (team, int(mb)) == (r.get("team", "default"), sum(map(int, sizes))), f"Q3: {token}"
    for token, r in waiters.items():
        if names := r.get("preempts"):
            kept = r.get("reserved", "").split(",")
            assert kept != [""], f"Q3: leases end for {token}, and no device is reserved for it"
            assert not backfill.keys() & set(kept), f"Q3: what comes free for {token} is lent"
            mine = {name for name in names.split(",") if name in noticed}
            assert all(noticed[name]["preempt_for"] == token for name in mine), f"Q3: {token}"
    asked = {name for r in waiters.values() for name in r.get("preempts", "").split(",")}
    for token, line in preempting.items():
        known = (
            waiters.get(token, {}).get("preempts") if line.startswith("for ") else token in asked
        )
        assert known, f"L5: an entry of {token}, for which nothing waits"


def fits(token: str, record: dict[str, str], devices: Rows, room: Callable[[str], int]) -> bool:
    """Return whether a waiter could be granted its request on these devices now.

    `room`: what its caps leave it, by the model of the devices.
    """
    _, count, exclusive, _, _, _, host, model, *_ = record["request"].split("|")
    memory_mb, wanted = int(record["memory_mb"]), int(count)
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for d in devices.values():
        used = int(d["leased_mb"]) + int(d["withheld_mb"]) + int(d["unleased_mb"])
        free = int(d["total_mb"]) - int(d["system_mb"]) - used
        up = d["state"] == "ok" and d["drained"] != "1" and d["reserved_for"] in {"", token}
        suits = host in {"*", d["host"]} and model in {"*", d["model"]}
        if not (up and suits and free > 0 and free >= memory_mb):
            continue
        unheld = d["leases"] == "0" and d["withheld_mb"] == "0"
        if exclusive == "0" and wanted == 1:
            may = not d["exclusive"] and (unheld or not d.get("one_lease"))
            if may and memory_mb <= room(d["model"]):
                return True
        elif unheld and int(d["unleased_mb"]) <= int(d.get("idle_unleased_mb") or 512):
            groups[d["host"], d["model"]].append(free)
    return any(
        len(group) >= wanted and sum(sorted(group)[:wanted]) <= room(model)
        for (_, model), group in groups.items()
    )
