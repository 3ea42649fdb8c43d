"""Usage where a hand has spoilt a key: that one goes without, and all others have each lease."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.pools import Pool, granted, said, token
from tests.usage import (
    HOUR_MS,
    LATE_MS,
    TODAY,
    at_noon,
    grant,
    history,
    leap,
    let,
    release,
    sums,
    use,
)  # fmt: skip

if TYPE_CHECKING:
    from collections.abc import Callable

LEASES = 5

SPOILT = ["history", f"usage:{TODAY}", f"usage:{TODAY}:hosts", "usage_total"]


@pytest.fixture
def one(pool: Pool) -> Pool:
    at_noon(pool)
    return pool


def some_end(pool: Pool) -> None:
    """Leases with a known peak, which end one after another; the first are folded on the way."""
    for n in range(LEASES):
        grant(pool, str(n), memory_mb=100)
    t = let(pool, 1)
    for n in range(LEASES):
        use(pool, "gpu-a", f"{token(str(n))}={t}:{t}::40:")
    for n in range(LEASES):
        let(pool, 4000)
        release(pool, str(n))
    let(pool, LATE_MS)


@pytest.mark.parametrize("spoilt", SPOILT)
def test_key_of_another_type_goes_without_what_ends_and_no_other_does(
    one: Pool, spoilt: str
) -> None:
    """No line is taken twice or before its time, and what was left out is counted."""
    one.redis.set(f"{one.keys.base}:{spoilt}", "spoilt")
    some_end(one)
    assert not one.redis.exists(one.keys.ended)
    assert one.stats()["folds_failed"] > 0
    counts: dict[str, Callable[[], int]] = {
        "history": lambda: len(history(one)),
        SPOILT[1]: lambda: sums(one, TODAY)["default ann m1"]["leases"],
        SPOILT[2]: lambda: sums(one, TODAY, ":hosts")["h1|m1"]["leases"],
        "usage_total": lambda: int(one.hash("usage_total")["peak 0.5"]),
    }
    del counts[spoilt]
    assert {name: count() for name, count in counts.items()} == dict.fromkeys(counts, LEASES)


@pytest.mark.parametrize("word", ["inf", "nan", "x", "-7", "0x10", "1e9", ""])
def test_word_that_is_no_sum_counts_as_none(one: Pool, word: str) -> None:
    """The sum begins anew there, and the words beside it go on."""
    one.redis.hset(one.keys.usage_total, "default", f"waits=7 energy_mj={word} held_ms={word}")
    some_end(one)
    default = one.hash("usage_total")["default"].split(" ")
    assert default[:2] == ["leases=5", f"held_ms={sum(4000 * (n + 1) + 1 for n in range(5))}"]
    assert "waits=7" in default
    assert not any(part.startswith("energy_mj") for part in default)
    assert "folds_failed" not in one.stats()


def test_peak_that_is_no_number_costs_no_lease(one: Pool) -> None:
    """The count of one bucket stays as it is; sums and history have all leases."""
    one.redis.hset(one.keys.usage_total, "peak 0.5", "x")
    some_end(one)
    assert one.hash("usage_total")["peak 0.5"] == "x"
    assert sums(one, TODAY)["default ann m1"]["leases"] == len(history(one)) == LEASES
    assert one.stats()["folds_failed"] > 0


def test_spoilt_sum_stops_no_release_that_folds(one: Pool) -> None:
    """Without a broker that reaps, releases go on, and what waits stays bounded."""
    one.redis.set(one.keys.usage(TODAY), "spoilt")
    for n in range(1100):
        granted(one.acquire(token(f"n{n}"), "ann", memory_mb=100, ttl_ms=0))
        assert said(one.release(token(f"n{n}"))) == ["RELEASED"]
        assert one.redis.llen(one.keys.ended) <= 1024
    let(one, LATE_MS)
    assert one.stats()["folds_failed"] > 0


def test_use_of_leases_whose_lines_are_gone_is_forgotten(one: Pool) -> None:
    """A hand removes lines, older versions write none: what hosts told of those leases goes."""
    grant(one, "runs", memory_mb=100)
    t = let(one, 1)
    use(one, "gpu-a", f"{token('runs')}={t}:{t}::1:")
    for n in range(600):
        grant(one, str(n), memory_mb=10)
        use(one, "gpu-a", f"{token(str(n))}={t}:{t}::1:")
        release(one, str(n))
        one.redis.delete(one.keys.ended)
    one.redis.hdel(one.keys.pool, "released")
    assert len(one.hash("use:gpu-a")) == 601
    leap(one, HOUR_MS + 1000)
    grant(one, "new", memory_mb=10)
    t = let(one, 1)
    use(one, "gpu-a", f"{token('new')}={t}:{t}::1:")
    assert set(one.hash("use:gpu-a")) == {token("runs"), token("new")}
