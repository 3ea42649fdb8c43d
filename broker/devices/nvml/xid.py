"""XIDs, NVIDIA's error codes: the driver sends each once, to the caller that waits at the time.

A thread of its own waits, 0.25 s at a time, so that it can end before NVML is shut.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections import defaultdict
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from broker.devices.bounded_call import BoundedCall
from broker.devices.nvml.handle import ABSENT
from broker.devices.sample import uuid_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import ModuleType

_XID = 8
_TIMEOUT = 10
_WAIT_S = 0.25
_MOST = 64


class Xids:
    """XIDs that no sample has told yet, in order of arrival, by UUID of the GPU."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._untold: dict[str, list[int]] = defaultdict(list)

    def add(self, uuid: str, xid: int) -> None:
        """Store an XID; in a flood, each code once."""
        with self._lock:
            untold = self._untold[uuid]
            if len(untold) < _MOST or xid not in untold:
                untold.append(xid)

    def take(self, uuids: Iterable[str]) -> dict[str, tuple[int, ...]]:
        """Remove and return the XIDs of these GPUs: their sample tells them."""
        with self._lock:
            return {uuid: tuple(self._untold.pop(uuid, ())) for uuid in uuids}


class XidWatch:
    """Thread that collects the XIDs of the added GPUs, until `end` or NVML fails as a whole.

    A GPU that cannot be watched is left out. The XID of an unknown GPU counts for all: it may
    be the one that has just fallen off the bus.
    """

    def __init__(self, nvml: ModuleType, xids: Xids) -> None:
        self._nvml = nvml
        self._xids = xids
        self._lock = threading.Lock()
        self._set: object = None
        self._asked: set[str] = set()
        self._watched: dict[int, str] = {}  # UUID by the address that is the GPU's handle
        self._waiting: BoundedCall[None] | None = None
        self._ending = threading.Event()
        with suppress(nvml.NVMLError):
            self._set = nvml.nvmlEventSetCreate()

    def add(self, handle: Any, uuid: str) -> None:
        """Watch this GPU as well; a later call tries again only after a passing failure."""
        with self._lock:
            if self._set is None or uuid in self._asked:
                return
            self._asked.add(uuid)
        try:
            if not self._nvml.nvmlDeviceGetSupportedEventTypes(handle) & _XID:
                return
            self._nvml.nvmlDeviceRegisterEvents(handle, _XID, self._set)
        except self._nvml.NVMLError as error:
            if error.value not in ABSENT:
                with self._lock:
                    self._asked.discard(uuid)
            return
        with self._lock:
            self._watched[_address(handle)] = uuid

    def begin(self) -> None:
        """Wait from now on, once all GPUs of a sample are added: each hears its first XID."""
        with self._lock:
            if self._watched and self._waiting is None and not self._ending.is_set():
                self._waiting = BoundedCall(self._wait, "nvml-xid")

    @property
    def failed(self) -> bool:
        """True if collecting stopped although `end` was not called."""
        return self._waiting is not None and not self.running and not self._ending.is_set()

    @property
    def running(self) -> bool:
        """True if its thread may be in NVML."""
        return self._waiting is not None and self._waiting.running

    def leave(self) -> None:
        """Ask the thread to end; do not wait."""
        with self._lock:
            self._ending.set()

    def end(self, seconds: float) -> bool:
        """End the thread; return whether it has left NVML within `seconds`.

        Never call this while `add` runs.
        """
        self.leave()
        if self._waiting is not None and not self._waiting.answered_within(seconds):
            return False
        if self._set is not None:
            with suppress(self._nvml.NVMLError):
                self._nvml.nvmlEventSetFree(self._set)
            self._set = None
        return True

    def _wait(self) -> None:
        while not self._ending.is_set():
            began = time.monotonic()
            try:
                event = self._nvml.nvmlEventSetWait_v2(self._set, int(_WAIT_S * 1000))
            except self._nvml.NVMLError as error:
                if error.value != _TIMEOUT:
                    return
                self._ending.wait(began + _WAIT_S - time.monotonic())  # the call may return at once
            else:
                self._keep(event)

    def _keep(self, event: Any) -> None:
        if event.eventType != _XID:
            return
        with self._lock:
            uuid, everyone = self._watched.get(_address(event.device)), list(self._watched.values())
        for of in [uuid] if uuid else self._named(event.device) or everyone:
            self._xids.add(of, int(event.eventData))

    def _named(self, handle: object) -> list[str]:
        with suppress(Exception):
            uuid = uuid_of(self._nvml.nvmlDeviceGetUUID(handle))
            return [uuid] if uuid else []
        return []


def _address(handle: Any) -> int:
    return ctypes.cast(handle, ctypes.c_void_p).value or 0
