"""The invariants that one look at the key space can show: S1, S2, S5, S10, S11 and Q1 to Q3.

Everything derived is computed anew from the records and the devices' hashes and compared with what
the scripts keep: sums, placement keys, the deadlines, the agents, the lease keys, the tombstones.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from agent_sdk.keys import TOMBSTONE_SHARDS, shard_of
from agent_sdk.state import tombstones
from tests.queue_audit import after, audit_queue, zsets
from tests.team_audit import audit_teams, sums_by_model
from tests.usage_audit import audit_usage

if TYPE_CHECKING:
    from collections.abc import Iterable

    import redis

    from agent_sdk.keys import Keys

Rows = dict[str, dict[str, str]]

TOMBSTONE_MS = 900_000
MOST_DRAINS = 1000
MOST_TOMBSTONES = 96

PLACEMENT = {"free", "idle", "idlehosts", "fits", "hosts", "models"}
"""First parts of the names of the keys by which devices are found."""

TAKEN = {"active", "offered"}
"""States in which devices are promised to a token."""


def audit(client: redis.Redis, keys: Keys, most_mb: int = 0) -> None:
    """Assert that the pool's derived state is what its records say.

    `most_mb`: the most that its devices ever held together, where they have become smaller.
    """
    base = keys.base
    names = list(client.scan_iter(f"{base}:*", count=5000))
    uuids: Any = client.zrange(keys.fits, 0, -1)
    devices = _hashes(client, f"{base}:device:", uuids)
    records = _hashes(client, f"{base}:record:", after(f"{base}:record:", names))
    _audit_registry(client, keys, names, devices)
    _audit_deadlines(client, keys, records)
    _audit_ledger(records, devices)
    _audit_withheld(records, devices)
    _audit_holders(client, keys, records, devices)
    _audit_agents(client, keys, records, devices)
    _audit_lease_keys(client, base, names, records)
    _audit_tombstones(client, base, names, records)
    audit_queue(client, keys, names, records, devices)
    audit_teams(client, keys, records, devices, most_mb)
    audit_usage(client, keys, names, records)
    expected = _placement(devices)
    others = after(f"{base}:", [name for name in names if name != keys.hosts])
    placed = [name for name in others if name.partition(":")[0] in PLACEMENT]
    for name, members in zsets(client, f"{base}:", placed).items():
        assert dict(members) == expected.pop(name, {}), name
    assert not any(expected.values()), f"missing: {expected}"


def _each(client: redis.Redis, commands: Iterable[tuple[str, ...]]) -> list[Any]:
    """The answers to many commands, some at a time."""
    todo, answers = list(commands), []
    for start in range(0, len(todo), 5000):
        pipe = client.pipeline(transaction=False)
        for command in todo[start : start + 5000]:
            pipe.execute_command(*command)
        answers += pipe.execute()
    return answers


def _hashes(client: redis.Redis, prefix: str, names: list[str]) -> Rows:
    rows = _each(client, (("HGETALL", prefix + name) for name in names))
    return dict(zip(names, rows, strict=True))


def held(record: dict[str, str]) -> list[tuple[str, int]]:
    """(device, MiB) of each device in a record."""
    parts = [part.rpartition("=") for part in record["devices"].split(",") if part]
    return [(uuid, int(mb)) for uuid, _, mb in parts]


def _audit_registry(client: redis.Redis, keys: Keys, names: list[str], devices: Rows) -> None:
    """Check that what is registered has all of its keys, and what is not has none."""
    base = keys.base
    assert set(after(f"{base}:device:", names)) == set(devices), "a device without an index"
    hosts = set(_members(client, keys.hosts))
    assert set(after(f"{base}:host:", names)) == hosts, "a host without an index"
    of: dict[str, set[str]] = defaultdict(set)
    for uuid, d in devices.items():
        of[d["host"]].add(uuid)
    assert of.keys() <= hosts, f"devices of no host: {of.keys() - hosts}"
    for host in after(f"{base}:devices:", names):
        assert set(_members(client, keys.devices(host))) == of[host], f"devices of {host}"
    assert set(after(f"{base}:holders:", names)) <= set(devices), "holders of no device"
    drains: Any = client.zrange(f"{base}:drains", 0, -1)
    known = {f"device:{uuid}" for uuid in devices} | {f"host:{host}" for host in hosts}
    assert not known & set(drains), "drained, and forgotten"
    assert len(drains) <= MOST_DRAINS, "drains are remembered without a bound"


def _members(client: redis.Redis, key: str) -> list[str]:
    found: Any = client.smembers(key)
    return sorted(found)


def _audit_deadlines(client: redis.Redis, keys: Keys, records: Rows) -> None:
    with client.pipeline(transaction=True) as both:  # at one moment: hosts report all the time
        both.zrange(keys.deadlines, 0, -1, withscores=True)
        both.hget(keys.pool, "next_deadline_ms")
        found, noted = both.execute()
    deadlines = dict(found)
    assert not deadlines or (noted and int(noted) <= min(deadlines.values())), (
        "L2: the first is not noted"
    )
    tokens = {member for member in deadlines if not member.startswith("host:")}
    assert tokens == set(records), "the deadlines and the ledger name different leases"
    for token, record in records.items():
        assert record["state"] in {"waiting", "offered", "active", "cooling"}, token
        if record["state"] == "active":
            assert deadlines[token] == int(record["expires_at_ms"]), f"{token} has another deadline"


def _audit_ledger(records: Rows, devices: Rows) -> None:
    leased: dict[str, int] = defaultdict(int)
    counts: dict[str, int] = defaultdict(int)
    for record in records.values():
        for uuid, mb in held(record):
            if record["state"] in TAKEN:
                leased[uuid] += mb
                counts[uuid] += 1
    for uuid, d in devices.items():
        assert int(d["leased_mb"]) == leased[uuid], f"S2: {uuid}"
        assert int(d["leases"]) == counts[uuid], f"S2: leases of {uuid}"
        if d["exclusive"]:
            assert counts[uuid] == 1, f"S1: {d['exclusive']} is not alone on {uuid}"
            assert uuid in dict(held(records[d["exclusive"]])), f"S1: {uuid} is held by nobody"


def _audit_withheld(records: Rows, devices: Rows) -> None:
    """Check that withheld memory is that of cooling leases, less the part given back early."""
    withheld: dict[str, int] = defaultdict(int)
    for record in records.values():
        for uuid, mb in held(record):
            cooled_at_ms = int(devices[uuid].get("cooled_at_ms", 0))
            if record["state"] == "cooling" and int(record["expires_at_ms"]) > cooled_at_ms:
                withheld[uuid] += mb
    for uuid, d in devices.items():
        assert int(d["withheld_mb"]) == withheld[uuid], f"S2: withheld on {uuid}"


def _audit_holders(client: redis.Redis, keys: Keys, records: Rows, devices: Rows) -> None:
    """Whoever has a device, or cools on it, is among its holders, and nobody else."""
    expected: dict[str, set[str]] = defaultdict(set)
    for token, record in records.items():
        if record["state"] in TAKEN | {"cooling"}:
            for uuid, _ in held(record):
                expected[uuid].add(token)
    found = _each(client, (("SMEMBERS", keys.holders(uuid)) for uuid in devices))
    for uuid, tokens in zip(devices, found, strict=True):
        assert set(tokens) == expected[uuid], f"S2: holders of {uuid}"


def _audit_agents(client: redis.Redis, keys: Keys, records: Rows, devices: Rows) -> None:
    lines: Any = client.hgetall(f"{keys.base}:teams")
    sums: dict[str, int] = defaultdict(int, sums_by_model(lines, records, devices))
    for record in records.values():
        for party in parties(record):
            if record["state"] in TAKEN:
                sums[party] += sum(mb for _, mb in held(record))
                sums[f"{party}#leases"] += 1
            elif record["state"] == "waiting":
                sums[f"{party}#waiters"] += 1
                if reserved_mb := int(record.get("reservation_mb", 0)):
                    sums[f"{party}#reserved"] += reserved_mb
    actual: Any = client.hgetall(keys.agents)
    uses = {name: actual.pop(name) for name in list(actual) if name.endswith("#use")}
    assert {name: int(value) for name, value in actual.items()} == sums, "S2: agents"
    last_ms = int(str(client.hget(keys.pool, "last_ms") or 0))
    for name, said in uses.items():
        use, _, at_ms = said.partition("@")
        assert name.startswith("team "), name
        assert float(use) >= 0, f"Q2: {name} is {use}"
        assert int(at_ms) <= last_ms, f"Q2: {name} is of the future"


def parties(record: dict[str, str]) -> list[str]:
    """List the parties that a lease counts against: its agent, its API key, its team."""
    key = [f"key {record['owner']}"] if record.get("owner") else []
    return [record["agent"], *key, f"team {record.get('team', 'default')}"]


def _audit_lease_keys(client: redis.Redis, base: str, names: list[str], records: Rows) -> None:
    """The index may lag the key, never lead it; of several devices, all keys live or none."""
    live = [(token, r) for token, r in records.items() if r["state"] == "active" and r["devices"]]
    theirs = [[f"{base}:lease:{uuid}:{token}" for uuid, _ in held(r)] for token, r in live]
    known = {key: r["fence"] for (_, r), keys in zip(live, theirs, strict=True) for key in keys}
    stray = {name for name in names if name.startswith(f"{base}:lease:")} - known.keys()
    assert not any(_each(client, (("GET", key) for key in stray))), f"S4: no lease has {stray}"
    values = _each(client, (("MGET", *keys) for keys in theirs))
    for (token, record), found in zip(live, values, strict=True):
        assert set(found) in ({record["fence"]}, {None}), f"S5: {token} has {found}"


def _audit_tombstones(client: redis.Redis, base: str, names: list[str], records: Rows) -> None:
    """Check that no living lease has one, and that their memory has a bound and an end."""
    # The version before kept `done:<token>`, which its scripts may have left here.
    shards = [each for each in after(f"{base}:done:", names) if each.isdigit()]
    lists = _each(client, (("GET", f"{base}:done:{shard}") for shard in shards))
    found = dict(zip(shards, (each or "" for each in lists), strict=True))
    now: Any = client.hget(f"{base}:pool", "last_ms") or 0
    for token in records:
        over = tombstones.ended(found.get(str(shard_of(token)), ""), token)
        past = over is None or over.at_ms + TOMBSTONE_MS <= int(now)
        assert past, f"S4: {token} is over and alive at once"
    for shard, entries in found.items():
        assert int(shard) < TOMBSTONE_SHARDS, shard
        assert len(entries) % tombstones.SIZE == 0, f"a broken tombstone in {shard}"
        assert len(entries) <= MOST_TOMBSTONES * tombstones.SIZE, "tombstones without a bound"
    for left_ms in _each(client, (("PTTL", f"{base}:done:{shard}") for shard in shards)):
        assert left_ms == -2 or 0 < left_ms <= TOMBSTONE_MS, "L5: a tombstone for ever"


def _placement(devices: Rows) -> dict[str, dict[str, float]]:
    """Every placement key as the devices' hashes alone give it."""
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for uuid, d in devices.items():
        host, model = d["host"], d["model"]
        capacity = int(d["total_mb"]) - int(d["system_mb"])
        used = int(d["leased_mb"]) + int(d["withheld_mb"]) + int(d["unleased_mb"])
        free = capacity - used
        up = d["state"] == "ok" and d["drained"] != "1" and not d["reserved_for"] and free > 0
        for sel in ("*", f"host/{host}", f"model/{model}", f"host/{host}/{model}"):
            found[f"fits:{sel}"][uuid] = capacity
        found["models"][model] = max(found["models"].get(model, capacity), capacity)
        found[f"hosts:{model}"][host] = found[f"hosts:{model}"].get(host, 0) + 1
        alone = int(d["leases"]) == 0 and int(d["withheld_mb"]) == 0
        if up and not d["exclusive"] and (alone or not d.get("one_lease")):
            for sel in ("*", f"host/{host}", f"model/{model}"):
                found[f"free:{sel}"][uuid] = free
        if up and alone and int(d["unleased_mb"]) <= int(d.get("idle_unleased_mb") or 512):
            found[f"idle:{host}/{model}"][uuid] = free
            found[f"idlehosts:{model}"][host] = found[f"idlehosts:{model}"].get(host, 0) + 1
    return found
