"""Flags that tell inference engines how much of a GPU they may take.

Each engine takes a share of another quantity. Shares are rounded down to two digits, so that no
engine takes more than the lease. No engine reads its share from the environment: the flag is
added to the command.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ACTIVATIONS: Final = 0.1
"""Share of a lease that SGLang takes beside weights and KV cache."""


@dataclass(frozen=True, slots=True)
class Engine:
    """Inference engine.

    Attributes:
        flags: the names of the option; the first is the one that we add.
        share: its value for the MiB of a lease and the MiB of its GPU.
    """

    flags: tuple[str, ...]
    share: Callable[[int, int], float]


def _of_total(leased_mb: int, total_mb: int) -> float:
    return leased_mb / total_mb


def _without_activations(leased_mb: int, total_mb: int) -> float:
    return leased_mb * (1 - ACTIVATIONS) / total_mb


def _of_what_weights_leave(leased_mb: int, total_mb: int) -> float:
    """Return the share of the memory left by weights of up to half the lease."""
    return leased_mb / (2 * total_mb - leased_mb)


ENGINES: Final = {
    "vllm": Engine(("--gpu-memory-utilization", "--gpu_memory_utilization"), _of_total),
    "sglang": Engine(("--mem-fraction-static",), _without_activations),
    "trtllm": Engine(
        ("--kv_cache_free_gpu_memory_fraction", "--free_gpu_memory_fraction"),
        _of_what_weights_leave,
    ),
}


def floor2(share: float) -> float:
    """Return a share rounded down to two digits, as engines take it."""
    return math.floor(share * 100 + 1e-9) / 100


def with_hint(
    command: Sequence[str], engine: str, leased_mb: int, total_mb: int
) -> tuple[list[str], str | None]:
    """Return the command with the engine's flag appended, and the flag.

    The command is unchanged if it has the flag already.
    """
    known = ENGINES[engine]
    if any(part.partition("=")[0] in known.flags for part in command):
        return list(command), None
    value = f"{floor2(known.share(leased_mb, total_mb)):.2f}"
    return [*command, known.flags[0], value], f"{known.flags[0]} {value}"
