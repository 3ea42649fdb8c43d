"""Teams on the command line: `teams`, and their columns and filters in the other lists."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from agent_sdk.client import LeaseClient
from agent_sdk.errors import StillWaiting, TeamLimit
from agent_sdk.store.store import Store
from agent_sdk.testing import _report
from tests.api.brokers import PROGRAM, environment
from tests.program import called

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers import Server


@pytest.fixture
def lab(server: Server) -> Iterator[LeaseClient]:
    """A pool of its own: one GPU of 10,000 MiB."""
    with LeaseClient(Store(server.url), pool=f"lab-{uuid4().hex[:8]}", hostname="h1") as client:
        _report(client, 1, 10_000)
        yield client


def on(pool: LeaseClient, *args: str) -> str:
    where = {"REDIS_URL": pool.store.url, "GPU_BROKER_POOL": pool.keys.pool_name}
    done = called(*args, GPU_BROKER_HOSTNAME="h1", **where)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def data(pool: LeaseClient, *args: str) -> dict[str, Any]:
    return dict(json.loads(on(pool, *args, "-o", "json")))


def wait(pool: LeaseClient, agent: str, team: str, memory_mb: int, **more: Any) -> str:
    token = f"waits-{agent}-0123456789"
    with pytest.raises(StillWaiting):
        pool.acquire(agent, team=team, memory_mb=memory_mb, host="any", wait_s=0.01,
                     keep_place=True, token=token, **more)  # fmt: skip
    return token


def test_without_teams_the_lists_are_as_before(lab: LeaseClient) -> None:
    """No column, no word; and `teams` says how they come to be."""
    assert "policy apply gives teams quotas" in on(lab, "teams")
    assert data(lab, "teams")["teams"] == []
    lab.acquire("ann", host="any", memory_mb=9000)
    wait(lab, "bob", "default", 5000)
    for command in ("status", "leases", "queue"):
        text = on(lab, command)
        assert "TEAM" not in text
        assert " of team " not in text


def test_teams_shows_quota_use_and_share(lab: LeaseClient) -> None:
    """A row tells what a team borrows and lends, and its part against its weight."""
    nlp = {"nominal_mb": 2048, "weight": 3, "borrow_mb": 6000}
    lab.set_teams({"nlp": nlp, "vision": {"nominal_mb": 6144, "lend_mb": 5000, "max_hold_s": 7200}})
    lab.acquire("ann", team="nlp", host="any", memory_mb=6144)
    wait(lab, "bob", "vision", 5000)
    lines = [line.split("  ") for line in on(lab, "teams").splitlines()]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert cells[0] == ["TEAM", "NOMINAL", "USED", "BORROWED", "LENT", "LEASES", "WAITING", "SHARE",
                        "WEIGHT"]  # fmt: skip
    assert cells[1][:4] == ["nlp", "2.0 GiB", "6.0 GiB", "4.0 GiB"]
    assert cells[1][5:] == ["1", "-", "100% of 75%", "3"]
    assert cells[2][0] == "vision"
    assert cells[2][-4:] == ["0", "1", "0% of 25%", "1"]
    wide = on(lab, "teams", "-o", "wide")
    assert "6000 MiB" in wide
    assert "7200 s" in wide
    assert on(lab, "teams", "-o", "name").split() == ["nlp", "vision"]
    rows = {row["name"]: row for row in data(lab, "teams")["teams"]}
    assert rows["nlp"]["borrowed_mb"] == 4096
    assert rows["vision"]["lend_mb"] == 5000


def test_teams_has_a_line_for_each_model_of_a_team(lab: LeaseClient) -> None:
    """Use beside quota, and what is borrowed; in JSON below `models`."""
    model = lab.devices()[0].model
    lab.set_teams({"nlp": {"nominal_mb": 1024, "models": {model: {"nominal_mb": 2048}}}})
    lab.acquire("ann", team="nlp", host="any", memory_mb=3072)
    lines = on(lab, "teams", "-o", "wide").splitlines()
    assert lines[1].split()[:3] == ["nlp", "3.0", "GiB"]
    cells = [cell.strip() for cell in lines[2].split("  ") if cell.strip()]
    assert cells[:4] == [model, "2.0 GiB", "3.0 GiB", "1.0 GiB"]
    (row,) = data(lab, "teams")["teams"]
    assert row["models"][model] == {
        "nominal_mb": 2048, "borrow_mb": None, "used_mb": 3072, "reserved_mb": 0,
        "borrowed_mb": 1024,
    }  # fmt: skip
    assert "(nominal_mb and borrow_mb of its quotas by model)" in str(
        _refusal(lab, model, {"nlp": {"models": {model: {"borrow_mb": 0}}}})
    )


def _refusal(pool: LeaseClient, model: str, teams: dict[str, Any]) -> TeamLimit:
    pool.set_teams(teams)
    with pytest.raises(TeamLimit) as refused:
        pool.acquire("ann", team="nlp", host="any", model=model, memory_mb=9)
    return refused.value


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--team typo", "team typo is not in"),
        ("--team nlp --priority 9", "a priority of at most 5"),
    ],
)
def test_refusal_for_a_team_says_where_its_limits_are(
    lab: LeaseClient, options: str, says: str
) -> None:
    """The list of GPUs does not have them."""
    lab.set_teams({"nlp": {"nominal_mb": 1000, "max_priority": 5}})
    where = {"REDIS_URL": lab.store.url, "GPU_BROKER_POOL": lab.keys.pool_name}
    for command in ("run -- true", "acquire"):
        words = [command.split()[0], *options.split(), *command.split()[1:]]
        done = subprocess.run(
            [PROGRAM, *words], env=environment(GPU_BROKER_HOSTNAME="h1", **where),
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode == 1
        assert says in done.stderr
        assert "gpu-broker teams -o wide shows each team's limits" in done.stderr
        assert "gpu-broker status" not in done.stderr


def test_lists_are_filtered_by_team(lab: LeaseClient) -> None:
    """With a column; of another team nothing is shown."""
    lab.acquire("ann", team="nlp", host="any", memory_mb=3000)
    lab.acquire("bob", host="any", memory_mb=3000)
    waiting = wait(lab, "cay", "vision", 9000)
    assert "TEAM" in on(lab, "leases").splitlines()[0]
    (shown,) = data(lab, "leases", "--team", "nlp")["leases"]
    assert (shown["agent"], shown["team"]) == ("ann", "nlp")
    assert data(lab, "leases", "--team", "nlp")["total"] == 1
    (row,) = data(lab, "queue", "--team", "vision")["queue"]
    assert (row["token"], row["team"]) == (waiting, "vision")
    assert "TEAM" in on(lab, "queue").splitlines()[0]
    assert data(lab, "queue", "--team", "nlp")["queue"] == []
    assert "ann of team nlp" in on(lab, "status")
    narrowed = data(lab, "status", "--team", "nlp")
    assert [lease["agent"] for lease in narrowed["leases"]] == ["ann"]
    assert len(narrowed["devices"]) == 1
    assert data(lab, "status", "--team", "vision")["devices"] == []
    assert "nothing matches --team vision" in on(lab, "status", "--team", "vision")


def test_queue_says_what_stands_between_teams(lab: LeaseClient) -> None:
    """Behind a quota; and where a lease ends for a waiter, when, at both."""
    lab.set_policy(min_runtime_s=0, reclaim_after_s=1, preempt_grace_s=40)
    lab.set_teams({"nlp": {"nominal_mb": 1000}, "vision": {"nominal_mb": 8000}})
    held = lab.acquire("ann", team="nlp", host="any", memory_mb=9000, ttl_s=0)
    wait(lab, "borrows", "nlp", 8000)
    wait(lab, "owns", "vision", 8000)
    says = {row["agent"]: row["why"] for row in data(lab, "queue")["queue"]}
    assert "behind team vision's quota" in says["borrows"]
    assert "behind team vision's quota" in on(lab, "queue")
    with lab.redis.pipeline() as pipe:  # it has waited for long
        record = lab.keys.record("waits-owns-0123456789")
        pipe.hincrby(record, "enqueued_ms", -60_000).execute()
    lab.renew(held)
    wait(lab, "owns", "vision", 8000)
    text = on(lab, "queue")
    assert "preempting in " in text, text
    shown = on(lab, "leases", "--team", "nlp")
    assert "for owns of team vision" in shown
    assert "for owns of team vision" in on(lab, "status")
