"""Periods of readings about the past: from when until when, on the pool's clock."""

from __future__ import annotations

import operator
import re
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Final

from agent_sdk.errors import error_for

if TYPE_CHECKING:
    from typing import TypeAlias

    Instant: TypeAlias = str | int | timedelta | date | datetime

DAY_MS: Final = 86_400_000
HOUR_MS: Final = 3_600_000

LATEST_MS: Final = 253_402_300_799_000
"""Last second of the year 9999, after which no day has a name."""

_UNITS: Final = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}

_AGO: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)(s|m|min|h|d|w|)")

FORMS: Final = "30d, 12h or 90m before now, 2026-11-30 (UTC) or 2026-11-30T12:00"
"""Forms of a time as text, in words."""


def instant(text: str) -> timedelta | date | datetime:
    """Return the time that a text means: a time before now, a day of UTC, or a time of UTC.

    Raises:
        BadRequest: it has no known form.
    """
    said = text.strip()
    if ago := _AGO.fullmatch(said.lower()):
        return timedelta(seconds=min(float(ago[1]) * _UNITS[ago[2]], LATEST_MS / 1000))
    try:
        if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", said):
            return date.fromisoformat(said)
        if re.match(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ]", said):
            return datetime.fromisoformat(said)
    except ValueError:
        pass
    raise error_for("bad_request", f"{text!r:.60} is no time: {FORMS}")


def at_ms(of: Instant, now_ms: int, *, to_the_end: bool = False) -> int:
    """Return a time in ms on the pool's clock.

    Args:
        of: ms on that clock, a time before now, a time (without a zone: of UTC), a day of UTC, or
            one of these as text; see `instant`.
        now_ms: now, on the pool's clock.
        to_the_end: a day means its end, not its beginning.

    Raises:
        BadRequest: a text has no known form, or it is no time at all.
    """
    if isinstance(of, str):
        of = instant(of)
    if isinstance(of, timedelta):
        found = now_ms - of // timedelta(milliseconds=1)
    elif isinstance(of, datetime):
        aware = of if of.tzinfo else of.replace(tzinfo=UTC)
        found = (aware - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
    elif isinstance(of, date):
        found = (of - date(1970, 1, 1)).days * DAY_MS + (DAY_MS if to_the_end else 0)
    else:
        found = _whole_ms(of)
    return min(max(0, found), LATEST_MS)


def _whole_ms(of: int) -> int:
    try:
        return operator.index(of)
    except TypeError:
        said = f"{of!r:.60} is no time: {FORMS}; or whole ms since 1970 as an int"
        raise error_for("bad_request", said) from None


def day_of(ms: int) -> str:
    """Return the day of a time, as `2026-11-30`, of UTC."""
    return (date(1970, 1, 1) + timedelta(days=ms // DAY_MS)).isoformat()
