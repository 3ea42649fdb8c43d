"""Arguments of acquire, and text that is none."""

from __future__ import annotations

from tests.pools import token

NOT_NUMBERS = (
    "nan", "-nan", "inf", "-inf", "0x10", "1e3", "1e-3", "-1", "-0", "+1", "1.5", "1.", ".5", "",
    " 1", "1 ", "1\n", "1\0", "\x001", "1_000", "1,000", "1|2", "{1}", "abc", "1a", "true", "nil",
    "9223372036854775808", "18446744073709551616", "10000000000000", "9" * 100, "0" * 14,
    "\uff11", "\u0663", "\u00b2", "1\u00a0",
)  # fmt: skip
"""None of these is a decimal number of at most 13 digits."""


BAD_BYTES = (
    "|", "{", "}", ",", "=", "#", "*", "?", "[", "]", "%", "$", "^", "'", '"', "\\", "\0", "\x01",
    "\t", "\n", "\r", "\x1b", "\x7f", "\u00e9", "\u4e2d", "\u2028", "\U0001f600", ";", "<", "&",
    "~",
)  # fmt: skip
"""None of these may be in any name."""


DEFAULTS = {
    "token": token("a"), "agent": "agent", "memory_mb": 900, "devices": 1, "exclusive": 0,
    "ttl_ms": 30000, "max_hold_ms": 0, "priority": 0, "host": "*", "model": "*",
    "placement": "spread", "on_unavailable": "refuse", "client": "client", "pid": "1:1",
    "owner": "", "wait_ms": 0, "note": "", "uses": "",
}  # fmt: skip
"""acquire's arguments after the protocol number, in their order."""
