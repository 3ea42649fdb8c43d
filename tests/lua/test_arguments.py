"""Malformed arguments are refused by name, and nothing at all has changed."""

from __future__ import annotations

from typing import Any

import pytest

from tests.lua.arguments import BAD_BYTES, DEFAULTS, NOT_NUMBERS
from tests.pools import Pool, device, granted, said, token


def spoilt(good: str, *more: str) -> tuple[str, ...]:
    """A good name with each bad byte before, inside and behind; and what is bad as a whole."""
    inside = (good[:8] + bad + good[8:] for bad in BAD_BYTES)
    around = (text for bad in BAD_BYTES for text in (bad + good, good + bad))
    return (*inside, *around, *more)


BAD: dict[str, tuple[str, ...]] = {
    "token": spoilt(token("a"), "", "a" * 15, "a" * 65, "a" * 16 + ":", "a" * 16 + "/", "a " * 8),
    "agent": spoilt("agent", "", "a" * 129, "a b"),
    "memory_mb": NOT_NUMBERS,
    "devices": (*NOT_NUMBERS, "0", "65", "9999999999999"),
    "exclusive": (*NOT_NUMBERS, "2", "9999999999999"),
    "ttl_ms": (*NOT_NUMBERS, "1", "999", "604800001", "9999999999999"),
    "max_hold_ms": NOT_NUMBERS,
    "priority": (*NOT_NUMBERS, "10", "9999999999999"),
    "host": spoilt("host", "", "a" * 65, "**", "h/1", "h:1", "h@1"),
    "model": spoilt("model", "", "a" * 65, "**", "m/1", "m:1", "m@1"),
    "placement": spoilt("spread", "", "SPREAD", "spread ", "best", "packed", "p"),
    "on_unavailable": spoilt("refuse", "", "raise", "CPU", "cpu ", "gpu"),
    "client": spoilt("client", "a" * 65, "a b", "a:b", "a/b"),
    "pid": spoilt("1:1", "1" * 41, "a", "-1", "1 1", "1.1"),
    "owner": spoilt("owner", "a" * 129, "a b"),
    "wait_ms": (*NOT_NUMBERS, "604800001", "9999999999999"),
    "note": ("a" * 201, "two\nlines", "\0", "\x1b[1m", "\x7f"),
    "uses": (
        "gpu-a",
        "=5",
        "gpu-a=",
        "gpu-a=-1",
        "gpu-a=1.5",
        "gpu-a=5=5",
        "gpu a=5",
        "5",
        "gpu-a=" + "9" * 14,
        "a" * 110 + "=5",
    ),
}


@pytest.fixture
def ready(pool: Pool) -> Pool:
    """A pool with a device, a lease and something overdue, so that there is much to spoil."""
    pool.report((device("gpu-a", 5000),))
    granted(pool.acquire(token("held")))
    granted(pool.acquire(token("old"), ttl_ms=6000))
    pool.skew(7000)
    return pool


def refuses(pool: Pool, verb: str, *args: Any, naming: str) -> None:
    """The call is refused for this argument."""
    answer = said(pool.run(verb, 1, *args))
    assert answer == ["REFUSED", "bad_request", naming], (verb, args)


def unchanged(before: dict[str, Any], pool: Pool) -> None:
    """Nothing has changed, but that the pool may remember what time it was."""
    after = pool.stored()
    for memory in (before, after):
        for clock in ("last_ms", "looked_ms"):
            memory[pool.keys.pool].pop(clock)
    assert after == before


@pytest.mark.parametrize("name", BAD)
def test_acquire_malformed_argument_is_refused_by_name(ready: Pool, name: str) -> None:
    """Every argument is checked as text before anything is read into it or written."""
    before = ready.stored()
    for bad in BAD[name]:
        refuses(ready, "acquire", *(DEFAULTS | {name: bad}).values(), naming=name)
    unchanged(before, ready)


def test_acquire_with_missing_arguments_is_refused(ready: Pool) -> None:
    """A call that stops early is refused, wherever it stops."""
    before = ready.stored()
    names = list(DEFAULTS)
    for count in range(names.index("wait_ms")):
        reply = ready.run("acquire", 1, *list(DEFAULTS.values())[:count])
        assert reply[5] == "bad_request", reply
        assert reply[6] in names[count:], reply
    unchanged(before, ready)
    assert said(ready.run("acquire")) == ["REFUSED", "protocol_mismatch", ""]


def test_acquire_with_more_arguments_than_it_knows_is_granted(ready: Pool) -> None:
    """New arguments come at the end: an older script takes what it knows."""
    rest = ("",) * (23 - len(DEFAULTS) - 1)
    granted(ready.run("acquire", 1, *DEFAULTS.values(), *rest, "new", "newer"))


def test_acquire_bytes_that_are_no_text_are_refused(ready: Pool) -> None:
    """Arguments are bytes: what is not even UTF-8 is refused like any other."""
    before = ready.stored()
    for bad in (b"\xff", b"\xc3\x28", b"\x80abc"):
        refuses(ready, "acquire", *(DEFAULTS | {"agent": bad}).values(), naming="agent")
    unchanged(before, ready)


@pytest.mark.parametrize("held", ["held", "unknown"])
def test_renew_malformed_argument_is_refused_by_name(ready: Pool, held: str) -> None:
    """A renewal with a malformed argument changes nothing, be the token known or not."""
    before = ready.stored()
    for bad in BAD["token"]:
        refuses(ready, "renew", bad, "", "", naming="token")
    for bad in NOT_NUMBERS:
        if bad != "" and not (bad.isascii() and bad.isdigit()):
            refuses(ready, "renew", token(held), bad, "", naming="fence")
    refuses(ready, "renew", token(held), "1" * 17, "", naming="fence")
    for bad in BAD["ttl_ms"]:
        if bad != "":
            refuses(ready, "renew", token(held), "", bad, naming="ttl_ms")
    for count, name in enumerate(("token", "fence", "ttl_ms")):
        refuses(ready, "renew", *(token(held), "", "")[:count], naming=name)
    unchanged(before, ready)


def test_release_malformed_argument_is_refused_by_name(ready: Pool) -> None:
    """A release with a malformed argument gives nothing back and plants nothing."""
    before = ready.stored()
    for bad in BAD["token"]:
        refuses(ready, "release", bad, 1, naming="token")
    for bad in (*NOT_NUMBERS, "2"):
        refuses(ready, "release", token("held"), bad, naming="plant")
    refuses(ready, "release", naming="token")
    refuses(ready, "release", token("held"), naming="plant")
    unchanged(before, ready)


@pytest.mark.parametrize(
    ("name", "position", "bad"),
    [
        ("host", 0, spoilt("host", "", "a" * 65, "*", "h/1", "h:1")),
        ("deadline_ms", 1, (*NOT_NUMBERS, "0", "86400001")),
        ("sampled_ms", 2, NOT_NUMBERS),
        ("epoch", 3, (*spoilt("123"), "1" * 17, "x", "-1", "1e3", "nan")),
        ("safe_mode", 4, (*NOT_NUMBERS, "2")),
        ("version", 5, spoilt("1.0", "a" * 65, "a/b", "a:b")),
    ],
)
def test_report_malformed_argument_is_refused_by_name(
    ready: Pool, name: str, position: int, bad: tuple[str, ...]
) -> None:
    """A report with a malformed argument is refused whole, and does not count as a sign of life."""
    before = ready.stored()
    for value in bad:
        args: list[Any] = ["h1", 15000, 0, "", 0, "test"]
        args[position] = value
        refuses(ready, "report", *args, naming=name)
    unchanged(before, ready)


def test_report_malformed_does_not_create_the_pool(pool: Pool) -> None:
    """A first report that is refused leaves nothing behind."""
    refuses(pool, "report", "h/1", 15000, 0, "", 0, "test", naming="host")
    refuses(pool, "report", "h1", 15000, 0, "", 0, "test", "gpu-a", 1, naming="device")
    assert pool.stored() == {}


def test_report_with_missing_arguments_is_refused(ready: Pool) -> None:
    """A report that stops before its devices is refused, wherever it stops."""
    before = ready.stored()
    args = ("h1", 15000, 0, "", 0, "test")
    names = ("host", "deadline_ms", "sampled_ms", "epoch", "safe_mode", "version")
    for count, name in enumerate(names):
        refuses(ready, "report", *args[:count], naming=name)
    unchanged(before, ready)


NO_LISTS = (",", ",,", "gpu-a=100,", ",gpu-a=100", "gpu-a=100,,gpu-b=100")
"""Each has an item of nothing."""


@pytest.mark.parametrize("devices", NO_LISTS)
def test_renew_with_an_empty_device_in_its_claim_is_refused(ready: Pool, devices: str) -> None:
    """Commas alone are no devices: nothing would be recovered, and called a lease on the CPU."""
    before = ready.stored()
    asked = "100|1|0|30000|0|0|*|*|spread|refuse"
    refuses(ready, "renew", token("z"), 7, "", "", 1, "agent", devices, asked, "client", "1:1",
            naming="devices")  # fmt: skip
    unchanged(before, ready)


@pytest.mark.parametrize(
    ("field", "items"),
    [
        ("idle", token("a")), ("overuse", token("a")), ("squatter", "12"), ("orphan", "12"),
        ("degraded", token("a")), ("gone", token("a")), ("tell", f"{token('a')}=idle"),
        ("xids", "79:hold"), ("cooling", f"{token('a')}=1:2:3"),
    ],
)  # fmt: skip
def test_report_with_an_empty_item_in_a_list_is_refused(
    ready: Pool, field: str, items: str
) -> None:
    """Every list of a device alike; the list itself, and none, are taken."""
    before = ready.stored()
    for spoilt_list in (",", ",,,", f"{items},", f",{items}", f"{items},,{items}"):
        uuid, fields = device("gpu-a", **{field: spoilt_list})
        pairs = [part for pair in fields.items() for part in pair]
        refuses(ready, "report", "h1", 15000, 0, "", 0, "test", uuid, len(fields), *pairs,
                naming=field)  # fmt: skip
    unchanged(before, ready)
    for right in ("", items):
        ready.report((device("gpu-a", **{field: right}),))
