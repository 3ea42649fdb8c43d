"""Use over HTTP: sums by who and where, finished leases page by page, tokens of others."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.api.brokers import GRANTING, Broker, eventually
from tests.api.descriptions import Description
from tests.api.keys import new_key

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx2

    from tests.servers import Server


class Past:
    """Broker with keys, and a pool with a past.

    Attributes:
        tokens: of the leases that have ended, in the order of their ends.
    """

    def __init__(self, broker: Broker, keys: dict[str, str]) -> None:
        self.broker = broker
        self.keys = keys
        self.tokens: list[str] = []

    def ask(self, who: str, path: str, **params: Any) -> httpx2.Response:
        headers = {"Authorization": f"Bearer {self.keys[who]}"}
        return self.broker.http.get(path, params=params, headers=headers)

    def said(self, path: str, who: str = "operator", **params: Any) -> dict[str, Any]:
        answer = self.ask(who, path, **params)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def post(self, who: str, path: str, **body: Any) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self.keys[who]}"}
        answer = self.broker.http.post(path, json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def lease(self, who: str, **body: Any) -> str:
        return str(self.post(who, "/lease", **body)["token"])


@pytest.fixture(scope="module")
def past(own: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Past]:
    """Seven finished leases of two keys, one on the CPU, and one that runs; they are folded."""
    file = tmp_path_factory.mktemp("keys") / "keys"
    keys = {
        "viewer": new_key(file, "viewer", "viewer"),
        "ann": new_key(file, "ann", "agent"),
        "bob": new_key(file, "bob", "agent"),
        "operator": new_key(file, "operator", "operator"),
    }
    with Broker(**GRANTING, REDIS_URL=own.url, GPU_BROKER_KEYS_FILE=str(file)) as broker:
        it = Past(broker.wait(), keys)
        for n in range(5):
            who, agent = ("ann", "a1") if n % 2 else ("bob", f"b{n}")
            it.tokens.append(it.lease(who, agent=agent, team="nlp", min_memory_mb=100))
        time.sleep(1)
        for token in it.tokens:
            it.post("operator", "/release", token=token)
        cpu = it.lease("ann", agent="a1", min_memory_mb=90_000)
        it.post("ann", "/release", token=cpu)
        ended = it.lease("ann", agent="a2", min_memory_mb=100)
        it.post("operator", "/revoke", token=ended, force=True)
        it.tokens += [cpu, ended]
        it.lease("bob", agent="runs", min_memory_mb=500, ttl_s=0)
        eventually(lambda: len(it.said("/history")["leases"]) == 7, 40, every_s=0.5)
        yield it


@pytest.fixture(scope="module")
def described(past: Past) -> Description:
    return Description(past.broker.http.get("/openapi.json").json())


def test_answers_are_as_described(past: Past, described: Description) -> None:
    """Any grouping and any parameter."""
    for by in ("", "team,agent", "day,model", "day,host,model"):
        described.check(past.ask("viewer", "/usage", by=by), "/usage")
    described.check(past.ask("viewer", "/usage", since="2026-01-01", until="1h"), "/usage")
    described.check(past.ask("viewer", "/usage", daily=True), "/usage")
    for params in ({}, {"limit": 1}, {"after": "0-0"}, {"agent": "nobody"}):
        described.check(past.ask("viewer", "/history", **params), "/history")


def test_use_is_told_by_who_and_by_where(past: Past) -> None:
    """A part of a GPU counts as that part, and what runs counts up to now."""
    found = past.said("/usage")
    assert found["by"] == ["team", "agent"]
    rows = {(row["team"], row["agent"]): row for row in found["rows"]}
    a1, runs = rows["nlp", "a1"], rows["default", "runs"]
    assert (a1["leases"], a1["running"], runs["leases"], runs["running"]) == (2, 0, 0, 1)
    assert a1["gpu_hours"] == pytest.approx(a1["held_hours"] / 10, abs=2e-6)
    assert a1["mb_hours"] == pytest.approx(a1["gpu_hours"] * 1000, abs=2e-3)
    assert runs["gpu_hours"] > 0
    assert rows["default", "a1"]["gpu_hours"] == 0  # on the CPU
    total = found["total"]
    assert total["leases"] == 7
    assert total["gpu_hours"] == pytest.approx(
        sum(row["gpu_hours"] for row in found["rows"]), abs=1e-5
    )
    assert past.said("/usage", by="")["rows"][0]["leases"] == 7
    by_host = past.said("/usage", by="host")["rows"]
    assert {row["host"] for row in by_host} == {"h1", "-"}
    assert sum(by_host[0]["gpu_hours_by_hour"]) == pytest.approx(by_host[0]["gpu_hours"], abs=1e-5)


def test_each_day_is_told_where_it_is_asked_for(past: Past) -> None:
    """GPU-hours of each group from the first day to the last, which together are its sum."""
    assert past.said("/usage")["rows"][0]["gpu_hours_by_day"] == []
    for by in ("team,agent", "host", ""):
        for row in past.said("/usage", by=by, since="6d", daily=True)["rows"]:
            assert len(row["gpu_hours_by_day"]) == 7
            assert sum(row["gpu_hours_by_day"]) == pytest.approx(row["gpu_hours"], abs=1e-5)
    assert past.said("/usage", by="day", daily=True)["rows"][0]["gpu_hours_by_day"] == []


def test_whoever_may_see_leases_may_see_use(past: Past) -> None:
    """The same figures for each role, as of `/allocations` and `/teams`."""
    by = {"by": "agent", "until": past.said("/usage")["last_day"], "since": "7d"}
    finished = [
        {row["agent"]: row["leases"] for row in past.said("/usage", who, **by)["rows"]}
        for who in past.keys
    ]
    assert all(each == finished[0] for each in finished)


def test_history_is_paged_from_the_newest_on(past: Past) -> None:
    """Each lease once; the last page has no further one."""
    seen: list[str] = []
    more: dict[str, Any] = {}
    while True:
        page = past.said("/history", limit=3, **more)
        seen += [lease["token"] for lease in page["leases"]]
        if page["next"] is None:
            break
        more = {"cursor": page["next"]}
    assert seen == past.tokens[::-1]


def test_history_is_followed_from_an_id_on(past: Past) -> None:
    """The oldest first; `last` of an answer begins the next one, also where nothing came."""
    page = past.said("/history", after="0-0", limit=4)
    second = past.said("/history", cursor=page["next"])
    rows = page["leases"] + second["leases"]
    assert [lease["token"] for lease in rows] == past.tokens
    assert second["next"] is None
    nothing = past.said("/history", after=second["last"])
    assert nothing == {"leases": [], "next": None, "last": second["last"]}


def test_history_tells_leases_whole(past: Past) -> None:
    """Place and end of each; a lease on the CPU has no host."""
    revoked, cpu, *others = past.said("/history")["leases"]
    assert (revoked["outcome"], revoked["agent"], revoked["host"]) == ("revoked", "a2", "h1")
    assert (cpu["model"], cpu["host"], cpu["gpus"], cpu["gpu_hours"]) == ("cpu", None, [], 0)
    lease = others[0]
    assert lease["gpus"] == [{"uuid": "SIM-h1-0", "memory_mb": 100}]
    assert lease["held_s"] == pytest.approx(lease["ended_at"] - lease["granted_at"], abs=0.01)
    assert lease["gpu_hours"] == pytest.approx(lease["held_s"] / 36_000, abs=1e-6)


@pytest.mark.parametrize(
    ("params", "count"),
    [({"agent": "a1"}, 3), ({"team": "nlp"}, 5), ({"host": "h1"}, 6), ({"host": "h2"}, 0),
     ({"outcome": "revoked"}, 1), ({"since": "1h"}, 7), ({"since": "0s"}, 0)],
)  # fmt: skip
def test_history_is_filtered(past: Past, params: dict[str, str], count: int) -> None:
    """By agent, team, host, end and time."""
    assert len(past.said("/history", **params)["leases"]) == count


@pytest.mark.parametrize(("who", "whole"), [("viewer", 0), ("ann", 4), ("bob", 3), ("operator", 7)])
def test_tokens_are_whole_for_their_owner_and_the_operator(
    past: Past, who: str, whole: int
) -> None:
    """To others they are the first eight letters."""
    said = [lease["token"] for lease in past.said("/history", who)["leases"]]
    assert sum(token in past.tokens for token in said) == whole
    assert [token[:8] for token in said] == [token[:8] for token in past.tokens[::-1]]
    assert all(token in past.tokens or token[8:] == "…" for token in said)


@pytest.mark.parametrize(
    ("path", "params", "says"),
    [("/usage", {"by": "colour"}, "colour"), ("/usage", {"by": "team,host"}, "not by team"),
     ("/usage", {"since": "yesterday"}, "query: 'yesterday'"),
     ("/usage", {"since": "1h", "until": "2h"}, "begin before it ends"),
     ("/usage", {"since": "2026-02-30"}, ""), ("/history", {"since": "2h ago"}, ""),
     ("/usage", {"by": "t" * 65}, ""), ("/history", {"since": "x"}, ""),
     ("/history", {"limit": 0}, ""), ("/history", {"limit": 1001}, ""),
     ("/history", {"after": "x"}, ""), ("/history", {"cursor": "older/x"}, "next"),
     ("/history", {"after": "1-0", "cursor": "newer/1-0"}, "name one"),
     ("/history", {"after": f"{2**64}-0"}, ""), ("/history", {"after": f"1-{2**64}"}, ""),
     ("/history", {"cursor": f"older/{2**64}-0"}, "next"),
     ("/history", {"outcome": "lost"}, ""), ("/history", {"agent": "a b"}, "")],
)  # fmt: skip
def test_bad_input_is_a_problem_with_a_sentence(
    past: Past, path: str, params: dict[str, Any], says: str
) -> None:
    """422; `application/problem+json` where that was asked for."""
    headers = {"Authorization": f"Bearer {past.keys['viewer']}",
               "Accept": "application/problem+json"}  # fmt: skip
    answer = past.broker.http.get(path, params=params, headers=headers)
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert says in answer.json()["detail"]


@pytest.mark.parametrize("since", ["999999999w", "0001-01-01", "1970-01-01T00:00"])
def test_period_may_begin_before_the_pool_did(past: Past, since: str) -> None:
    """It is then all that the pool knows."""
    assert past.said("/usage", since=since)["total"]["leases"] == 7
    assert len(past.said("/history", since=since)["leases"]) == 7
