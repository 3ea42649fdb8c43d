"""Output to the terminal: the only way there, which escapes all text of others.

Colours are marks in the text until it is printed. The mark is another in each process, so no text
of others holds one.
"""

from __future__ import annotations

import re
import secrets
import sys
from typing import TYPE_CHECKING, Final

import click

from broker.text.printable import printable

if TYPE_CHECKING:
    from collections.abc import Iterable

MARK: Final = chr(0xF0000 + secrets.randbelow(0xFFFE))
"""Code point of plane 15, which has no characters: inside a text it is escaped."""

COLOURS: Final = {"red": 31, "green": 32, "yellow": 33}

MARKS: Final = re.compile(rf"{MARK}(\d+)m")

ENTER, LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
"""Escapes to the terminal's other screen, without a cursor, and back."""

HOME, CLEAR_LINE, END_OF_SCREEN = "\x1b[H", "\x1b[2K", "\x1b[J"


def paint(text: str, colour: str | None) -> str:
    """Mark a text with a colour of `COLOURS`; None: no colour."""
    plain = printable(text)
    return f"{MARK}{COLOURS[colour]}m{plain}{MARK}0m" if colour else plain


def bare(text: str) -> str:
    """Return the text without its colours."""
    return MARKS.sub("", text)


def one_line(text: str) -> str:
    """Return the text escaped, with its colours; a line end of others begins no line."""
    if bare(text).isprintable():
        return text
    parts = MARKS.split(text)  # text, code, text, code, ... text
    return "".join(f"{MARK}{part}m" if at % 2 else printable(part) for at, part in enumerate(parts))


def _rendered(line: str) -> str:
    return MARKS.sub("\x1b[\\1m", one_line(line))


def say(text: str, *, err: bool = False) -> None:
    """Print lines; on stderr one line. Without a terminal there are no colours."""
    lines = [text] if err else text.split("\n")
    click.echo("\n".join(map(_rendered, lines)), err=err)


def dump(text: str) -> None:
    """Print a file of ours as it is."""
    click.echo(text, nl=not text.endswith("\n"))


def enter_screen() -> None:
    """Go to the terminal's other screen."""
    sys.stdout.write(ENTER)


def draw_screen(lines: Iterable[str], *, colours: bool) -> None:
    """Draw lines over the present ones."""
    # Clear first: behind a full line the cursor stands on its last letter.
    shown = "".join(f"{CLEAR_LINE}{_rendered(x if colours else bare(x))}\n" for x in lines)
    sys.stdout.write(f"{HOME}{shown}{END_OF_SCREEN}")
    sys.stdout.flush()


def leave_screen() -> None:
    """Leave the terminal's other screen."""
    sys.stdout.write(LEAVE)
    sys.stdout.flush()
