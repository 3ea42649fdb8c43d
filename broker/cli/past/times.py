"""Times of the past on the command line: `30d`, `12h`, `2026-11-30`; and times of UTC as text."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from agent_sdk.errors import BadRequest
from agent_sdk.usage.period import instant

if TYPE_CHECKING:
    from datetime import date, timedelta


class PastTime(click.ParamType["timedelta | date | datetime"]):
    """Click parameter type: a time before now, a day of UTC, or a time of UTC."""

    name = "time"

    def convert(
        self,
        value: timedelta | date | datetime | str,
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> timedelta | date | datetime:
        """Return the time; other text ends the command with examples of one."""
        if not isinstance(value, str):
            return value
        try:
            return instant(value)
        except BadRequest as error:
            self.fail(str(error), param, ctx)


def utc(ms: int) -> str:
    """Return a time in ms as `2026-11-30T12:00:00Z`; what no calendar has, as the number."""
    try:
        found = datetime.fromtimestamp(ms // 1000, UTC)
    except (OverflowError, ValueError):
        return str(ms)
    return found.strftime("%Y-%m-%dT%H:%M:%SZ")


def short_utc(ms: int) -> str:
    """Return a time in ms for people, as `2026-11-30 12:00`."""
    return utc(ms)[:16].replace("T", " ")
