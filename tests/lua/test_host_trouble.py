"""Trouble of a host: kept with it, told once, and gone when its reporter says so."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.pools import device, said

if TYPE_CHECKING:
    from tests.pools import Pool

ONE, TWO = "boot1.m.ns.10.100", "boot1.m.ns.11.101"
"""Two reporters of one machine."""

A = device("gpu-a")
HANGS = ("the driver has not answered for 5.0 s", "")
WELL = ("", "")


def words(pool: Pool) -> tuple[str, str]:
    """The host's trouble and its warning."""
    row = pool.hash("host:h1")
    return row.get("trouble", ""), row.get("warning", "")


def told(pool: Pool) -> list[str]:
    """The reasons in the events, in order."""
    rows = [row for _, row in pool.redis.xrange(pool.keys.events)]
    return [row["reason"] for row in rows if row["event"] == "host_trouble"]


def test_trouble_stands_until_a_report_without_it(pool: Pool) -> None:
    """A report that says nothing of it changes nothing, a heartbeat with it is enough."""
    pool.report((), words=HANGS)
    since_ms = pool.hash("host:h1")["trouble_since_ms"]
    pool.report((A,))
    assert words(pool) == HANGS
    pool.skew(1000)
    pool.report((A,), words=("the driver has not answered for 6.0 s", "slow"))
    assert words(pool) == ("the driver has not answered for 6.0 s", "slow")
    assert pool.hash("host:h1")["trouble_since_ms"] == since_ms
    assert told(pool) == [HANGS[0]], "the same one, with another number"
    pool.report((A,), words=WELL)
    assert words(pool) == WELL
    assert told(pool) == [HANGS[0], ""]
    assert pool.hash("host:h1")["trouble_since_ms"] == "0"


def test_host_that_is_well_has_nothing_more_written(pool: Pool) -> None:
    """No field and no event."""
    pool.report((A,), by=(ONE, ""), words=WELL)
    assert {"trouble", "warning", "said_by", "said_ms"}.isdisjoint(pool.hash("host:h1"))
    assert told(pool) == []


def test_trouble_of_one_reporter_stands_beside_another_that_is_well(pool: Pool) -> None:
    """It goes when the one is well, silent past its deadline, or known to have ended."""
    pool.report((A,), by=(ONE, ""), words=HANGS)
    pool.report((A,), by=(TWO, ""), words=WELL)
    assert words(pool) == HANGS
    pool.report((A,), by=(ONE, ""), words=WELL)
    assert words(pool) == WELL
    for over, ms in ((ONE, 0), ("", 15_001)):
        pool.report((A,), by=(ONE, ""), words=HANGS)
        pool.skew(ms // 2)
        pool.report((A,), by=(TWO, ""))
        pool.skew(ms - ms // 2)
        pool.report((A,), by=(TWO, over), words=WELL)
        assert words(pool) == WELL, over


@pytest.mark.parametrize("line", ["x" * 513, "two\nlines", "\x1b[31m"])
def test_trouble_is_one_line(pool: Pool, line: str) -> None:
    """Anything else is refused, and nothing is taken."""
    pool.report((A,))
    assert said(pool.report((A,), words=(line, "")))[-1] == "trouble"
    assert said(pool.report((A,), words=("", line)))[-1] == "trouble"
    assert words(pool) == WELL
