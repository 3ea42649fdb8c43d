"""Suggestions for an unknown name: the nearest known names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

MOST: Final = 3


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Find the names that may have been meant, the likeliest first; letter case is no typo."""
    from difflib import get_close_matches  # noqa: PLC0415 - only where a name is wrong

    by_plain = {each.lower(): each for each in sorted(known, reverse=True)}
    return [by_plain[each] for each in get_close_matches(name.lower(), by_plain, MOST)]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Ask in a sentence for the names that may have been meant; empty where none is near."""
    found = nearest(name, known)
    return f"did you mean {' or '.join(found)}?" if found else ""
