"""The wall clock of one process, in a test's hand: a small library that is preloaded into it."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("clock.c")


@dataclass(frozen=True, slots=True)
class Clock:
    """The clock of every process that is started with `env`.

    Attributes:
        env: what such a process needs in its environment.
    """

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> Clock:
        """Compile the library; the clock is right at first."""
        assert shutil.which("gcc"), "no gcc on PATH: apt-get install gcc libc6-dev"
        folder.mkdir(parents=True, exist_ok=True)
        clock = cls(folder)
        command = ["gcc", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", clock._library]
        subprocess.run([*command, SOURCE], check=True)
        clock.shift(0)
        return clock

    @property
    def _library(self) -> Path:
        return self.folder / "clock.so"

    @property
    def _file(self) -> Path:
        return self.folder / "shift"

    @property
    def env(self) -> dict[str, str]:
        return {"LD_PRELOAD": str(self._library), "SHIFTED_BY": str(self._file)}

    def shift(self, seconds: float) -> None:
        """From now on it is so far ahead of this machine's, or behind."""
        with self._file.open("r+b" if self._file.exists() else "w+b") as file:
            file.write(int(seconds * 1e9).to_bytes(8, "little", signed=True))
