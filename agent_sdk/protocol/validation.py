"""Checks of a caller's arguments before any sending: names, whole numbers, times."""

from __future__ import annotations

import math
from operator import index
from typing import TYPE_CHECKING, Final

from agent_sdk.errors import error_for
from agent_sdk.keys import AGENT, HOST, MODEL, NAME_SHOWN, TEAM, TOKEN, model_of
from agent_sdk.protocol.sizes import mebibytes

if TYPE_CHECKING:
    from typing import SupportsFloat

FORMS: Final = {
    "agent": AGENT, "host": HOST, "model": MODEL, "token": TOKEN, "team": TEAM, "after": TOKEN,
}  # fmt: skip
"""Form of each kind of name."""


LONGEST_LINE: Final = 200

LONGEST_S: Final = 7 * 24 * 3600
"""Longest ttl, and longest wait, in seconds."""


def milliseconds(seconds: SupportsFloat, name: str, longest_s: float = math.inf) -> int:
    """Return seconds as whole milliseconds, rounded up: a little is not nothing.

    Raises:
        BadRequest: not a finite number, negative, or too long.
    """
    try:
        # float() reads text too, which is more often a mistake than a time.
        number = math.nan if isinstance(seconds, (str, bytes)) else float(seconds)
    except (OverflowError, TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or number < 0:
        raise error_for("bad_request", f"{name} must be a number of seconds >= 0, not {seconds!r}")
    if number > longest_s:
        raise error_for(
            "bad_request", f"{name} must be at most {longest_s:.0f} seconds, not {seconds!r}"
        )
    return math.ceil(number * 1000)


def ttl_milliseconds(seconds: SupportsFloat, name: str) -> int:
    """Return a time to live as whole milliseconds; 0: no end.

    Raises:
        BadRequest: it is neither 0 nor from a second to a week.
    """
    ttl_ms = milliseconds(seconds, name, LONGEST_S)
    if 0 < ttl_ms < 1000:  # noqa: PLR2004 - a second
        raise error_for(
            "bad_request", f"{name} must be 0 (no expiry) or at least 1 second, not {seconds!r}"
        )
    return ttl_ms


def check_size(value: object, name: str) -> int:
    """Return a size as text, such as `8GiB`, in MiB.

    Raises:
        BadRequest: it is no size; nor is a number, which has no unit.
    """
    found = mebibytes(value) if isinstance(value, str) else None
    if found is None:
        raise error_for(
            "bad_request",
            f"{name} must be a size as text, such as '8GiB', '512MiB' or '8g', not {value!r:.40}",
        )
    return found


def check_line(value: object, name: str) -> str:
    """Return a line for people.

    Raises:
        BadRequest: it is no text, too long, or has control characters.
    """
    if not isinstance(value, str) or not value.isprintable() or len(value.encode()) > LONGEST_LINE:
        raise error_for(
            "bad_request", f"{name} must be a printable line of at most {LONGEST_LINE} bytes"
        )
    return value


def check_name(value: str, name: str) -> str:
    """Return a name that may go into keys, logs and pages; an enum's member counts as its text.

    Raises:
        BadRequest: it has other characters.
    """
    form = FORMS[name]
    if not isinstance(value, str) or not form.fullmatch(value):
        raise error_for("bad_request", f"{name} must match {form.pattern}, not {value!r:.80}")
    return plain(value)


def check_model(value: str) -> str:
    """Return a model's name; a device's name as `status` shows it becomes that of its model.

    Raises:
        BadRequest: it is neither.
    """
    shown = isinstance(value, str) and NAME_SHOWN.fullmatch(value)
    return check_name(model_of(plain(value)) if shown else value, "model")


def plain(text: str) -> str:
    """Return a text as `str` itself: `str()` of an enum's member may be the member's name."""
    return str.__str__(text)


def check_choice(value: object, name: str, *choices: str) -> str:
    """Return the value if it is one of the choices.

    Raises:
        BadRequest: it is no choice.
    """
    if not isinstance(value, str) or value not in choices:
        said = " or ".join(map(repr, choices))
        raise error_for("bad_request", f"{name} must be {said}, not {value!r:.40}")
    return plain(value)


def check_flag(value: object, name: str) -> bool:
    """Return a truth value; numpy's and the numbers 0 and 1 count too.

    Raises:
        BadRequest: it is a text, of which "false" would be true.
    """
    if isinstance(value, (str, bytes)):
        raise error_for("bad_request", f"{name} must be true or false, not {value!r:.40}")
    return bool(value)


def check_range(value: object, name: str, least: int, most: int) -> int:
    """Return a whole number within bounds.

    Raises:
        BadRequest: it is no whole number, or out of bounds.
    """
    number = check_whole(value, name)
    if not least <= number <= most:
        raise error_for("bad_request", f"{name} must be {least} to {most}, not {number!r:.40}")
    return number


def check_whole(value: object, name: str) -> int:
    """Return a whole number; an enum's member and numpy's integers count as numbers.

    Raises:
        BadRequest: it is no whole number; True and 2.0 are none.
    """
    try:
        if not isinstance(value, bool):
            return index(value)  # type: ignore[arg-type] # it raises TypeError for others
    except TypeError:
        pass
    raise error_for("bad_request", f"{name} must be a whole number, not {value!r:.40}")


def json_number(value: object) -> int | float:
    """Turn a number without a form in JSON into one: numpy's, `Decimal`, a fraction.

    Raises:
        TypeError: it is no number.
    """
    try:
        return index(value)  # type: ignore[arg-type] # it raises TypeError for others
    except TypeError:
        return float(value)  # type: ignore[arg-type] # as above
