"""Looks at the devices: their time, and what counts as too long."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING

from broker.attribution import sampler
from broker.attribution.processes import Programs
from broker.attribution.sampler import Sampler
from broker.devices.sample import Sample

if TYPE_CHECKING:
    import pytest


class Source:
    """Source without devices that answers when it is let, and began so many seconds before."""

    name = "smi"

    def __init__(self, began_before_s: float = 0.0) -> None:
        self.go = threading.Event()
        self._before_s = began_before_s

    def sample(self) -> Sample:
        began = time.monotonic() - self._before_s
        assert self.go.wait(10)
        return Sample((), "smi", began=began)

    def close(self) -> None:
        """Hold nothing."""


async def test_late_answer_has_the_time_at_which_its_driver_was_asked() -> None:
    """A look that ends what an earlier one began is as old as that one, and never newer."""
    for before_s, at_ms in ((0.0, 50_000), (2.0, 48_000), (-5.0, 50_000)):
        source = Source(before_s)
        source.go.set()
        looked = await Sampler(source, Programs(), "none", 5.0).look(50_000)
        assert looked is not None
        assert at_ms - 100 <= looked.sampled_ms <= at_ms
    source = Source(2.0)
    source.go.set()
    looked = await Sampler(source, Programs(), "none", 5.0).look(0)
    assert looked is not None
    assert looked.sampled_ms == 0, "unknown stays unknown"


async def test_look_is_overdue_by_what_looks_take_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that is known to be slow has twice its time."""
    monkeypatch.setattr(sampler, "LATE_S", 0.1)
    source = Source()
    looks = Sampler(source, Programs(), "none", 0.05)
    assert looks.overdue_s == 0.0
    assert await looks.look(1) is None
    assert looks.overdue_s == 0.0
    while not looks.overdue_s:
        assert await looks.look(1) is None
    await asyncio.sleep(0.4)
    source.go.set()
    while await looks.look(1) is None:
        pass
    assert looks.overdue_s == 0.0
    source.go.clear()
    began = time.monotonic()
    while not looks.overdue_s:
        assert await looks.look(1) is None
    assert time.monotonic() - began >= 0.9, "twice what the first one took"
    source.go.set()
