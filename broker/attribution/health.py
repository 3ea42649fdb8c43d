"""Health of GPUs: error codes and driver requests that withhold one, and their end."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from broker.attribution.xids import ECC, action_of, actions_of, meaning_of, recovery_words

if TYPE_CHECKING:
    from agent_sdk.state.devices import DeviceStatus
    from broker.attribution.xids import Action
    from broker.devices import DeviceSample

log = logging.getLogger(__name__)

CLEAN_S: Final = 60.0
"""Seconds without trouble and without a driver's request, after which a probe is clean."""

PROBED: Final = ": withheld until a clean probe, or gpu-broker undrain"
HELD: Final = ": withheld until gpu-broker undrain"

ROWS: Final = "memory rows could not be remapped"
"""Complaint about rows; every other one is the driver's request for a recovery action."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Reported health of a device.

    Attributes:
        quarantine: the reason to withhold it from now on; empty: lend it again; None: as before.
        xids: `code:action` of each error code that came, joined by commas.
    """

    state: str
    reason: str
    quarantine: str | None
    xids: str


class Health:
    """Judge of successive samples.

    The pool stores its decisions with the device: a new reporter continues from there.
    """

    def __init__(self) -> None:
        self._trouble_at: dict[str, float] = {}  # our clock, s
        self._ecc: dict[str, float] = {}
        self._unannounced: set[str] = set()
        self._standing: dict[str, str] = {}  # the driver's complaint, while it stands
        # complaint in spite of which an operator lends the device
        self._lifted: dict[str, str] = {}
        self._said: dict[str, str] = {}  # complaint for which the last report withholds it

    def told(self) -> None:
        """Note that the pool has the last verdicts: from now on an operator may lift them."""
        self._standing |= self._said
        self._said = {}

    def judge(
        self,
        device: DeviceSample,
        whole: DeviceSample,
        known: DeviceStatus | None,
        overrides: str,
        now: float,
        driver: str | None = None,
    ) -> Verdict:
        """Return the verdict on a device at `now` on our clock, s.

        `whole` is the GPU that the device is a part of, or the device itself; `known` is what the
        pool knows of the device, or of the GPU of which it is a new part: that is withheld with its
        GPU. `driver` is the version that gives its recovery action a meaning.
        """
        actions = actions_of(device.xids, overrides, whole.recovery_action)
        before = known.quarantine if known else ""
        standing = _standing(whole, driver)
        self._said.pop(device.uuid, None)
        if standing[0] or not self._untold(device.uuid, whole):
            self._watch(device.uuid, standing[0], before)
        cause, action = self._cause(device, whole, actions, overrides, standing)
        if cause or device.state not in {"ok", "mig"}:
            self._trouble_at[device.uuid] = now
        told = before if known and known.uuid == device.uuid else ""
        quarantine = before
        if cause and not (before.endswith(HELD) and action == "probe"):
            quarantine = cause + (HELD if action == "hold" else PROBED)
            if cause == standing[0]:
                self._said[device.uuid] = cause
            if not before:
                log.warning("%s is withheld: %s", device.uuid, quarantine)
        elif before.endswith(PROBED) and self._clean(device, whole, now):
            quarantine = ""
            log.info("%s is lent again: its probe was clean", device.uuid)
        state: str = device.state
        reason = device.reason
        if quarantine and state == "ok":
            state, reason = "quarantined", quarantine
        return Verdict(
            state,
            reason,
            None if quarantine == told else quarantine,
            ",".join(f"{code}:{what}" for code, what in actions),
        )

    def _cause(
        self,
        device: DeviceSample,
        whole: DeviceSample,
        actions: list[tuple[int, Action]],
        overrides: str,
        standing: tuple[str, Action],
    ) -> tuple[str, Action]:
        """Return the reason to withhold it, in a sentence, and the action; empty: nothing new."""
        causes: list[tuple[str, Action]] = [
            (f"XID {code} ({meaning_of(code)})", action)
            for code, action in actions
            if action in {"hold", "probe"}
        ]
        if standing[0] and self._lifted.get(device.uuid) != standing[0]:
            causes.append(standing)
        if errors := self._errors_unannounced(device, whole):
            action = action_of(ECC, overrides)
            if action in {"hold", "probe"}:
                causes.append((f"{errors:.0f} uncorrectable memory errors", action))
        held = [cause for cause in causes if cause[1] == "hold"]
        return (held or causes or [("", "ignore")])[0]

    def _untold(self, uuid: str, whole: DeviceSample) -> bool:
        """Return whether the driver does not tell now if its last complaint still stands."""
        if whole.state == "lost" or whole.recovery_action is not None:
            return False
        complaint = self._lifted.get(uuid) or self._standing.get(uuid)
        return complaint != ROWS or whole.rows_failed is None

    def _watch(self, uuid: str, cause: str, quarantine: str) -> None:
        """Note that an operator lifted a quarantine whose cause still stands."""
        if self._lifted.get(uuid) != cause:
            self._lifted.pop(uuid, None)
        if cause and quarantine.startswith(cause):
            self._standing[uuid] = cause
        elif self._standing.pop(uuid, None) == cause and cause and not quarantine:
            self._lifted[uuid] = cause

    def _errors_unannounced(self, device: DeviceSample, whole: DeviceSample) -> float:
        """Return the count of memory errors if it grew without an error code; else 0.

        The code may come with the next sample, so the answer waits for that one.
        """
        count, uuid = whole.ecc_uncorrected, device.uuid
        waited = uuid in self._unannounced
        if count is not None or device.xids:
            self._unannounced.discard(uuid)
        if count is None:
            return 0
        grew = count > self._ecc.get(uuid, count)
        self._ecc[uuid] = count
        if device.xids:
            return 0
        if grew:
            self._unannounced.add(uuid)
        return count if waited else 0

    def _clean(self, device: DeviceSample, whole: DeviceSample, now: float) -> bool:
        """Return whether the device has been well for long enough, as far as its driver tells."""
        since = self._trouble_at.setdefault(device.uuid, now)
        well = (
            device.state in {"ok", "mig"} and whole.recovery_action == 0 and not whole.rows_pending
        )
        return well and now - since >= CLEAN_S


def _standing(whole: DeviceSample, driver: str | None) -> tuple[str, Action]:
    """Return the driver's standing complaint about a GPU that must not be lent, and the action."""
    if whole.rows_failed:
        return ROWS, "hold"
    if whole.recovery_action:
        return f"the driver asks for {recovery_words(whole.recovery_action, driver)}", "probe"
    return "", "ignore"
