"""Errors of the SDK in the words of the command line: its options for the SDK's arguments."""

from __future__ import annotations

from typing import Final

OPTIONS: Final = {
    "after": "--after",
    "agent": "--agent",
    "devices": "--gpus",
    "host": "--host",
    "max_hold_s": "--time",
    "memory_mb": "--memory",
    "model": "--model",
    "note": "--note",
    "priority": "--priority",
    "team": "--team",
    "ttl_s": "--ttl",
    "wait_s": "--wait",
}
"""Option that sets each argument of the SDK."""


def in_options(text: str) -> str:
    """Replace the argument at the beginning of a message by its option."""
    name, space, rest = text.partition(" ")
    return f"{OPTIONS.get(name, name)}{space}{rest}"
