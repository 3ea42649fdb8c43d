"""report: devices come, change, move, vanish and come back; nothing is promised twice."""

from __future__ import annotations

from typing import Any

import pytest

from agent_sdk.state import snapshot
from tests.pools import Pool, device, granted, said, token, uuids

CROWDED = ["REFUSED", "no_capacity", ""]
BAD_DEVICE = ["REFUSED", "bad_request", "device"]
LEDGER = (
    "host", "leased_mb", "withheld_mb", "unleased_mb", "leases", "exclusive", "reserved_for",
    "drained", "withheld_at_ms", "cooled_at_ms", "sampled_ms", "raised_mb",
)  # fmt: skip
"""Fields of a device's hash that no reporter may say."""


def test_report_of_a_lost_device_takes_it_out_and_back(pool: Pool) -> None:
    """A device that vanished takes nothing new; its lease runs on; it comes back as it was."""
    pool.report((device("gpu-a", 1000), device("gpu-b", 500)))
    pool.acquire(token("a"), memory_mb=600)
    pool.report((device("gpu-a", 1000, state="lost", reason="fell off the bus"),))
    assert pool.free() == {"gpu-b": 500}
    assert pool.renew(token("a"))[0] == "RENEWED"
    assert said(pool.acquire(memory_mb=501)) == CROWDED
    pool.report((device("gpu-a", 1000),))
    assert pool.free() == {"gpu-a": 400, "gpu-b": 500}
    assert pool.events()[-2:] == ["device", "device"]


def test_report_of_a_lost_device_keeps_it_registered(pool: Pool) -> None:
    """It may come back, so a request for it is refused for now, not for good."""
    pool.report((device("gpu-a", 1000),))
    pool.report((device("gpu-a", 1000, state="lost"),))
    assert said(pool.acquire(model="m1", host="h1")) == CROWDED


def test_report_of_less_than_is_reserved_over_commits_nothing(pool: Pool) -> None:
    """A shrinking device ends no lease and takes no other until the sums fit again."""
    pool.report((device("gpu-a", 1000),))
    pool.acquire(token("a"), memory_mb=600)
    pool.acquire(token("b"), memory_mb=300)
    pool.report((device("gpu-a", 700),))
    assert pool.free() == {}
    assert said(pool.acquire(memory_mb=1)) == CROWDED
    assert said(pool.acquire(memory_mb=701)) == ["REFUSED", "never_fits", ""]
    assert pool.renew(token("a"))[0] == pool.renew(token("b"))[0] == "RENEWED"
    pool.release(token("b"))
    assert pool.free() == {"gpu-a": 100}
    pool.release(token("a"))
    assert pool.free() == {"gpu-a": 700}


def test_report_of_a_larger_reserve_leaves_less(pool: Pool) -> None:
    """The system's memory is never leased."""
    pool.report((device("gpu-a", 1000, system_mb=100),))
    assert pool.free() == {"gpu-a": 900}
    pool.report((device("gpu-a", 1000, system_mb=300),))
    assert pool.free() == {"gpu-a": 700}
    assert said(pool.acquire(memory_mb=701)) == ["REFUSED", "never_fits", ""]
    pool.report((device("gpu-a", 1000, system_mb=1100),))
    assert pool.free() == {}


def test_report_by_another_host_moves_the_device_with_its_leases(pool: Pool) -> None:
    """The same UUID under a new host name is the same device."""
    pool.report((device("gpu-a", 1000),), host="old")
    pool.acquire(token("a"), memory_mb=600)
    pool.report((device("gpu-a", 1000),), host="new")
    assert pool.free("host/old") == {}
    assert pool.free("host/new") == {"gpu-a": 400}
    assert said(pool.acquire(host="old")) == ["REFUSED", "host_unknown", ""]
    assert uuids(pool.acquire(host="new", memory_mb=400)) == ["gpu-a"]
    _, mb, _, host, *_ = pool.acquire(token("a"), memory_mb=600)[9:]
    assert (mb, host) == ("600", "new")
    assert pool.redis.smembers(pool.keys.devices("old")) == set()


def test_report_of_another_model_moves_the_device(pool: Pool) -> None:
    """A model's last device takes the model's name out of the pool with it."""
    pool.report((device("gpu-a", 1000), device("gpu-b", 2000)))
    pool.acquire(token("a"), memory_mb=100, placement="pack")
    pool.report((device("gpu-a", 1000, model="m2"),))
    assert pool.free("model/m1") == {"gpu-b": 2000}
    assert pool.free("model/m2") == {"gpu-a": 900}
    pool.report((device("gpu-b", 2000, model="m2"),))
    assert said(pool.acquire(model="m1")) == ["REFUSED", "model_unknown", ""]
    assert uuids(pool.acquire(model="m2", devices=1, exclusive=1)) == ["gpu-b"]


def test_report_of_another_index_or_name_changes_only_what_is_shown(pool: Pool) -> None:
    """A device is its UUID; its index may change at a reboot."""
    pool.report((device("gpu-a", 1000),))
    pool.acquire(token("a"))
    pool.report((device("gpu-a", 1000, index=5, name="Renamed"),))
    reply = pool.acquire(token("a"))
    assert reply[9:14] == ["gpu-a", "900", "5", "h1", "Renamed"]
    assert pool.free() == {"gpu-a": 100}


def test_report_does_not_undo_a_drain(pool: Pool) -> None:
    """`state` is the reporter's, `drained` the operator's."""
    pool.report((device("gpu-a", 1000), device("gpu-b", 500)))
    pool.drain("gpu-a")
    for more in ({}, {"state": "lost"}, {}, {"total_mb": 2000}, {"model": "m2"}):
        pool.report((device("gpu-a", **({"total_mb": 1000} | more)),))
        assert pool.free() == {"gpu-b": 500}
    pool.report((device("gpu-a", 1000),), host="h2")
    assert pool.free() == {"gpu-b": 500}
    assert pool.hash("device:gpu-a")["drained"] == "1"


def test_report_that_names_a_device_twice_keeps_the_last_word(pool: Pool) -> None:
    """Within one report too, what was said last is true."""
    pool.report((device("gpu-a", 1000), device("gpu-a", 700)))
    assert pool.free() == {"gpu-a": 700}


def test_report_that_says_only_part_keeps_the_rest(pool: Pool) -> None:
    """A field that is not reported stays as it was."""
    pool.report((device("gpu-a", 1000, model="m7"),))
    pool.report((("gpu-a", {"temperature_c": "60"}),))
    row = pool.hash("device:gpu-a")
    assert (row["model"], row["total_mb"], row["state"]) == ("m7", "1000", "ok")
    assert pool.free() == {"gpu-a": 1000}


def test_report_of_a_bare_id_registers_a_device_that_takes_nothing(pool: Pool) -> None:
    """A device without total and state is unknown, and nothing is granted on it."""
    pool.report((("gpu-a", {}),))
    assert pool.hash("device:gpu-a")["state"] == "unknown"
    assert said(pool.acquire(memory_mb=1)) == ["REFUSED", "never_fits", ""]
    assert pool.look(snapshot.devices(pool.keys))[0].total_mb == 0


@pytest.mark.parametrize("field", ["total_mb", "system_mb", "index"])
def test_report_of_a_number_that_the_driver_cannot_tell_keeps_the_last(
    pool: Pool, field: str
) -> None:
    """Reporters say '' for what the driver cannot tell: never 0, and never an error afterwards."""
    good = (device("gpu-a", 1000, system_mb=100, index=2),)
    pool.report(good)
    before = pool.hash("device:gpu-a")[field]
    pool.report((("gpu-a", good[0][1] | {field: ""}),))
    assert pool.hash("device:gpu-a")[field] == before
    assert pool.look(snapshot.devices(pool.keys))[0].total_mb == 1000
    granted(pool.acquire())
    assert said(pool.report(good)) == ["REPORTED"]


def test_report_of_a_new_device_whose_memory_is_unknown_takes_nothing(pool: Pool) -> None:
    """A GPU whose memory the driver does not tell is shown, is nobody's, and breaks nothing."""
    unknown = (device("gpu-a", "", state="degraded", used_mb="", simulated=0),)
    for _ in range(2):
        assert said(pool.report((*unknown, device("gpu-b", 500)))) == ["REPORTED"]
    assert pool.free() == {"gpu-b": 500}
    assert pool.look(snapshot.devices(pool.keys))[0].total_mb == 0


@pytest.mark.parametrize("bad", [".", "..", "1.2.3", "-1", "1e3", "nan", "1" * 21, " 1"])
def test_report_of_telemetry_that_is_no_number_is_refused(pool: Pool, bad: str) -> None:
    """Whatever is stored as a number can be read as one."""
    pool.report((device("gpu-a", 1000),))
    answer = said(pool.report((device("gpu-a", 1000, temperature_c=bad),)))
    assert answer == ["REFUSED", "bad_request", "temperature_c"]
    assert pool.look(snapshot.devices(pool.keys))[0].telemetry["temperature_c"] is None


@pytest.mark.parametrize("field", LEDGER)
def test_report_of_a_field_of_the_ledger_is_refused(pool: Pool, field: str) -> None:
    """A reporter says how a device is, never what was promised on it."""
    pool.report((device("gpu-a", 1000),))
    pool.acquire(exclusive=1)
    before = pool.stored()
    assert said(pool.report((device("gpu-a", 1000, **{field: 0}),))) == BAD_DEVICE
    assert pool.stored() == before


@pytest.mark.parametrize(
    "listed",
    [
        ("gpu-a",), ("gpu-a", ""), ("gpu-a", "x"), ("gpu-a", "-1"), ("gpu-a", "65"),
        ("gpu-a", "1e0"), ("gpu-a", 1), ("gpu-a", 1, "index"), ("gpu-a", 2, "index", 0),
        ("gpu-a", 2, "index", 0, "name"), ("gpu-a", 1, "index", 0, "gpu-b"), ("gpu-a", 0, 0),
        ("gpu-a", 0, "index", 0, "gpu-b"),
        ("gpu-a", 1, "unheard_of", "1"), ("gpu-a", 1, "", ""), ("gpu-a", 1, "INDEX", "1"),
        ("", 0), ("gpu a", 0), ("gpu,a", 0), ("gpu=a", 0), ("gpu{a", 0), ("a" * 81, 0),
        ("gpu\na", 0),
    ],
    ids=repr,
)  # fmt: skip
def test_report_of_a_malformed_list_is_refused_whole(pool: Pool, listed: tuple[Any, ...]) -> None:
    """Nothing of a report is taken whose list of devices is not in order to its end."""
    pool.report((device("gpu-a", 1000),))
    before = pool.stored()
    whole = ("gpu-b", 2, "total_mb", 500, "state", "ok")
    reply = pool.run("report", 1, "h1", 15000, 0, "", 0, "test", *whole, *listed)
    assert said(reply)[:2] == BAD_DEVICE[:2]
    assert reply[6] in {"device", listed[-1]}, "named is the device, or the field without a value"
    assert pool.stored() == before


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        ("index", ("-1", "1.0", "x", "0x1", "9" * 14)), ("system_mb", ("-1", "inf")),
        ("total_mb", ("-1", "1e5", "nan", "9" * 14)), ("used_mb", ("-1", "3.5")),
        ("name", ("a\nb", "a\0", "a" * 257)), ("state", ("", "OK", "away", "o k", "a" * 17)),
        ("model", ("", "a/b", "a|b", "*", "a" * 65, "m\n")),
        ("simulated", ("", "2", "true", "10")), ("reason", ("a\tb", "a" * 257)),
        ("nvml_error", ("\x1b[31m",)), ("power_draw_w", ("-3", "1,5")),
    ],
)  # fmt: skip
def test_report_of_a_malformed_field_is_refused_by_name(
    pool: Pool, field: str, bad: tuple[str, ...]
) -> None:
    """Each field has its form; `away` is the broker's own word."""
    pool.report((device("gpu-a", 1000),))
    before = pool.stored()
    for value in bad:
        answer = said(pool.report((("gpu-a", device("gpu-a")[1] | {field: value}),)))
        assert answer == ["REFUSED", "bad_request", field], value
    assert pool.stored() == before
