"""Telemetry is declared once: what a source tells and what Lua takes is what is declared."""

from __future__ import annotations

import re
from dataclasses import fields

from agent_sdk.scripts.source import lua_folder
from agent_sdk.state.finding_kinds import KINDS
from agent_sdk.state.telemetry import MEASUREMENTS
from broker.attribution.report import SILENT
from broker.devices.sample import DeviceSample

IDENTITY = {"index", "name", "model", "total_mb", "system_mb", "used_mb", "nvml_error", "parent",
            "one_lease", "runtime_id", "simulated", "unified", "unseen"}  # fmt: skip
"""Further facts of a source about a device, by the names in the store."""


def lua_fields() -> dict[str, str]:
    """The fields that `report` takes of a device, with their forms."""
    texts = [path.read_text() for path in (lua_folder() / "lib").glob("*.lua")]
    (text,) = (text for text in texts if "degraded = 'names'" in text)
    table = text[text.index("local FIELDS") : text.index("\n}", text.index("local FIELDS"))]
    return dict(re.findall(r"(\w+) = '(\w+)'", table))


def test_every_measurement_is_told_by_a_sample_and_taken_by_lua() -> None:
    """And nothing else that is a number is told."""
    told = {field.name for field in fields(DeviceSample)} - SILENT - {"listed"}
    assert told - IDENTITY == MEASUREMENTS.keys()
    taken = {name for name, form in lua_fields().items() if form == "number"}
    assert taken == MEASUREMENTS.keys()


def test_every_finding_is_taken_by_lua() -> None:
    """Its subjects are names of leases, or pids of processes; `limited` lists leases too."""
    taken = {name for name, form in lua_fields().items() if form == "names"}
    assert taken == KINDS.keys() | {"limited"}
