"""A process that reads GPUs through the real nvidia-ml-py, over a driver library of our own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[1]
FAKE = ROOT / "tests" / "fakes" / "nvml" / "nvml.c"

PATIENCE_S = 5.0
"""Deadline of NVML's calls where a test names none: the machine may be busy."""

CHILD = """
import dataclasses, json, sys, time
import pynvml  # not within the first sample's time
from broker.devices import choose
from broker.devices.nvml.source import NvmlSource
settings = json.loads(sys.argv[1])
if "pcie" in settings:
    source = choose(
        "nvml", enable_nvml=True, safe_mode=False, host="box", smi_on_path=None, **settings
    )
else:
    source = NvmlSource("box", **settings)
for times in sys.stdin:
    began, used = time.monotonic(), time.process_time()
    for _ in range(int(times)):
        sample = source.sample()
    spent = {"took_s": time.monotonic() - began, "cpu_s": time.process_time() - used}
    print(json.dumps(dataclasses.asdict(sample) | spent), flush=True)
source.close()
"""
"""Samples as often as each line says; tells the last one and what all of them took."""


def build(folder: Path, *flags: str) -> Path:
    """Compile the stand-in into a folder, for LD_LIBRARY_PATH."""
    assert shutil.which("gcc"), "no gcc on PATH: apt-get install gcc libc6-dev"
    target = folder / "libnvidia-ml.so.1"
    options = ["-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", str(target)]
    options.append("-Wl,-soname,libnvidia-ml.so.1")  # as the real one has
    subprocess.run(["gcc", *flags, *options, str(FAKE)], check=True)
    return folder


class Machine:
    """A process with an NVML source, and the driver under it; `nvml.c` explains the words."""

    def __init__(self, folder: Path, library: Path, settings: dict[str, object]) -> None:
        self._words = folder / "words"
        self._hang = folder / "hang"
        self._hang.touch()
        self.say()
        if "pcie" not in settings:
            settings = {"deadline_s": PATIENCE_S} | settings
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "LD_LIBRARY_PATH": str(library),
            "FAKE_NVML_FILE": str(self._words),
            "FAKE_NVML_HANG": str(self._hang),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", CHILD, json.dumps(settings)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def say(self, *words: str) -> None:
        """Set the driver's answers from now on."""
        new = self._words.with_suffix(".new")
        new.write_text("\n".join(words))
        new.rename(self._words)

    def sample(self, times: int = 1) -> dict[str, Any]:
        """The last of so many samples; with `took_s` and `cpu_s` of them all."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{times}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, self._process.communicate()[1]
        told: dict[str, Any] = json.loads(line)
        return told

    def row(self, index: int) -> dict[str, Any]:
        """The device at an index in a new sample."""
        (found,) = (d for d in self.sample()["devices"] if d["index"] == index)
        return found  # type: ignore[no-any-return] # JSON

    def until(self, seen: Callable[[dict[str, Any]], bool], seconds: float = 10) -> dict[str, Any]:
        """The first sample of which this is true."""
        until = time.monotonic() + seconds
        while True:
            told = self.sample()
            if seen(told):
                return told
            assert time.monotonic() < until, told
            time.sleep(0.02)

    @property
    def cpu_s(self) -> float:
        """Processor time that the process has used, all threads together."""
        stat = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def threads(self) -> int:
        """Return its number of threads now."""
        return len(list(Path(f"/proc/{self._process.pid}/task").iterdir()))

    def let_go(self) -> None:
        """End what hangs, once and for all."""
        self._hang.unlink()

    def close(self) -> float:
        """Close the source and end the process well; how long that took, in seconds."""
        began = time.monotonic()
        _, complained = self._process.communicate(timeout=20)
        assert (self._process.returncode, complained) == (0, "")
        return time.monotonic() - began

    def kill(self) -> None:
        """End the process if it still runs."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()
