"""NVIDIA's error codes (XIDs) and recovery actions: their meaning, and what follows from each.

Actions follow from the immediate action in NVIDIA's catalog of 2026,
https://docs.nvidia.com/deploy/xid-errors/analyzing-xid-catalog.html:
RESTART_APP is an application's error, RESET_GPU and the NVLink workflows are probed,
RESTART_BM, RESTART_VM and CHECK_MECHANICALS wait for a person.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Action = Literal["ignore", "suspect", "probe", "hold"]
"""Action after an error code.

ignore: the program's fault. suspect: an event, nothing more. probe: quarantine until a clean probe.
hold: quarantine until an operator's undrain.
"""

ECC: Final = 48
"""Code that stands for memory errors without an error code of their own."""

CHANGED: Final = 154
"""Code of a recovery action that changed; the driver tells the action itself elsewhere."""

APPLICATION: Final = (
    8, 11, 13, 14, 25, 31, 32, 37, 39, 40, 41, 43, 45, 60, 68, 69, 70, 71, 72, 75, 76, 77, 80,
    82, 83, 84, 85, 86, 88, 89, 94, *range(96, 108), *range(126, 136), 137, 139,
)  # fmt: skip
"""Codes that an application causes, or a test of the driver's messages (14, 106, 107)."""

SEVERE: Final[Mapping[int, tuple[Action, str]]] = {
    46: ("probe", "GPU stopped processing"),
    48: ("probe", "uncorrectable memory error"),
    54: ("hold", "auxiliary power is not connected"),
    62: ("hold", "internal micro-controller halt"),
    64: ("probe", "row remapping failed to be recorded"),
    74: ("probe", "NVLink error"),
    79: ("hold", "fell off the bus"),
    95: ("probe", "uncontained memory error"),
    109: ("probe", "context switch timed out"),
    110: ("probe", "security fault"),
    119: ("probe", "GSP did not answer in time"),
    120: ("probe", "GSP error"),
    136: ("probe", "NVLink training failed"),
    140: ("probe", "unrecovered memory error"),
    143: ("probe", "GPU failed to initialize"),
    144: ("probe", "NVLink error: SAW"),
    145: ("probe", "NVLink error: RLW"),
    146: ("probe", "NVLink error: TLW"),
    149: ("probe", "NVLink error: NETIR"),
    150: ("probe", "NVLink error: MSE"),
    151: ("hold", "key rotation failed: restart the virtual machine"),
    155: ("probe", "NVLink went down"),
    156: ("probe", "memory was retired: it waits for a reset"),
    158: ("probe", "GPU timed out for good"),
    159: ("probe", "CPU link error"),
    167: ("probe", "PCIe timed out for good"),
    169: ("probe", "internal micro-controller halt (SEC2)"),
    171: ("probe", "uncorrectable DRAM error"),
    172: ("probe", "uncorrectable SRAM error"),
}
"""Action and meaning by code. 62 is more than the catalog's reset: no probe shows that it is gone.

167, 169, 171 and 172 have no action in the catalog; they are as 158, 62 and 48.
"""

XIDS: Final[Mapping[int, Action]] = {
    **dict.fromkeys(APPLICATION, "ignore"),
    **{code: action for code, (action, _) in SEVERE.items()},
}
"""Action by code; other codes are `suspect`. The policy's `xid_actions` takes precedence."""


def meaning_of(code: int) -> str:
    """Return the meaning of a code in a few words."""
    return SEVERE[code][1] if code in SEVERE else "see NVIDIA"


def action_of(code: int, overrides: str) -> Action:
    """Return the action after an error code; `overrides`: the policy's, as `79=hold,94=ignore`."""
    return dict(_parsed(overrides)).get(code) or XIDS.get(code, "suspect")


def actions_of(
    codes: tuple[int, ...], overrides: str, recovery_action: int | None
) -> list[tuple[int, Action]]:
    """Return each code with its action.

    A change of the recovery action is probed when the driver does not tell the action itself.
    """
    told = [(code, action_of(code, overrides)) for code in codes]
    if recovery_action is not None or CHANGED in dict(_parsed(overrides)):
        return told
    return [(code, "probe" if code == CHANGED else action) for code, action in told]


def _parsed(overrides: str) -> Iterator[tuple[int, Action]]:
    # the first of two for one code counts
    for each in reversed([each for each in overrides.split(",") if each]):
        number, _, action = each.partition("=")
        if number.isdigit() and action in {"ignore", "suspect", "probe", "hold"}:
            yield int(number), action  # type: ignore[misc] # it is one of them


_RECOVERY: Final = (
    (1, 0, 10_000, "a reset of the GPU"),
    (2, 0, 10_000, "a reboot of the machine"),
    (3, 0, 10_000, "an end of all peer-to-peer traffic"),
    (4, 0, 10_000, "an end of all peer-to-peer traffic and a reset of the GPU"),
    (5, 580, 590, "a reset of the GPU's bus"),
    (5, 595, 10_000, "a recovery of its IMEX domain"),
    (6, 615, 10_000, "a reset of the GPU's PCIe bus"),
    (7, 615, 10_000, "a reboot of the system"),
)
"""Recovery action, the driver branches that mean it (from, below), and the meaning.

From NVML's change log and from nvidia-ml-py 12.570 to 13.615: 5 was GPU_RESET_BUS in 580, is not
there in 590, and is RECOVER_IMEX_DOMAIN since 595; BUS_RESET and SYSTEM_REBOOT came with 615.
"""


def branch_of(driver: str | None) -> int | None:
    """Return a driver's branch, as 580 of 580.65.06; None: unknown."""
    found = re.match(r"(\d{1,4})\.", driver or "")
    return int(found[1]) if found else None


def recovery_words(action: int, driver: str | None) -> str:
    """Return a recovery action in words, with its number; its meaning depends on the driver.

    Where this driver's branch gives it none, the meanings that others give it are told as theirs.
    """
    branch = branch_of(driver)
    known = [entry[1:] for entry in _RECOVERY if entry[0] == action]
    for since, below, words in known:
        if not since or (branch is not None and since <= branch < below):
            return f"{words} (recovery action {action})"
    others = "; ".join(f"in driver branch {since}: {words}" for since, _, words in known)
    return f"recovery action {action}" + (f" ({others})" if others else "")
