"""Trouble and warnings of a host, in sentences, from a sample of its GPUs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from broker.devices.last_known import UNNAMED

if TYPE_CHECKING:
    from broker.devices.sample import Sample

EMPTY: Final = {
    "nvml": "NVML works here, and lists no GPU",
    "smi": "nvidia-smi works here, and lists no GPU",
}
"""Words for a driver that was asked for and has nothing to tell, by source."""

MOST: Final = 512
"""Most bytes of each text, as `lua/report.lua` takes them."""


def trouble_of(sample: Sample) -> str:
    """Return why GPUs of this host are not seen; empty: all are.

    A source that was never asked for any is no trouble.
    """
    if sample.source == "none":
        return ""
    if sample.source in EMPTY and not sample.devices and not sample.error:
        return EMPTY[sample.source]
    unnamed: dict[str, list[str]] = {}
    for device in sample.devices:
        if device.uuid.startswith(UNNAMED):
            unnamed.setdefault(device.reason, []).append(str(device.index))
    said = [sample.error or ""] if sample.error not in unnamed else []
    said += [
        f"GPU{'s' * (len(places) > 1)} {', '.join(places)} cannot be identified: {reason}"
        for reason, places in unnamed.items()
    ]
    return _line(said)


def warning_of(sample: Sample) -> str:
    """Return what this host's operator should know although GPUs are seen; empty: nothing."""
    return _line(
        [sample.error or "" if sample.source == "none" else "", *dict.fromkeys(sample.warnings)]
    )


def slow(driver: str, seconds: float, *, persists: bool) -> str:
    """Return the warning about a slow driver, with what helps."""
    said = f"{driver} takes {seconds:.1f} s to answer"
    if persists:
        return f"{said}: looks at the GPUs are as old as that"
    return f"{said}, and persistence mode is off: turn it on (nvidia-persistenced)"


def without_numbers(text: str) -> str:
    """Return a sentence without its numbers: one that counts seconds stays the same one."""
    return re.sub(r"\d+", "", text)


def _line(sentences: list[str]) -> str:
    joined = "; ".join(filter(None, sentences))
    plain = "".join(letter if letter.isprintable() else "?" for letter in joined)
    return plain.encode(errors="replace")[:MOST].decode(errors="ignore")
