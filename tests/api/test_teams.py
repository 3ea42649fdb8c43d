"""Teams over HTTP: the key's team counts, answers name it, and a foreign one is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from agent_sdk import LeaseClient, StillWaiting, Store
from agent_sdk.protocol.messages import new_token
from tests.api.brokers import GRANTING, Broker, eventually
from tests.api.descriptions import Description
from tests.api.keys import new_key

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx2

    from tests.servers import Server


class Teams:
    """A broker with keys, some of a team."""

    def __init__(self, broker: Broker, keys: dict[str, str]) -> None:
        self.broker = broker
        self.keys = keys

    def ask(self, who: str, method: str, path: str, **more: Any) -> httpx2.Response:
        headers = {"Authorization": f"Bearer {self.keys[who]}"} | more.pop("headers", {})
        return self.broker.http.request(method, path, headers=headers, **more)

    def lease(self, who: str, **body: Any) -> httpx2.Response:
        return self.ask(who, "POST", "/lease", json={"agent": "a", "min_memory_mb": 10} | body)


@pytest.fixture(scope="module")
def teams(own: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Teams]:
    file = tmp_path_factory.mktemp("keys") / "keys"
    keys = {
        "viewer": new_key(file, "viewer", "viewer"),
        "agent": new_key(file, "agent", "agent"),
        "nlp": new_key(file, "nlp", "agent", "--team", "nlp"),
        "operator": new_key(file, "operator", "operator"),
        "chief": new_key(file, "chief", "operator", "--team", "nlp"),
    }
    settings = GRANTING | {"REDIS_URL": own.url, "GPU_BROKER_TEAM": "brokers-own"}
    with Broker(**settings, GPU_BROKER_KEYS_FILE=str(file)) as broker:
        yield Teams(broker.wait(), keys)


@pytest.fixture(autouse=True)
def clean(teams: Teams) -> Iterator[None]:
    yield
    for what in ("allocations", "queue"):
        found = teams.ask("operator", "GET", f"/{what}").json()[what]
        for token in found if what == "allocations" else [row["token"] for row in found]:
            teams.ask("operator", "POST", "/release", json={"token": token})


WHO = {
    # who asks: the team of an answer to no team, to `nlp`, to `other`; None: refused
    "agent": ("default", "nlp", "other"),
    "nlp": ("nlp", "nlp", None),
    "operator": ("default", "nlp", "other"),
    "chief": ("nlp", "nlp", None),
}


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("version", ["", "/v1"])
def test_lease_counts_for_the_team_of_its_key(teams: Teams, who: str, version: str) -> None:
    """Without a team a key may name any; its team is never this broker's own."""
    for said, team in zip((None, "nlp", "other"), WHO[who], strict=True):
        body = {"agent": "a", "min_memory_mb": 10, "team": said}
        got = teams.ask(who, "POST", f"{version}/lease", json=body)
        if team is None:
            assert (got.status_code, got.json()["code"]) == (403, "forbidden")
            assert "this key is of the team nlp" in got.json()["detail"]
            assert "may not ask for the team other" in got.json()["detail"]
            continue
        assert (got.status_code, got.json()["team"]) == (200, team), got.text
        token = got.json()["token"]
        assert teams.ask(who, "GET", f"/lease/{token}").json()["team"] == team
        row = teams.ask("viewer", "GET", "/allocations").json()["allocations"]
        assert {lease["team"] for lease in row.values()} >= {team}


def test_explain_takes_the_team_of_the_key(teams: Teams) -> None:
    """A foreign one is refused there too."""
    body = {"agent": "a", "min_memory_mb": 10, "team": "other"}
    assert teams.ask("nlp", "POST", "/explain", json=body).status_code == 403
    assert teams.ask("agent", "POST", "/explain", json=body).status_code == 200


@pytest.mark.parametrize(
    ("limits", "body"),
    [
        ({"max_ttl_s": 600}, {}),  # the broker's own ttl is an hour
        ({"max_ttl_s": 600}, {"ttl_s": 600}),
        ({"max_ttl_s": 600}, {"ttl_s": 601}),
        ({"max_hold_s": 60}, {"max_hold_s": 60}),
        ({"max_hold_s": 60}, {"max_hold_s": 61}),
    ],
)
def test_explain_knows_how_long_a_lease_is_asked_for(
    teams: Teams, limits: dict[str, int], body: dict[str, int]
) -> None:
    """POST /explain calls nothing fitting that POST /lease refuses by a limit of the team."""
    policies = {"teams": {"brief": {"nominal_mb": 100} | limits}}
    assert teams.ask("operator", "PUT", "/policy/teams", json=policies).is_success
    ask = {"agent": "a", "min_memory_mb": 10, "team": "brief", "host": "any"} | body
    try:
        said = teams.ask("agent", "POST", "/explain", json=ask).json()
        got = teams.lease("agent", **ask | {"on_unavailable": "refuse"})
    finally:
        teams.ask("operator", "PUT", "/policy/teams", json={"teams": {}})
    assert said["code"] == ("fits" if got.is_success else got.json()["code"])
    if not got.is_success:
        assert said["summary"] == got.json()["detail"]


def test_waiter_tells_its_team(teams: Teams) -> None:
    """In 202, in /queue, and under its token; a repeated request keeps it."""
    teams.lease("agent", min_memory_mb=900)
    token = "of-a-team-0123456789"
    body = {"min_memory_mb": 900, "wait_s": 0.05, "token": token, "yields": True,
            "preemptible": True}  # fmt: skip
    for _ in range(2):
        waits = teams.lease("nlp", **body)
        assert (waits.status_code, waits.json()["team"]) == (202, "nlp"), waits.text
    (row,) = teams.ask("operator", "GET", "/queue").json()["queue"]
    assert (row["team"], row["capped_by"]) == ("nlp", None)
    assert teams.ask("nlp", "GET", f"/lease/{token}").json()["team"] == "nlp"


@pytest.mark.parametrize(
    "wrong",
    [{"team": ""}, {"team": "a b"}, {"team": 1}, {"team": "x" * 65}, {"preemptible": 1},
     {"yields": "yes"}, {"after": "short"}],
)  # fmt: skip
def test_wrong_field_is_no_request(teams: Teams, wrong: dict[str, Any]) -> None:
    """422, with the field's name."""
    answer = teams.lease("agent", **wrong)
    assert answer.status_code == 422
    assert next(iter(wrong)) in answer.text


def test_operator_sets_the_policies_of_all_teams(teams: Teams) -> None:
    """It is one version; the answers are as the document describes them."""
    described = Description(teams.broker.http.get("/openapi.json").json())
    before = teams.ask("viewer", "GET", "/policy/teams")
    described.check(before, "/policy/teams")
    wanted = {"teams": {"nlp": {"nominal_mb": 600, "weight": 2, "max_priority": 5}, "v.2": {}}}
    tag = before.headers["ETag"]
    put = teams.ask("operator", "PUT", "/policy/teams", json=wanted, headers={"If-Match": tag})
    set_ = described.check(put, "/policy/teams")
    assert set_["version"] == before.json()["version"] + 1
    assert set_["teams"]["nlp"]["nominal_mb"] == 600
    assert set_["teams"]["nlp"]["lend_mb"] is None
    assert set_["teams"]["v.2"]["weight"] == 1
    after = teams.ask("viewer", "GET", "/policy/teams")
    assert (after.json(), after.headers["ETag"]) == (set_, put.headers["ETag"])
    known = {"If-None-Match": put.headers["ETag"]}
    assert teams.ask("viewer", "GET", "/policy/teams", headers=known).status_code == 304
    late = teams.ask(
        "operator", "PUT", "/policy/teams", json={"teams": {}}, headers={"If-Match": tag}
    )
    assert (late.status_code, late.headers.get("ETag")) == (412, None)
    assert f"at version {set_['version']} by now" in late.json()["detail"]
    none = teams.ask(
        "operator", "PUT", "/policy/teams", json={"teams": {}}, headers={"If-Match": "x"}
    )
    assert none.status_code == 412
    assert teams.ask("viewer", "GET", "/policy/teams").json() == set_
    assert teams.ask("nlp", "PUT", "/policy/teams", json={"teams": {}}).status_code == 403

    assert teams.lease("nlp", min_memory_mb=700).status_code == 200
    rows = described.check(teams.ask("viewer", "GET", "/teams"), "/teams")["teams"]
    (row,) = (row for row in rows if row["name"] == "nlp")
    assert (row["used_mb"], row["borrowed_mb"], row["leases"], row["listed"]) == (700, 100, 1, True)
    refused = teams.lease("nlp", priority=6, on_unavailable="refuse")
    assert (refused.status_code, refused.json()["code"]) == (409, "team_limit")
    unknown = teams.lease("agent", team="typo", on_unavailable="refuse")
    assert (unknown.status_code, unknown.json()["code"]) == (409, "team_unknown")
    any_version = teams.ask(
        "operator", "PUT", "/policy/teams", json={"teams": {}}, headers={"If-Match": "*"}
    )
    assert any_version.json()["teams"] == {}


@pytest.mark.parametrize(
    "wrong",
    [{}, {"teams": None}, {"teams": []}, {"teams": {"a": {"wieght": 1}}},
     {"teams": {"a": {"weight": "1"}}}, {"teams": {"a": {"weight": 10_001}}},
     {"teams": {"a": {"models": {"L4": {"weight": 1}}}}}, {"teams": {"a": {"models": {"/": {}}}}},
     {"teams": {"a": {"models": {"L4": 5}}}},
     {"teams": {"a b": {}}}, {"teams": {str(n): {} for n in range(257)}}],
)  # fmt: skip
def test_policy_of_teams_that_is_none_is_refused_whole(teams: Teams, wrong: dict[str, Any]) -> None:
    """422; a limit with a mistyped name is no policy without that limit."""
    before = teams.ask("viewer", "GET", "/policy/teams").json()
    assert teams.ask("operator", "PUT", "/policy/teams", json=wrong).status_code == 422
    assert teams.ask("viewer", "GET", "/policy/teams").json() == before


def test_quotas_by_model_are_set_and_shown(teams: Teams) -> None:
    """Answers are as described; what is over a quota is refused by its name, and counted."""
    described = Description(teams.broker.http.get("/openapi.json").json())
    model = teams.ask("viewer", "GET", "/gpu/info").json()["gpus"][0]["model"]
    quotas = {model: {"nominal_mb": 100, "borrow_mb": 100}, "NVIDIA H9": {"nominal_mb": 5}}
    wanted = {"teams": {"nlp": {"nominal_mb": 50, "models": quotas}}}
    try:
        put = teams.ask("operator", "PUT", "/policy/teams", json=wanted)
        set_ = described.check(put, "/policy/teams")["teams"]["nlp"]
        assert set_["models"][model] == {"nominal_mb": 100, "borrow_mb": 100}
        assert set_["models"]["NVIDIA H9"]["borrow_mb"] is None
        assert teams.lease("nlp", min_memory_mb=150).status_code == 200
        over = teams.lease("nlp", min_memory_mb=201, on_unavailable="refuse")
        assert (over.status_code, over.json()["code"]) == (409, "team_limit")
        (row,) = (
            row
            for row in described.check(teams.ask("viewer", "GET", "/teams"), "/teams")["teams"]
            if row["name"] == "nlp"
        )
        assert row["models"][model]["borrowed_mb"] == 50
        lines = teams.ask("viewer", "GET", "/metrics").text.splitlines()
        name = f'gpu_broker_team_model_used_bytes{{model="{model}",team="nlp"}} '
        (value,) = (float(x.removeprefix(name)) for x in lines if x.startswith(name))
        assert value == 150 * 1024 * 1024
    finally:
        teams.ask("operator", "PUT", "/policy/teams", json={"teams": {}})


def test_metrics_are_of_teams_with_a_policy_alone(teams: Teams, own: Server) -> None:
    """Any name may be made up by a client; before there are quotas no team has a series."""
    teams.lease("agent", team="made-up", min_memory_mb=100)

    def series() -> dict[str, float]:
        lines = teams.ask("viewer", "GET", "/metrics").text.splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if line.startswith("gpu_broker_team_"))
        return {name.removeprefix("gpu_broker_team_"): float(value) for name, value in pairs}

    assert series() == {}
    teams.ask("operator", "PUT", "/policy/teams", json={"teams": {"nlp": {"nominal_mb": 50}}})
    try:
        teams.lease("nlp", min_memory_mb=150)
        found = series()
        mib = 1024 * 1024
        assert found['nominal_bytes{team="nlp"}'] == 50 * mib
        assert found['used_bytes{team="nlp"}'] == 150 * mib
        assert found['borrowed_bytes{team="nlp"}'] == 100 * mib
        assert found['leases{team="nlp"}'] == 1
        assert "made-up" not in str(found)
        text = teams.ask("viewer", "GET", "/metrics").text
        with own.connect() as store:
            stats: Any = store.hgetall("gpu:{default}:stats")
        for name, counter in (("notices", "noticed"), ("withdrawals", "notices_withdrawn")):
            count = float(stats.get(counter, 0))
            assert f"gpu_broker_preemption_{name}_total {count}" in text
    finally:
        teams.ask("operator", "PUT", "/policy/teams", json={"teams": {}})


def test_renewal_tells_that_a_lease_is_taken_back_and_wanted(teams: Teams, own: Server) -> None:
    """For holders in any language, and on the clock of the SDK's own; null where it is not."""
    with LeaseClient(Store(own.url)) as client:
        eventually(client.devices, 20)
        client.set_policy(reclaim_after_s=1, preempt_grace_s=60)
        host = client.devices()[0].host
        ask = {"exclusive": True, "preemptible": True, "yields": True, "hostname": host}
        held = [teams.lease("agent", **ask).json() for _ in client.devices()]
        calm = teams.ask("agent", "POST", "/renew", json={"token": held[0]["token"]}).json()
        assert (calm["preempt_in_s"], calm["wanted"]) == (None, None)
        waiter = new_token()

        def noticed() -> bool:
            with pytest.raises(StillWaiting):
                client.acquire(
                    "urgent", memory_mb=10, exclusive=True, priority=5, host=host, token=waiter,
                    wait_s=0.01, keep_place=True,
                )  # fmt: skip
            return any(x.preempt_at_ms for x in client.leases())

        eventually(noticed, 30, every_s=0.5)
        (gone,) = (x.token for x in client.leases() if x.preempt_at_ms)
        assert client.request_yield(gone, waiter)
        said = teams.ask("agent", "POST", "/renew", json={"token": gone}).json()
        assert 0 < said["preempt_in_s"] <= 60
        assert said["wanted"]["agent"] == "urgent"
        client.release(waiter)
        again = teams.ask("agent", "POST", "/renew", json={"token": gone}).json()
        assert again["preempt_in_s"] is None
