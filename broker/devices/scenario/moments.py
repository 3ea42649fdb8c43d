"""Scenario: the state of a machine's GPUs at each moment, read from a file.

docs/reference/scenarios.md describes the form of the file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, get_args

from agent_sdk.keys import model_of
from agent_sdk.settings import whole_environment
from agent_sdk.state.telemetry import MAX_MB, of_kind
from broker.devices.last_known import Fault, quiet
from broker.devices.sample import (
    MAX_DEVICES,
    ComputeMode,
    DeviceSample,
    GpuProcess,
    State,
    name_of,
    percent,
    system_mb_of,
    uuid_of,
)
from broker.devices.scenario.yaml_nodes import ScenarioError, told_by

if TYPE_CHECKING:
    from broker.devices.scenario.yaml_nodes import YamlNode

MAX_STEPS = 1000
MAX_PROCESSES = 1000
MAX_PID = 4_194_304  # Linux's highest

_NUMBERS = of_kind("number")
_WHOLES = {"total_mb": (1, MAX_MB), "used_mb": (0, MAX_MB), **of_kind("count")}
_NEVER_NULL = {"index": (0, MAX_DEVICES - 1), "system_mb": (0, MAX_MB)}
_FLAGS = tuple(of_kind("flag"))
_WORDS = ("name", "model", "reason", "nvml_error", "parent", "one_lease", "unseen")
_CHOICES = {"state": get_args(State), "compute_mode": get_args(ComputeMode)}
_DEVICE = (
    "uuid", *_CHOICES, *_WORDS, *_NEVER_NULL, *_WHOLES, *_NUMBERS, *_FLAGS, "processes", "xids",
    "hang_s",
)  # fmt: skip
_PROCESS = ("pid", "memory_mb", "busy_pct", "draws", "computes")
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}", re.ASCII)
_NO_MEMORY = "The scenario does not tell how much memory this GPU has"
_WHY = {
    "lost": "The scenario says that this GPU is lost",
    "error": "The scenario says that this GPU does not answer",
}


@dataclass(frozen=True, slots=True)
class Step:
    """State of the machine from a moment on.

    Attributes:
        after_s: seconds since the scenario's start.
        devices: those that it lists; their xids come with this step and with no other.
        hangs: UUID and seconds of each whose driver hangs from this moment on.
        error: the reason for which no driver answers; None: one does.
    """

    after_s: float
    devices: tuple[DeviceSample, ...] = ()
    hangs: tuple[tuple[str, float], ...] = ()
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Scenario:
    """Steps, the first at 0 and each later than the one before."""

    steps: tuple[Step, ...]
    driver_version: str | None = None


def scenario_of(content: str) -> Scenario:
    """Return the scenario in a file's content.

    Raises:
        ScenarioError: it is invalid; one sentence gives the reason and the line.
    """
    parts = told_by(content, "a scenario").mapping(("steps", "driver_version"))
    if "steps" not in parts:
        raise ScenarioError("line 1: a scenario needs steps")
    said: dict[str, dict[str, Any]] = {}
    steps: list[Step] = []
    for told in parts["steps"].items("a step", MAX_STEPS):
        step = _step(told, said)
        if step.after_s <= (steps[-1].after_s if steps else -1):
            raise told.wrong("must come after the one before it")
        if not steps and step.after_s:
            raise told.wrong("is the first: its after_s must be 0")
        steps.append(step)
    if not steps:
        raise parts["steps"].wrong("must have one at least")
    version = parts.get("driver_version")
    return Scenario(tuple(steps), version.words() if version else None)


def _step(told: YamlNode, said: dict[str, dict[str, Any]]) -> Step:
    """Return one step, and update `said`.

    `said` maps each UUID to the values known so far of that device.
    """
    parts = told.mapping(("after_s", "devices", "error"))
    after_s = parts["after_s"].number(0, 10**9) if "after_s" in parts else 0.0
    if "error" in parts:
        return Step(after_s, error=parts["error"].words() or "the scenario names no reason")
    if "devices" not in parts:
        raise told.wrong("needs devices, or an error")
    listed: dict[str, DeviceSample] = {}
    hangs: list[tuple[str, float]] = []
    for place, each in enumerate(parts["devices"].items("a device", MAX_DEVICES)):
        fields = each.mapping(_DEVICE)
        uuid = uuid_of(fields["uuid"].words()) if "uuid" in fields else ""
        if not uuid:
            raise each.wrong("needs a uuid: 1 to 80 letters, digits, and . _ : / -")
        if uuid in listed:
            raise each.wrong(f"{uuid} is listed twice in this step")
        if uuid not in said and "total_mb" not in fields:
            raise each.wrong(f"{uuid} needs total_mb where it is listed first")
        known = said.setdefault(uuid, {"index": place})
        known.update(_said(fields, known))
        xids = [xid.whole(0, 65535) for xid in _list(fields, "xids", "an xid")]
        listed[uuid] = replace(_device(uuid, known), xids=tuple(xids))
        if "hang_s" in fields:
            hangs.append((uuid, fields["hang_s"].number(0, 10**9)))
    for device in listed.values():
        if device.parent and device.parent not in listed:
            raise told.wrong(f"lists {device.uuid}, but not its parent {device.parent}")
    return Step(after_s, tuple(listed.values()), tuple(hangs))


def _list(fields: dict[str, YamlNode], name: str, what: str) -> list[YamlNode]:
    return fields[name].items(what, MAX_PROCESSES) if name in fields else []


def _said(fields: dict[str, YamlNode], before: dict[str, Any]) -> dict[str, Any]:
    """Return the values that a step gives a device; a reason lasts as long as its state."""
    found: dict[str, Any] = {}
    for name, told in fields.items():
        if name in _NEVER_NULL:
            found[name] = told.whole(*_NEVER_NULL[name])
        elif name in {*_WHOLES, *_NUMBERS, *_FLAGS, *_WORDS, "processes"}:
            found[name] = None if told.null else _value(name, told)
    for name in _CHOICES.keys() & fields.keys():
        found[name] = fields[name].words()
        if found[name] not in _CHOICES[name]:
            choices = ", ".join(filter(None, _CHOICES[name]))
            raise fields[name].wrong(f"must be one of {choices}")
    if found.get("state", before.get("state")) != before.get("state"):
        found.setdefault("reason", None)
    return found


def _value(name: str, told: YamlNode) -> object:
    if name == "processes":
        return tuple(_process(each) for each in told.items("a process", MAX_PROCESSES))
    if name in _WHOLES:
        return told.whole(*_WHOLES[name])
    if name in _NUMBERS:
        return told.number(*_NUMBERS[name])
    return told.flag() if name in _FLAGS else told.words()


def _process(told: YamlNode) -> GpuProcess:
    fields = told.mapping(_PROCESS)
    if "pid" not in fields:
        raise told.wrong("needs a pid")
    memory, busy = fields.get("memory_mb"), fields.get("busy_pct")
    contexts = {name: fields[name].flag() for name in ("draws", "computes") if name in fields}
    return GpuProcess(
        _pid(fields["pid"]),
        None if memory is None or memory.null else memory.whole(0, MAX_MB),
        None if busy is None or busy.null else busy.number(0, 100),
        **contexts,
    )


def _pid(told: YamlNode) -> int:
    variable = _VARIABLE.fullmatch(told.words())
    if variable is None:
        return told.whole(1, MAX_PID)
    value = whole_environment().get(variable[1], "")
    if not re.fullmatch(r"[0-9]{1,7}", value, re.ASCII) or not 1 <= int(value) <= MAX_PID:
        raise told.wrong(f"is ${{{variable[1]}}}, and the environment has no process id there")
    return int(value)


def _device(uuid: str, said: dict[str, Any]) -> DeviceSample:
    """Return the device, with every missing value derived from the others."""
    total_mb, state = said.get("total_mb"), said.get("state", "ok")
    name = name_of(said.get("name") or f"Scripted {said.get('model') or f'GPU {total_mb} MiB'}")
    used_mb = sum(process.memory_mb or 0 for process in said.get("processes") or ())
    made_up = {
        "system_mb": system_mb_of(total_mb),
        "used_mb": used_mb,
        "memory_utilization_pct": percent(said.get("used_mb", used_mb), total_mb),
        "processes": (),
    }
    words = {
        "name": name,
        "model": model_of(said.get("model") or name),
        "reason": said.get("reason") or _WHY.get(state) or ("" if total_mb else _NO_MEMORY),
        **{name: said.get(name) or "" for name in ("parent", "one_lease", "unseen")},
    }
    device = DeviceSample(**made_up | said | words | {"uuid": uuid})
    if state not in _WHY:
        return device
    return replace(quiet(device, Fault(state, device.reason)), parent=device.parent)
