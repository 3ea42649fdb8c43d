"""The invariants that one look at the key space can show: S1, S2 and S10 of DESIGN.md.

Everything derived is computed anew from the records and the devices' hashes and compared with what
the scripts keep: sums, placement keys, the agenda, the agents.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import redis
    from agent_sdk.keys import Keys


def audit(client: redis.Redis, keys: Keys) -> None:
    """Assert that the pool's derived state is what its records say."""
    base = keys.base
    uuids: Any = client.zrange(keys.fits, 0, -1)
    devices: dict[str, dict[str, str]] = {u: client.hgetall(keys.device(u)) for u in uuids}
    records = _records(client, base)
    _audit_ledger(client, keys, records, devices)
    _audit_agents(client, keys, records)
    expected = _placement(devices)
    for key in client.scan_iter(f"{base}:*", count=1000):
        kind = key.removeprefix(f"{base}:").partition(":")[0]
        if kind in {"free", "idle", "idlehosts", "fits", "hosts", "models"} and key != keys.hosts:
            actual = dict(client.zrange(key, 0, -1, withscores=True))
            assert actual == expected.pop(key.removeprefix(f"{base}:"), {}), key
    assert not any(expected.values()), f"missing: {expected}"


def _records(client: redis.Redis, base: str) -> dict[str, dict[str, str]]:
    prefix = f"{base}:record:"
    found: Any = client.scan_iter(f"{prefix}*", count=1000)
    return {key.removeprefix(prefix): client.hgetall(key) for key in found}


def held(record: dict[str, str]) -> list[tuple[str, int]]:
    """(device, MiB) of each device in a record."""
    parts = [part.rpartition("=") for part in record["devices"].split(",") if part]
    return [(uuid, int(mb)) for uuid, _, mb in parts]


def _audit_ledger(
    client: redis.Redis,
    keys: Keys,
    records: dict[str, dict[str, str]],
    devices: dict[str, dict[str, str]],
) -> None:
    reserved: dict[str, int] = defaultdict(int)
    counts: dict[str, int] = defaultdict(int)
    for token, record in records.items():
        assert client.zscore(keys.due, token) is not None, f"{token} is on no agenda"
        for uuid, mb in held(record):
            if record["state"] == "active":
                reserved[uuid] += mb
                counts[uuid] += 1
    tokens = {m for m in client.zrange(keys.due, 0, -1) if not m.startswith("host:")}
    assert tokens == set(records), "the agenda and the ledger name different leases"
    for uuid, d in devices.items():
        assert int(d["reserved_mb"]) == reserved[uuid], f"S2: {uuid}"
        assert int(d["leases"]) == counts[uuid], f"S2: leases of {uuid}"
        if d["exclusive"]:
            assert counts[uuid] == 1, f"S1: {d['exclusive']} is not alone on {uuid}"


def _audit_agents(
    client: redis.Redis, keys: Keys, records: dict[str, dict[str, str]]
) -> None:
    sums: dict[str, int] = defaultdict(int)
    for record in records.values():
        if record["state"] == "active":
            sums[record["agent"]] += sum(mb for _, mb in held(record))
            sums[f"{record['agent']}#leases"] += 1
    actual: Any = client.hgetall(keys.agents)
    assert {name: int(value) for name, value in actual.items()} == sums, "S2: agents"


def _placement(devices: dict[str, dict[str, str]]) -> dict[str, dict[str, float]]:
    """Every placement key as the devices' hashes alone give it."""
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for uuid, d in devices.items():
        host, model = d["host"], d["model"]
        capacity = int(d["total_mb"]) - int(d["reserve_mb"])
        used = int(d["reserved_mb"]) + int(d["withheld_mb"]) + int(d["foreign_mb"])
        free = capacity - used
        up = d["state"] == "ok" and d["drained"] != "1" and not d["kept_for"] and free > 0
        for sel in ("*", f"host/{host}", f"model/{model}", f"{host}/{model}"):
            found[f"fits:{sel}"][uuid] = capacity
        found["models"][model] = max(found["models"].get(model, capacity), capacity)
        found[f"hosts:{model}"][host] = found[f"hosts:{model}"].get(host, 0) + 1
        if up and not d["exclusive"]:
            for sel in ("*", f"host/{host}", f"model/{model}"):
                found[f"free:{sel}"][uuid] = free
        alone = int(d["leases"]) == 0 and int(d["withheld_mb"]) == 0
        if up and alone and int(d["foreign_mb"]) <= 512:
            found[f"idle:{host}/{model}"][uuid] = free
            found[f"idlehosts:{model}"][host] = found[f"idlehosts:{model}"].get(host, 0) + 1
    return found
