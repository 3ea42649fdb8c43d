"""Sizes and times on the command line: `8GiB`, `512MiB`, bare MiB; `90s`, `10m`, bare seconds."""

from __future__ import annotations

import re

import click

SECONDS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}

MIB = {"": 1, "mib": 1, "m": 1, "gib": 1024, "g": 1024, "tib": 1024 * 1024, "t": 1024 * 1024}


class Size(click.ParamType[int]):
    """MiB."""

    name = "size"

    def convert(
        self, value: str | int, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Whole MiB; what is not a size ends the command with what one looks like."""
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", value.strip().lower())
        if not found or found[2] not in MIB:
            self.fail(f"{value!r} is not a size: 8GiB, 512MiB, or a number of MiB", param, ctx)
        return round(float(found[1]) * MIB[found[2]])


class Duration(click.ParamType[float]):
    """Seconds."""

    name = "time"

    def convert(
        self, value: str | float, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Seconds; what is not a time ends the command with what one looks like."""
        if isinstance(value, (int, float)):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", value.strip().lower())
        if not found or found[2] not in SECONDS:
            self.fail(f"{value!r} is not a time: 30s, 10m, 2h, or a number of seconds", param, ctx)
        return float(found[1]) * SECONDS[found[2]]
