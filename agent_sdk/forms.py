"""What a caller says, checked before anything is sent: names, whole numbers, times."""

from __future__ import annotations

import math
import re
from typing import Final

from agent_sdk.errors import error_for
from agent_sdk.keys import AGENT, HOST, MODEL, TOKEN

FORMS: Final = {"agent": AGENT, "host": HOST, "model": MODEL, "token": TOKEN}
"""What a name may look like, by what it names."""

WORDS: Final = re.compile(r"[a-z0-9=,]*")
"""What is set in words: one, or `name=word` by commas; nothing too."""


def milliseconds(seconds: float, name: str) -> int:
    """Seconds as whole milliseconds, rounded up: a little is not nothing.

    Raises:
        BadRequest: not a finite number, or negative.
    """
    if not isinstance(seconds, (int, float)) or not math.isfinite(seconds) or seconds < 0:
        raise error_for("bad_request", f"{name} must be a number of seconds >= 0, not {seconds!r}")
    return math.ceil(seconds * 1000)


def check_name(value: str, name: str) -> str:
    """A name that may go into keys, logs and pages.

    Raises:
        BadRequest: it has characters that may not.
    """
    form = FORMS[name]
    if not isinstance(value, str) or not form.fullmatch(value):
        raise error_for("bad_request", f"{name} must match {form.pattern}, not {value!r:.80}")
    return value


def check_whole(value: object, name: str) -> int:
    """A whole number.

    Raises:
        BadRequest: it is none; True and 2.0 are not.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise error_for("bad_request", f"{name} must be a whole number, not {value!r:.40}")
    return value


def check_words(value: str, name: str) -> str:
    """Words, as a policy has them.

    Raises:
        BadRequest: it has characters that no word has.
    """
    if not WORDS.fullmatch(value):
        raise error_for("bad_request", f"{name} must match {WORDS.pattern}, not {value!r:.80}")
    return value
