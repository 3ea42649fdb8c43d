"""`gpu-broker policy apply` and `policy get -o yaml`: a policy as a file."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from agent_sdk.client import LeaseClient
from agent_sdk.errors import Conflict
from agent_sdk.store.store import Store
from agent_sdk.testing import _report
from tests.program import called

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.servers import Server


@pytest.fixture
def lab(server: Server) -> Iterator[LeaseClient]:
    """A pool of its own: 4 GPUs of 1000 MiB."""
    with LeaseClient(Store(server.url), pool=f"lab-{uuid4().hex[:8]}", hostname="h1") as client:
        _report(client, 4, 1000)
        yield client


class Files:
    """Calls of the command with a file."""

    def __init__(self, pool: LeaseClient, folder: Path) -> None:
        self._pool, self._folder = pool, folder

    def policy(self, *args: object, code: int = 0) -> str:
        where = {"REDIS_URL": self._pool.store.url, "GPU_BROKER_POOL": self._pool.keys.pool_name}
        done = called("policy", *args, **where)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stderr if code else done.stdout

    def apply(self, text: str, *args: str, code: int = 0) -> str:
        path = self._folder / "policy.yaml"
        path.write_text(text)
        return self.policy("apply", "-f", path, *args, code=code)

    def state(self) -> dict[str, Any]:
        return dict(json.loads(self.policy("get", "-o", "json")))


@pytest.fixture
def files(lab: LeaseClient, tmp_path: Path) -> Files:
    return Files(lab, tmp_path)


FILE = """\
idle_after_s: 20m
default_memory_mb: 1GiB
memory_limit: off
teams:
  nlp: {nominal: 2GiB, weight: 2, max_hold: 2d, max_priority: 5}
  vision:
    nominal: {gpus: 2}
    borrow_limit: 0
"""


def test_file_becomes_the_policy_as_one_version(files: Files, lab: LeaseClient) -> None:
    """Shown first, written once, told by two events; the same file again changes nothing."""
    before = files.state()
    dry = files.apply(FILE, "--dry-run")
    assert files.state() == before
    assert dry.splitlines()[-1] == "nothing is written"
    text = files.apply(FILE)
    assert text.splitlines()[:-1] == dry.splitlines()[:-1]
    assert "~ idle_after_s: 10m -> 20m" in text
    assert "+ team nlp: nominal 2GiB, weight 2, max_priority 5, max_hold 2d" in text
    assert "memory_limit" not in text
    after = files.state()
    assert after["version"] == before["version"] + 1
    assert after["policy"]["idle_after_s"] == 1200
    assert after["teams"]["nlp"]["max_hold_s"] == 172_800
    (vision,) = (team for team in lab.teams() if team.name == "vision")
    whole_mb = sum(x.total_mb - x.system_mb for x in lab.devices()) // 2
    assert (vision.nominal_mb, vision.borrow_mb, vision.lend_mb) == (whole_mb, 0, None)
    again = json.loads(files.apply(FILE, "-o", "json"))
    assert (again["changes"], again["written"], again["version"]) == ([], False, after["version"])


def test_yaml_of_the_policy_is_a_file_for_apply(files: Files) -> None:
    """The print of get is taken by apply; teams that are left out have no policy any more."""
    files.apply(FILE)
    shown = files.policy("get", "-o", "yaml")
    before = files.state()
    assert json.loads(files.apply(shown, "-o", "json"))["changes"] == []
    changed = files.apply(shown.replace("weight: 2", "weight: 3"), "-o", "json")
    assert json.loads(changed)["changes"] == [
        {"what": "changed", "team": "nlp", "field": "weight", "before": "2", "after": "3"}
    ]
    only = files.apply('teams:\n  "true": {nominal: 5MiB}\n')
    assert {line[:1] for line in only.splitlines()[:-1]} == {"+", "-"}
    assert files.state()["teams"].keys() == {"true"}
    assert files.state()["policy"] == before["policy"]
    assert '"true":' in files.policy("get", "-o", "yaml")
    files.apply("idle_after_s: 10m\n")
    assert files.state()["teams"].keys() == {"true"}
    files.apply("teams: {}\n")
    assert files.state()["teams"] == {}


def test_quotas_by_model_are_given_in_gpus_or_sizes(files: Files, lab: LeaseClient) -> None:
    """By the name or the model of a device; `get` prints them, and a change of one is shown."""
    device = lab.devices()[0]
    whole_mb = device.total_mb - device.system_mb
    text = f"""\
teams:
  nlp:
    nominal: 1GiB
    models:
      {device.name}: {{nominal: {{gpus: 2}}, borrow_limit: {{gpus: 1}}}}
      NVIDIA H900: {{borrow_limit: 2GiB}}
"""
    shown = files.apply(text)
    assert '"NVIDIA H900": {borrow_limit: 2GiB}' in shown
    (nlp,) = lab.teams()
    quotas = {model: (x.nominal_mb, x.borrow_mb) for model, x in nlp.models.items()}
    assert quotas == {device.model: (2 * whole_mb, whole_mb), "NVIDIA H900": (0, 2048)}
    assert nlp.nominal_mb == 1024
    again = files.policy("get", "-o", "yaml")
    assert json.loads(files.apply(again, "-o", "json"))["changes"] == []
    less = again.replace("borrow_limit: 2GiB", "borrow_limit: 0")
    assert json.loads(files.apply(less, "-o", "json"))["changes"] == [{
        "what": "changed", "team": "nlp", "field": "models: NVIDIA H900",
        "before": "{borrow_limit: 2GiB}", "after": "{borrow_limit: 0}",
    }]  # fmt: skip
    assert "models: NVIDIA H900: {borrow_limit: 0} -> none" in files.apply(
        "\n".join(line for line in less.splitlines() if "H900" not in line)
    )
    problems = files.apply(WRONG_MODELS, code=1)
    for says in ("weight is no field of a quota of L4", "needs gpus", "a/b is no model",
                 "none of model 'H9' is registered"):  # fmt: skip
        assert says in problems, problems


WRONG_MODELS = """\
teams:
  a: {models: {L4: {weight: 1}}}
  b: {models: {L4: {nominal: {}}}}
  c: {models: {a/b: {nominal: 1GiB}}}
  d: {models: {H9: {nominal: {gpus: 1}}}}
"""

WRONG = """\
idle_after: 20m
idle_after_s: soon
kill_on_oom: 1
overuse_action: shoot
teams:
  nlp:
    nominal: much
    wieght: 2
    max_priority: 10
    max_hold: 1.5s
  "a b": {}
  vision: {nominal: {gpus: 2, model: H900}}
  tail: [1]
"""


def test_every_problem_is_named_with_its_line(files: Files) -> None:
    """And a file with one good field among them writes nothing."""
    before = files.state()
    said = files.apply(WRONG + "default_memory_mb: 7\n", code=1)
    lines = [line.split(": ", 2)[2] for line in said.splitlines()]
    assert [line.partition(":")[0] for line in lines] == [f"line {n}" for n in
            (1, 2, 3, 4, 7, 8, 9, 10, 11, 12, 13)]  # fmt: skip
    assert "did you mean" in lines[0]
    assert "weight" in lines[5]
    assert "H900" in lines[9]
    assert "SIM" in lines[9] or "Simulated" in lines[9]
    assert files.state() == before


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "it is empty"),
        ("a: [", "it is no YAML"),
        ("- 1", "must be a mapping"),
        ("teams: {a: {}, a: {}}", "is there twice"),
        ("idle_after_s: 1\n", "must be 10 to"),
        ("idle_after_s: null\n", "must be text"),
        ("xid_actions: 79=explode", "must be as 31=suspect"),
        ("teams: {a: {nominal: {model: X}}}", "needs gpus"),
        ("teams: {a: {weight: 1.5}}", "must be a whole number"),
        ("teams: {a: {weight: {b: 1}}}", "must be a number"),
        ("!!python/object/apply:os.system [true]", "must be a mapping"),
    ],
)
def test_file_that_is_none_is_refused_in_words(files: Files, text: str, says: str) -> None:
    """With exit code 1, and a sentence without a traceback."""
    said = files.apply(text, code=1)
    assert says in said
    assert "Traceback" not in said


def test_null_takes_a_limit_away(files: Files) -> None:
    """A field that is left out of a team has none either."""
    files.apply("teams: {a: {max_leases: 2, max_ttl: 1h}}\n")
    text = files.apply("teams: {a: {max_leases: null}}\n")
    assert text.splitlines()[:2] == [
        "~ team a: max_leases: 2 -> no limit", "~ team a: max_ttl: 1h -> no limit"
    ]  # fmt: skip


def test_policy_that_changed_meanwhile_is_left(files: Files, lab: LeaseClient) -> None:
    """Written against the version that was read: two who apply at once do not undo each other."""
    version = lab.pool().policy_version
    lab.set_policy(idle_after_s=700)
    with pytest.raises(Conflict, match=f"at version {version + 1} by now"):
        lab.apply_policy({"idle_after_s": 800}, {"a": {}}, version=version)
    assert lab.pool().idle_after_s == 700
    assert lab.teams() == ()
    assert lab.apply_policy({}, {"a": {}}, version=version + 1) == version + 2


def test_safe_mode_leaves_only_its_end(files: Files) -> None:
    """The refusal is told; a file that switches it off may change the rest, too."""
    files.apply("safe_mode: true\nidle_after_s: 11m\n")
    assert "SAFE_MODE" in files.apply("idle_after_s: 12m\n", code=1)
    files.apply("safe_mode: false\nidle_after_s: 13m\nteams: {a: {}}\n")
    assert files.state()["policy"]["idle_after_s"] == 780
