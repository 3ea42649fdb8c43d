"""Sizes and times on the command line: `8GiB`, `8g`, bare MiB; `90s`, `10m`, bare seconds."""

from __future__ import annotations

import math
import re
from typing import Final

import click

from agent_sdk.protocol.sizes import EXAMPLES, has_unit, meant_gib, mebibytes

SECONDS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}

LONGEST_S: Final = 36_500 * 86_400.0
"""Longest time, a hundred years: clocks, calendars and JSON have room for its end."""


class BareMiB(int):
    """MiB written without a unit."""


class Size(click.ParamType[int]):
    """Click parameter type: a size in MiB."""

    name = "size"

    def convert(
        self, value: str | int, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Return whole MiB; other text ends the command with examples of a size."""
        if isinstance(value, int):
            return value
        memory_mb = mebibytes(value)
        if memory_mb is None:
            self.fail(f"{value!r} is not a size: {EXAMPLES}", param, ctx)
        return memory_mb if has_unit(value) else BareMiB(memory_mb)


def doubt(memory_mb: int, name: str) -> str:
    """Ask whether GiB were meant by a few MiB without a unit; else return an empty text."""
    asks = meant_gib(memory_mb, "{}GiB") if isinstance(memory_mb, BareMiB) else ""
    return f"{name} {memory_mb}: {asks}" if asks else ""


class Duration(click.ParamType[float]):
    """Click parameter type: a time in seconds.

    Args:
        longest_s: a longer time ends the command.
    """

    name = "time"

    def __init__(self, longest_s: float = LONGEST_S) -> None:
        self._longest_s = longest_s

    def convert(
        self, value: str | float, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return seconds; other text ends the command with examples of a time."""
        if isinstance(value, (int, float)):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", value.strip().lower())
        if not found or found[2] not in SECONDS:
            self.fail(f"{value!r} is not a time: 30s, 10m, 2h, or a number of seconds", param, ctx)
        seconds = float(found[1]) * SECONDS[found[2]]
        if seconds > self._longest_s:
            self.fail(
                f"{value!r:.40} is too long: at most {self._longest_s / 86400:g}d", param, ctx
            )
        return seconds


class Bounded(click.FloatRange):
    """Click parameter type: a number within bounds.

    `nan` is in none, although no comparison shows that.
    """

    def convert(
        self, value: str | float, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the number; one outside of the bounds ends the command."""
        number: float = super().convert(value, param, ctx)  # type: ignore[arg-type] # it reads text
        if math.isnan(number):
            self.fail(f"{value!r} is no number", param, ctx)
        return number
