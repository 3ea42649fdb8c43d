"""Divided GPUs: their parts are leased, one at a time, and counted once."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from redis import Redis

from tests.api.brokers import eventually
from tests.hardware.machines import HERE

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.hardware.machines import Reported

GIB = 1024**3


def parts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["parent"]]


def used_by(ran: Any) -> str:
    """Return the device that `run` gave its command."""
    assert ran.returncode == 0, ran.stderr
    found: str = ran.stdout.strip()
    return found


def test_parts_of_a_divided_gpu_are_leased_through_nvidia_smi(
    reported: Callable[..., Reported],
) -> None:
    """The default source sees them too: a lease has one, and never the divided GPU itself."""
    machine = reported("a100_mig_smi")
    whole, first, second = machine.until(lambda rows: len(rows) == 3)
    assert (whole["state"], whole["memory_free_mb"]) == ("mig", 0)
    assert whole["reason"] == "This GPU is divided: its MIG devices are leased in its place"
    assert [(p["index"], p["memory_total_mb"], p["state"]) for p in (first, second)] == [
        (100, 19968, "ok"),
        (101, 19968, "ok"),
    ]
    assert {p["name"] for p in (first, second)} == {"NVIDIA A100-SXM4-40GB MIG 3g.20gb"}
    ask = ("run", "--wait", "0", "--exclusive", "--", "sh", "-c", "echo $CUDA_VISIBLE_DEVICES")
    assert used_by(machine.command(*ask)) == second["uuid"], "the first one has a process on it"
    refused = machine.command(
        "run", "--wait", "0", "--memory", "18.5GiB", "--model", second["name"], "--", "true"
    )
    assert refused.returncode == 0, refused.stderr


def test_two_parts_are_never_granted_together_and_explain_says_so(
    reported: Callable[..., Reported],
) -> None:
    """A CUDA process can use one part alone: grant, explain and run agree."""
    machine = reported("h100_mig")
    [named] = {p["name"] for p in parts(machine.until(lambda rows: len(rows) == 5))}
    for more in ((), ("--model", named)):
        refused = machine.command("run", "--gpus", "2", "--wait", "0", *more, "--", "true")
        assert refused.returncode != 0
        assert not more or "parts of a divided GPU are not granted together" in refused.stderr
        ask = ("explain", "--agent", "me", "--gpus", "2", "--memory", "1GiB", *more)
        told = machine.command(*ask).stdout
        assert not told.startswith("it fits now"), told
        assert "a program can use one such part" in told, told
    machine.broker.release(machine.broker.granted(min_memory_mb=15 * 1024, model=named)["token"])


def test_compute_instances_that_share_one_memory_are_leased_once(
    reported: Callable[..., Reported],
) -> None:
    """Each is told all of their GPU instance's memory: the largest is leased in place of both."""
    machine = reported("h100_mig")
    machine.until(lambda rows: len(rows) == 5)
    machine.words("count=1", "mig=0/40448+40448", "instances=0/2")
    first, second, *_ = parts(machine.until(lambda rows: parts(rows)[1]["state"] == "mig"))
    assert (first["state"], second["memory_free_mb"]) == ("ok", 0)
    assert f"shares its memory with {first['uuid']}" in second["reason"]
    machine.words("count=1", "mig=0/20096+20096")
    machine.until(lambda rows: [p["state"] for p in parts(rows)[:2]] == ["ok", "ok"])


def test_compute_instances_are_told_apart_from_parts_with_memory_of_their_own(
    reported: Callable[..., Reported],
) -> None:
    """1c.3g.20gb and 2c.3g.20gb are one half of the GPU, 3g.20gb beside them the other one."""
    machine = reported("a100_mig_smi")
    [gpu] = json.loads((HERE / "a100_mig_smi" / "smi.json").read_text())["gpus"]
    profiles = ("1c.3g.20gb", "2c.3g.20gb", "3g.20gb")
    for since, instances in (("a", (1, 1, 2)), ("b", ())):  # by its log, and by their names
        uuids = [f"MIG-{since}{n}" for n in range(3)]
        mig = [
            {"profile": profile, "uuid": uuid, "total": 19968, "used": 13}
            for profile, uuid in zip(profiles, uuids, strict=True)
        ]
        for part, instance in zip(mig, instances, strict=False):
            part["instance"] = instance
        machine.smi(gpus=[gpu | {"mig": mig}], apps=[])
        rows = machine.until(lambda rows, now=uuids[2]: now in {row["uuid"] for row in rows})
        states = {row["uuid"]: row["state"] for row in rows}
        assert [states[uuid] for uuid in uuids] == ["mig", "ok", "ok"]


def test_divided_gpu_counts_once_in_totals(reported: Callable[..., Reported]) -> None:
    """Sums of memory have the parts, or the whole, and not both."""
    machine = reported("h100_mig")
    rows = machine.until(lambda rows: len(rows) == 5)
    total_mb = sum(row["memory_total_mb"] for row in rows if row["state"] != "mig")
    said = machine.command("status").stdout.splitlines()[0]
    assert "1 host, 2 GPUs, 3 parts, 0 leases" in said
    assert f"free of {total_mb / 1024:.1f} GiB" in said
    metrics = machine.broker.metrics()
    sums = [v for name, v in metrics.items() if "device_memory_total_bytes" in name]
    assert sum(sums) == total_mb * 1024 * 1024
    assert "WRONG" not in machine.command("doctor").stdout


def test_model_is_asked_for_by_the_name_that_status_shows(
    reported: Callable[..., Reported],
) -> None:
    """Long names of parts keep their profile, and two profiles are two models."""
    machine = reported("mig_long_names")
    one, _, other = parts(machine.until(lambda rows: len(rows) == 4))
    machine.words(
        "count=1",
        "mig=0/24192",
        "name=0/NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition",
        "partname=0/NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition MIG 1g.24gb",
    )
    plain = parts(machine.until(lambda rows: len(parts(rows)) == 1 and "+" not in rows[1]["name"]))
    assert one["name"] == other["name"] != plain[0]["name"]
    assert one["model"] != plain[0]["model"]
    ask = ("run", "--wait", "0", "--memory", "1GiB", "--model", plain[0]["name"], "--", "sh", "-c")
    ran = machine.command(*ask, "echo $CUDA_VISIBLE_DEVICES")
    assert used_by(ran) == plain[0]["uuid"]
    machine.broker.granted(min_memory_mb=1024, model=plain[0]["name"])
    lost = machine.command("run", "--wait", "0", "--model", one["name"], "--", "true")
    assert "model" in lost.stderr, "the other profile is not there any more"


def test_parts_that_are_gone_are_forgotten(reported: Callable[..., Reported]) -> None:
    """A GPU made whole again has no lost parts left, once the leases on them are over."""
    machine = reported("mig_taken_apart")
    machine.until(lambda rows: len(rows) == 3)
    lease = machine.broker.granted(min_memory_mb=1000)
    machine.later()
    still = machine.until(lambda rows: len(rows) == 2)
    assert [row["state"] for row in still] == ["ok", "lost"]
    machine.broker.release(lease["token"])
    [whole] = machine.until(lambda rows: len(rows) == 1)
    assert (whole["state"], whole["parent"]) == ("ok", None)
    assert "lost" not in machine.command("status").stdout
    assert "WRONG" not in machine.command("doctor").stdout
    machine.broker.granted(min_memory_mb=70_000)


def test_parts_that_are_forgotten_do_not_come_back_with_trouble(
    reported: Callable[..., Reported],
) -> None:
    """A driver that is away, a GPU that fails, a released driver: none lists them again."""
    machine = reported("mig_taken_apart")
    machine.until(lambda rows: len(rows) == 3)
    machine.later()
    machine.until(lambda rows: len(rows) == 1)
    for trouble in ("driver=9", "memory=999"):
        machine.words("count=1", trouble)
        machine.until(lambda rows: rows[0]["state"] == "error")
        time.sleep(0.7)
        assert len(machine.gpus()) == 1, trouble
        machine.later()
        machine.until(lambda rows: rows[0]["state"] == "ok")
    assert machine.command("release-driver", "h1", "--for", "1m").returncode == 0
    assert [row["state"] for row in machine.gpus()] == ["error"]


def test_new_part_of_a_gpu_in_quarantine_is_withheld(reported: Callable[..., Reported]) -> None:
    """It fell off its bus: it is lent neither whole nor divided anew, until an operator says so."""
    machine = reported("mig_taken_apart")
    machine.until(lambda rows: len(rows) == 3)
    machine.words("count=1", "mig=0/20096+20096", "xid=0/79")
    machine.until(lambda rows: [row["state"] for row in rows] == ["mig", *["quarantined"] * 2])
    machine.words("count=1", "mig=0/20096+20096+20096")
    machine.until(lambda rows: [row["state"] for row in rows[1:]] == ["quarantined"] * 3)
    time.sleep(1)
    assert [row["state"] for row in machine.gpus()[1:]] == ["quarantined"] * 3
    assert machine.command("undrain", "h1:0").returncode == 0
    machine.until(lambda rows: [row["state"] for row in rows[1:]] == ["ok"] * 3)
    assert "quarantine" not in machine.command("status").stdout


def test_parts_of_a_gpu_that_is_listed_no_more_are_as_it(
    reported: Callable[..., Reported],
) -> None:
    """The pool forgets all of them after the same time."""
    machine = reported("mig_taken_apart")
    machine.until(lambda rows: len(rows) == 3)
    machine.words("count=0")
    machine.until(lambda rows: [row["state"] for row in rows] == ["lost"] * 3)
    pool = machine.settings["GPU_BROKER_POOL"]
    with Redis.from_url(machine.settings["REDIS_URL"], decode_responses=True) as redis:
        keys = redis.keys(f"gpu:{{{pool}}}:device:*")
        listed = [redis.hget(key, "listed_ms") for key in keys]
        time.sleep(1)
        assert listed == [redis.hget(key, "listed_ms") for key in keys]
    assert len(keys) == 3


def test_parts_that_went_while_the_reporter_was_away_are_forgotten(
    reported: Callable[..., Reported],
) -> None:
    """A reporter that starts after the change has never seen them; they go all the same."""
    machine = reported("mig_taken_apart")
    machine.until(lambda rows: len(rows) == 3)
    machine.broker.stop()
    machine.later()
    machine.restart()
    [whole] = machine.until(lambda rows: rows[0]["state"] == "ok" and len(rows) == 1)
    assert eventually(lambda: machine.gpus() == [whole] or machine.gpus(), 1)
