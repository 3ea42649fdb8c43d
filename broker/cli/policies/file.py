"""File of a policy: the pool's fields and the policies of all teams, as YAML.

A file is read as a whole: every problem in it is named with its line, and a file with one changes
nothing.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import click

from agent_sdk.errors import BadRequest
from agent_sdk.keys import MODEL, TEAM
from agent_sdk.policy import FIELDS, WORDS, PolicyField
from agent_sdk.protocol.sizes import EXAMPLES, mebibytes
from agent_sdk.teams import policy as team_policy
from agent_sdk.teams.policy import MOST_MODELS, MOST_TEAMS, ModelQuota, TeamPolicy
from broker.devices.scenario.yaml_nodes import ScenarioError, told_by
from broker.text.suggest import did_you_mean
from broker.text.units import Duration

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from agent_sdk.state.devices import DeviceStatus
    from broker.devices.scenario.yaml_nodes import YamlNode

NAMES: Final = {
    "nominal": "nominal_mb",
    "borrow_limit": "borrow_mb",
    "lend_limit": "lend_mb",
    "weight": "weight",
    "max_priority": "max_priority",
    "max_leases": "max_leases",
    "max_hold": "max_hold_s",
    "max_ttl": "max_ttl_s",
    "max_waiters": "max_waiters",
}
"""Names of a team's fields in a file, with those of `agent_sdk.teams.policy`."""

_IN_FILE: Final = {field: of for of, field in NAMES.items()}

TEAMS: Final = "teams"

MODELS: Final = "models"

MODEL_NAMES: Final = {of: name for of, name in NAMES.items() if name in team_policy.MODEL_FIELDS}
"""Names of the fields of a quota by model, of those of a team."""

GPUS: Final = ("gpus", "model")

DURATION: Final = Duration()

PLAIN: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")

UNITS: Final = (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1))

RESERVED: Final = frozenset({"true", "false", "yes", "no", "on", "off", "null", "y", "n"})
"""Words that YAML reads as something else than text."""


class PolicyFileError(ValueError):
    """Error of a file: a line for each problem."""


@dataclass(slots=True)
class PolicyFile:
    """Content of a file.

    Attributes:
        pool: the fields that it names.
        teams: the policies of all teams; None: it does not name teams.
        computed: sentences about quotas that were given in GPUs.
    """

    pool: dict[str, Any] = field(default_factory=dict)
    teams: dict[str, TeamPolicy] | None = None
    computed: list[str] = field(default_factory=list)


def policy_file(content: str, devices: Iterable[DeviceStatus]) -> PolicyFile:
    """Return the policy in a file's content.

    Raises:
        PolicyFileError: it is invalid; the message has a line for each problem.
    """
    reader = _Reader(tuple(devices))
    try:
        root = told_by(content, "a policy").entries()
    except ScenarioError as error:
        raise PolicyFileError(str(error)) from None
    for name, value in root:
        reader.field(name, value)
    if reader.problems:
        raise PolicyFileError("\n".join(reader.problems))
    return reader.found


class _Reader:
    """Reader that goes on after a problem."""

    def __init__(self, devices: tuple[DeviceStatus, ...]) -> None:
        self.found = PolicyFile()
        self.problems: list[str] = []
        self._devices = devices

    def field(self, name: YamlNode, value: YamlNode) -> None:
        """Take a field of the pool, or all teams."""
        try:
            if name.what == TEAMS:
                self._teams(value)
            elif name.what not in FIELDS:
                raise _unknown(name, "the policy", [*FIELDS, TEAMS])
            else:
                self.found.pool[name.what] = _pool_value(FIELDS[name.what], value)
        except ScenarioError as error:
            self.problems.append(str(error))

    def _teams(self, node: YamlNode) -> None:
        self.found.teams = {}
        if node.null:
            return
        entries = node.entries()
        if len(entries) > MOST_TEAMS:
            raise node.wrong(f"has more than {MOST_TEAMS} teams")
        for name, value in entries:
            try:
                if not TEAM.fullmatch(name.what):
                    raise name.wrong("is no name of a team: 1 to 64 of A-Z a-z 0-9 . _ -")
                self.found.teams[name.what] = self._team(name.what, value)
            except ScenarioError as error:
                self.problems.append(str(error))

    def _team(self, team: str, node: YamlNode) -> TeamPolicy:
        values: dict[str, Any] = {}
        for name, value in [] if node.null else node.entries():
            try:
                if name.what == MODELS:
                    values[MODELS] = self._models(team, value)
                    continue
                if name.what not in NAMES:
                    raise _unknown(name, f"team {team}", [*NAMES, MODELS])
                declared = team_policy.FIELDS[NAMES[name.what]]
                values[declared.name] = self._team_value(team, declared, value)
            except ScenarioError as error:
                self.problems.append(str(error))
        return TeamPolicy(**{name: value for name, value in values.items() if value is not None})

    def _models(self, team: str, node: YamlNode) -> dict[str, ModelQuota]:
        """Return the quotas by model, each by the name that devices have."""
        found: dict[str, ModelQuota] = {}
        entries = [] if node.null else node.entries()
        if len(entries) > MOST_MODELS:
            raise node.wrong(f"has more than {MOST_MODELS} models")
        for name, value in entries:
            model = self._known_model(name)
            if model in found:
                raise name.wrong(f"is {model}, which has a quota already")
            values: dict[str, Any] = {}
            for field_name, each in [] if value.null else value.entries():
                if field_name.what not in MODEL_NAMES:
                    raise _unknown(field_name, f"a quota of {model}", MODEL_NAMES)
                declared = team_policy.FIELDS[MODEL_NAMES[field_name.what]]
                values[declared.name] = self._team_value(team, declared, each, model)
            found[model] = ModelQuota(**{x: mb for x, mb in values.items() if mb is not None})
        return found

    def _known_model(self, name: YamlNode) -> str:
        """Return a model that may be named: of a registered device, or one that is to come."""
        of = {x.name: x.model for x in self._devices}
        model = of.get(name.what, name.what)
        if not MODEL.fullmatch(model):
            raise name.wrong("is no model: 1 to 64 of A-Z a-z 0-9 . _ - and blanks")
        if self._devices and model not in {x.model for x in self._devices}:
            self.found.computed.append(
                f"no device of model {model} is registered: its quota counts when one is"
            )
        return model

    def _team_value(
        self, team: str, declared: PolicyField, node: YamlNode, model: str | None = None
    ) -> int | None:
        if node.null:
            return None
        in_gpus = declared.name == "nominal_mb" or model is not None
        if in_gpus and node.is_mapping:
            return self._gpus(team, declared, node, model)
        return _checked(declared, _number(declared, node), node)

    def _gpus(self, team: str, declared: PolicyField, node: YamlNode, of: str | None = None) -> int:
        """Return the MiB of whole GPUs, by the registered devices of their model."""
        parts = node.mapping(GPUS if of is None else GPUS[:1])
        if "gpus" not in parts:
            raise node.wrong("needs gpus: a number of GPUs")
        count = parts["gpus"].whole(0, 1_000_000)
        model = parts["model"].words() if "model" in parts else of
        of_model = [x for x in self._devices if not x.parent and model in {None, x.model, x.name}]
        sizes = {x.total_mb - x.system_mb for x in of_model if x.total_mb}
        if not sizes:
            models = sorted({x.model for x in self._devices})
            named = f"of model {model!r} " if model else ""
            raise node.wrong(
                f"is in GPUs, and none {named}is registered: "
                + (f"there are {', '.join(models)}" if models else "name a size, as 96GiB")
            )
        if model is None and len(sizes) > 1:
            raise node.wrong("is in GPUs, and the pool has several sizes: name the model")
        each_mb = max(sizes)
        self.found.computed.append(
            f"team {team}: {_IN_FILE[declared.name]} {count} GPUs"
            f"{f' of {model}' if model else ''} are "
            f"{count} x {each_mb} = {count * each_mb} MiB"
        )
        return count * each_mb


def _unknown(name: YamlNode, whose: str, known: Iterable[str]) -> ScenarioError:
    names = list(known)
    meant = did_you_mean(name.what, names) or f"it may have {', '.join(names)}"
    return name.wrong(f"is no field of {whose}; {meant}")


def _pool_value(declared: PolicyField, node: YamlNode) -> bool | int | str:
    if declared.kind == "flag":
        return node.flag()
    if declared.kind == "number":
        return _checked(declared, _number(declared, node), node)
    words = node.words()
    try:
        declared.to_store(words)
    except BadRequest:
        raise node.wrong(f"must be {declared.accepts}, not {words[:40]!r}") from None
    return words


def _number(declared: PolicyField, node: YamlNode) -> int:
    """Return a number: of a size MiB, of a time seconds."""
    if node.is_mapping:
        raise node.wrong("must be a number")
    said = node.words()
    if declared.name.endswith("_mb"):
        memory_mb = mebibytes(said)
        if memory_mb is None:
            raise node.wrong(f"must be a size: {EXAMPLES}, not {said[:40]!r}")
        return memory_mb
    if not declared.name.endswith("_s"):
        return node.whole(declared.least, declared.most)
    try:
        seconds = DURATION.convert(said, None, None)
    except click.BadParameter as error:
        raise node.wrong(error.message.removeprefix(f"{said!r} ")) from None
    if seconds != int(seconds):
        raise node.wrong("must be whole seconds")
    return int(seconds)


def _checked(declared: PolicyField, value: int, node: YamlNode) -> int:
    if not declared.least <= value <= declared.most:
        raise node.wrong(f"must be {declared.accepts}, not {value}")
    return value


def as_yaml(
    pool: Mapping[str, Any], teams: Mapping[str, TeamPolicy], *, version: int, name: str
) -> str:
    """Return the file of a policy, which `policy apply` takes."""
    lines = [f"# Policy of the pool {name}, version {version}"]
    lines += [f"{field}: {said(FIELDS[field], value)}" for field, value in pool.items()]
    lines.append(f"{TEAMS}:" if teams else f"{TEAMS}: {{}}")
    for team, policy in sorted(teams.items()):
        values = team_values(policy)
        lines.append(f"  {_quoted(team)}:" if values else f"  {_quoted(team)}: {{}}")
        lines += [f"    {field}: {value}" for field, value in values.items() if field != MODELS]
        lines += _model_lines(policy)
    return "\n".join(lines)


def team_values(policy: TeamPolicy) -> dict[str, str]:
    """Return a team's fields as a file has them; those that are their default are left out."""
    values = {of: (team_policy.FIELDS[name], getattr(policy, name)) for of, name in NAMES.items()}
    found = {of: said(x, value) for of, (x, value) in values.items() if value != x.default}
    if policy.models:
        found[MODELS] = (
            f"{{{', '.join(f'{_quoted(x)}: {y}' for x, y in models_of(policy).items())}}}"
        )
    return found


def models_of(policy: TeamPolicy) -> dict[str, str]:
    """Return a team's quotas by model, each as a file has it."""
    return {model: _quota(of) for model, of in sorted(policy.models.items())}


def _quota(quota: ModelQuota) -> str:
    values = {of: (team_policy.FIELDS[name], getattr(quota, name)) for of, name in
              MODEL_NAMES.items()}  # fmt: skip
    words = [f"{of}: {said(x, mb)}" for of, (x, mb) in values.items() if mb != x.default]
    return f"{{{', '.join(words)}}}"


def _model_lines(policy: TeamPolicy) -> list[str]:
    quotas = models_of(policy)
    lines = [f"    {MODELS}:"] if quotas else []
    return lines + [f"      {_quoted(model)}: {quota}" for model, quota in quotas.items()]


def said(declared: PolicyField, value: bool | int | str | None) -> str:
    """Return a value as a file has it: sizes in GiB and times in hours where they are whole."""
    if isinstance(value, str):
        return value if declared.kind in WORDS and value not in RESERVED else json.dumps(value)
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if value and declared.name.endswith("_mb"):
        return f"{value // 1024}GiB" if value % 1024 == 0 else f"{value}MiB"
    if value and declared.name.endswith("_s"):
        unit, seconds = next(x for x in UNITS if value % x[1] == 0)
        return f"{value // seconds}{unit}"
    return str(value)


def _quoted(name: str) -> str:
    plain = PLAIN.fullmatch(name) and name.lower() not in RESERVED
    return name if plain else json.dumps(name)
