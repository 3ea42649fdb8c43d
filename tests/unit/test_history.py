"""The last hour by the minute: what the stream tells, and what was seen."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from agent_sdk.state.events import Event
from broker.live import history as histories
from broker.live.history import KEPT, MEASURED, History
from broker.live.sums import Sums

T0 = 1_795_600_000_000 // 60_000 * 60_000


def event(at_ms: int, name: str, token: str, mb: int = 100) -> Event:
    fields = {"token": token, "devices": f"GPU-0={mb}", "fence": str((T0 + at_ms) * 1000)}
    if name == "waiting":
        fields = {"token": token}
    return Event(f"{T0 + at_ms}-0", name, fields)


def look(history: History, at_ms: int, leased_mb: int, busy: float | None = None) -> None:
    device = {"uuid": "GPU-0", "parent": "", "state": "ok", "drained": False, "findings": (),
              "total_mb": 1000, "system_mb": 0, "leased_mb": leased_mb,
              "left_mb": 1000 - leased_mb, "free_mb": 1000 - leased_mb,
              "telemetry": {"utilization_gpu_pct": busy}}  # fmt: skip
    pool: Any = SimpleNamespace(now_ms=T0 + at_ms, waiting=2)
    history.sample(pool, Sums([SimpleNamespace(**device)]))  # type: ignore[list-item] # the fields that it reads


def test_minutes_count_grants_ends_and_waits() -> None:
    """Each in the minute in which it happened; a wait in that of its end."""
    history = History()
    history.take([
        event(0, "waiting", "a"), event(1_000, "granted", "b"), event(61_000, "granted", "a"),
        event(62_000, "released", "b"), event(63_000, "expired", "c"),
    ])  # fmt: skip
    first, second = history.rows().values()
    assert (first["granted"], first["ended"], first["wait_s"]) == (1, 0, None)
    assert (second["granted"], second["ended"], second["wait_s"]) == (1, 2, 61.0)
    assert second["longest_wait_s"] == 61.0


def test_what_was_leased_is_reckoned_back_from_what_is() -> None:
    """The stream begins in the middle: 300 of 1000 MiB were leased before it."""
    history = History()
    history.take([event(0, "granted", "a", 200), event(60_000, "released", "a", 200)])
    history.take([event(120_000, "granted", "b", 400)])
    look(history, 180_000, leased_mb=700, busy=50.0)
    look(history, 181_000, leased_mb=700, busy=70.0)
    rows = list(history.rows().values())
    assert [row["leased_pct"] for row in rows] == [50.0, 30.0, 70.0, 70.0]
    assert [row["utilization_pct"] for row in rows] == [None, None, None, 60.0]
    assert [row["waiting"] for row in rows] == [None, None, None, 2]


def test_minutes_begin_with_what_was_leased_in_those_that_are_gone() -> None:
    """A lease of two hours ago still counts."""
    history = History()
    history.take([event(0, "granted", "a", 400), event(120 * 60_000, "waiting", "b")])
    look(history, 121 * 60_000, leased_mb=400)
    assert [row["leased_pct"] for row in history.rows().values()] == [40.0, 40.0]


def test_rows_cost_no_more_the_more_waits_there_were(monkeypatch: Any) -> None:
    """A median is taken again only of a minute in which a wait has ended since, and of no more."""
    measured: list[int] = []

    def median(waits: Any) -> float:
        measured.append(len(waits))
        return float(min(waits))

    monkeypatch.setattr(histories, "median", median)
    history = History()
    for minute in range(3):
        for n in range(MEASURED + 1):
            at_ms, token = minute * 60_000 + n, f"{minute}-{n}"
            history.take([event(at_ms, "waiting", token), event(at_ms + n, "granted", token)])
    for _ in range(3):
        rows = list(history.rows().values())
    assert measured == [MEASURED] * 3
    assert [row["wait_s"] for row in rows] == [0.001] * 3  # the first one, of 0 s, is forgotten
    assert [row["longest_wait_s"] for row in rows] == [MEASURED / 1000] * 3
    for n in (1, 2):
        history.take([event(180_000, "waiting", "a"), event(181_000, "granted", "a")])
        history.rows()
        assert measured[3:] == [1, 2][:n]


def test_an_hour_is_kept_and_what_is_older_is_of_no_use() -> None:
    """Also what comes late."""
    history = History()
    for minute in range(90):
        history.take([event(minute * 60_000, "granted", f"t{minute}")])
    history.take([event(0, "granted", "late")])
    rows = history.rows()
    assert len(rows) == KEPT
    assert min(row["at"] for row in rows.values()) == T0 / 1000 + (90 - KEPT) * 60


def test_nothing_known_is_no_percentage_of_nothing() -> None:
    """Before any device was seen."""
    history = History()
    history.take([event(0, "granted", "a")])
    (row,) = history.rows().values()
    assert row["leased_pct"] == 0.0
