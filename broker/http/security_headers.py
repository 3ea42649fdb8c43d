"""Headers against misuse of answers by browsers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

HEADERS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cache-control", b"no-store"),
)
"""Headers of every answer that does not set them: no loading, framing, sniffing, caching."""

NAMES: Final = frozenset(name for name, _ in HEADERS)


def missing_from(headers: Iterable[tuple[bytes, bytes]]) -> Iterable[tuple[bytes, bytes]]:
    """Return each header that an answer does not set itself."""
    own = NAMES & {name for name, _ in headers}
    return [header for header in HEADERS if header[0] not in own] if own else HEADERS
