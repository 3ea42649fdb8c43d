"""The kernel's files about AMD's GPUs of a machine of `tests/hardware/NAME/`, as a folder.

`kernel.json` has the text of each file and the target of each link, and the files that cannot be
read, with the error, or HANG: tests/fakes/files/unread.c refuses those to a process. `gpus.json`
has what the machine's owner would want to be told of each GPU.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent

UNREAD = HERE.parent / "fakes" / "files" / "unread.c"


def expected(name: str) -> list[dict[str, Any]]:
    """Return what is to be told of each GPU."""
    rows: list[dict[str, Any]] = json.loads((HERE / name / "gpus.json").read_text())
    return rows


def unpack(name: str, folder: Path) -> dict[str, str]:
    """Make a machine's files below a folder; return the variables for a process that reads them."""
    machine = json.loads((HERE / name / "kernel.json").read_text())
    root = folder / "root"
    for path, text in machine["files"].items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    for path, target in machine["links"].items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).symlink_to(target)
    settings = {"GPU_BROKER_AMD_ROOT": str(root)}
    if "unread" in machine:
        lines = [f"{path}\t{word}" for path, word in machine["unread"].items()]
        (folder / "unread").write_text("\n".join(lines))
        settings |= {"FAKE_UNREAD": str(folder / "unread"), "LD_PRELOAD": str(_library(folder))}
    return settings


def _library(folder: Path) -> Path:
    target = folder / "unread.so"
    options = ["-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", str(target)]
    subprocess.run(["gcc", *options, str(UNREAD), "-ldl"], check=True)
    return target
