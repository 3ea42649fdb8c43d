"""The previous version's SDK with its own scripts, out of `tests/previous/`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

THIS = Path(__file__).parents[2]

PREVIOUS = THIS / "tests" / "previous" / "sdk-schema-3.zip"


def unpacked(folder: Path) -> Path:
    """Unpack the previous SDK into a folder, to be put on PYTHONPATH."""
    with zipfile.ZipFile(PREVIOUS) as packed:
        packed.extractall(folder)
    return folder


def schema_of(sdk: Path) -> int:
    """Read the schema that the scripts beside an SDK work on."""
    clock = (sdk / "lua" / "lib" / "clock.lua").read_text(encoding="utf-8")
    found = re.search(r"PROTOCOL, SCHEMA = '\d+', '(\d+)'", clock)
    assert found
    return int(found[1])


def start(sdk: Path, code: str, *args: str) -> subprocess.Popen[str]:
    """Start a Python process with an SDK."""
    environ = os.environ | {"PYTHONPATH": str(sdk), "PYTHONSAFEPATH": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", code, *args], env=environ, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
