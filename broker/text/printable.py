"""Escapes that make any foreign text printable on a terminal or in a log.

A name, a reason, a program's name, an error of a server may hold sequences that rename the window,
clear the screen, set the clipboard, or turn the order of the letters around.
"""

from __future__ import annotations


def printable(text: str) -> str:
    r"""Escape all that does not print, as Python does (`\x1b`, `\u202e`, `\n`).

    `str.isprintable` decides: no control characters (C0, C1, DEL), no formats (bidi,
    zero width), no line ends but the space, no lone surrogates.
    """
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )
