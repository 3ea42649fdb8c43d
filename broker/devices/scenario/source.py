"""Source of GPUs from a scenario file, for tests and for rehearsals of real failures."""

from __future__ import annotations

import stat
import threading
import time
from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING

from broker.devices.last_known import Fault, quiet
from broker.devices.sample import DeviceSample, Sample, text
from broker.devices.scenario.moments import Scenario, Step, scenario_of
from broker.devices.scenario.yaml_nodes import ScenarioError

if TYPE_CHECKING:
    from pathlib import Path

MAX_BYTES = 1_048_576
"""Most bytes of a scenario's file."""

_GONE = Fault("lost", "The scenario no longer lists this GPU", gone=True)


class ScriptedSource:
    """Source of samples from the scenario at `path`; form: docs/reference/scenarios.md.

    The scenario starts with the first sample, and anew whenever the file has changed. A device
    that hangs costs one deadline once, as with NVML: its row is in state ``error`` until it
    answers, and the others are told. A file that cannot be followed is the sample's error.
    """

    name = "scripted"

    def __init__(self, path: Path, *, deadline_s: float = 2.0) -> None:
        self._path = path
        self._deadline_s = deadline_s
        self._turn = threading.Lock()
        self._version: tuple[int, int, int] | None = None  # of the file at the last reading
        self._scenario: Scenario | None = None
        self._trouble = ""  # reason for which there is none
        self._began = 0.0  # monotonic
        self._taken = 0  # steps that have come
        self._hangs: dict[str, float] = {}  # UUID -> end, in seconds since the start
        self._stuck: dict[str, float] = {}  # UUID -> begin of the wait, likewise
        self._xids: defaultdict[str, tuple[int, ...]] = defaultdict(tuple)
        self._last: dict[str, DeviceSample] = {}
        self._gone: dict[str, Fault] = {}  # those that the last step with devices does not list

    def sample(self) -> Sample:
        """Return the sample that the scenario gives for now."""
        with self._turn:
            try:
                self._look()
            except OSError as error:
                return self._failed(f"{self._path} cannot be read: {text(error.strerror)}")
            if self._scenario is None:
                return self._failed(f"{self._path}: {self._trouble}")
            step, now_s = self._come(self._scenario)
            if step.error is not None:
                return self._failed(step.error)
            faults = self._hanging(step, now_s)
            rows = {device.uuid: device for device in step.devices}
            self._last |= rows
            self._gone = {uuid: _GONE for uuid in self._last if uuid not in rows}
            faults |= self._gone
            told = {uuid: self._told(uuid, faults.get(uuid)) for uuid in self._last}
            return self._sample(told, None)

    def problem(self) -> str:
        """Return the reason for which the file is invalid, in a sentence; empty: it is valid.

        Starts nothing.
        """
        with self._turn:
            try:
                self._look()
            except OSError as error:
                return f"{self._path} cannot be read: {text(error.strerror)}"
            finally:
                self._version = None
            return f"{self._path}: {self._trouble}" if self._scenario is None else ""

    def close(self) -> None:
        """Do nothing: no resource is held between samples."""

    def _look(self) -> None:
        """Read the file if it changed since the last reading.

        Raises:
            OSError: the file cannot be read.
        """
        found = self._path.stat()
        version = (found.st_mtime_ns, found.st_size, found.st_ino)
        if version == self._version:
            return
        self._scenario = None
        if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_BYTES:
            self._trouble = f"it is no file of at most {MAX_BYTES} bytes"
        else:
            try:
                self._scenario = scenario_of(self._path.read_text("utf-8"))
            except UnicodeDecodeError:
                self._trouble = "it is no UTF-8 text"
            except ScenarioError as error:
                self._trouble = str(error)
        self._version, self._began, self._taken = version, time.monotonic(), 0
        self._hangs, self._stuck = {}, {}

    def _come(self, scenario: Scenario) -> tuple[Step, float]:
        """Return the step of this moment and the seconds since the start.

        The XIDs and hangs of all steps until then are remembered.
        """
        now_s = time.monotonic() - self._began
        come = [step for step in scenario.steps if step.after_s <= now_s]
        for step in come[self._taken :]:
            for device in step.devices:
                self._xids[device.uuid] += device.xids
            self._hangs |= {uuid: step.after_s + hang_s for uuid, hang_s in step.hangs}
        self._taken = len(come)
        return come[-1], now_s

    def _hanging(self, step: Step, now_s: float) -> dict[str, Fault]:
        """Wait for devices that have begun to hang; return a fault for each that still does."""
        ends = {
            device.uuid: self._hangs[device.uuid]
            for device in step.devices
            if self._hangs.get(device.uuid, 0) > now_s
        }
        fresh = [end for uuid, end in ends.items() if uuid not in self._stuck]
        if fresh:
            time.sleep(min(self._deadline_s, max(fresh) - now_s))
        after_s = time.monotonic() - self._began
        self._stuck = {
            uuid: self._stuck.get(uuid, now_s) for uuid, end in ends.items() if end > after_s
        }
        return {
            uuid: Fault(
                "error", f"The scripted driver has not answered for {after_s - since:.1f} s"
            )
            for uuid, since in self._stuck.items()
        }

    def _told(self, uuid: str, fault: Fault | None) -> DeviceSample:
        last, xids = self._last[uuid], self._xids.pop(uuid, ())
        if fault is not None:
            last = replace(quiet(last, fault), parent=last.parent)
        return replace(last, xids=xids)

    def _failed(self, why: str) -> Sample:
        fault = Fault("error", why)
        rows = {
            uuid: replace(quiet(last, self._gone.get(uuid, fault)), parent=last.parent)
            for uuid, last in self._last.items()
        }
        return self._sample(rows, why)

    def _sample(self, rows: dict[str, DeviceSample], error: str | None) -> Sample:
        version = None if self._scenario is None else self._scenario.driver_version
        ordered = sorted(rows.values(), key=lambda device: (device.index, device.uuid))
        return Sample(tuple(ordered), "scripted", error, version)
