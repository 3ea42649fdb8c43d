"""A scenario file that a test writes, and its source."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from broker.devices.scenario.source import ScriptedSource

if TYPE_CHECKING:
    from pathlib import Path


class Script:
    """A scenario's file, and the source that follows it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "scenario.yaml"
        self.source = ScriptedSource(self.path, deadline_s=0.3)

    def write(self, content: str) -> Script:
        fresh = self.path.with_suffix(".new")
        fresh.write_text(textwrap.dedent(content))
        fresh.replace(self.path)
        return self

    def devices(self):
        sample = self.source.sample()
        assert (sample.source, sample.error) == ("scripted", None)
        return {device.uuid: device for device in sample.devices}

    def one(self):
        (device,) = self.devices().values()
        return device
