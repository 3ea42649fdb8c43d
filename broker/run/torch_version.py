"""Version of the PyTorch that a command's interpreter would import, read from its folders."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

FIRST: Final = (2, 10)
"""First version whose allocator takes a limit from its environment."""


def old_torch(command: Sequence[str]) -> str:
    """Return the version of a PyTorch that is older than `FIRST`; empty: newer, or unknown.

    Nothing is run: the folder of the installed package names the version.
    """
    program = shutil.which(command[0])
    if program is None:
        return ""
    for folder in {Path(program).parent.parent, Path(program).resolve().parent.parent}:
        for found in sorted(folder.glob("lib/python3*/*-packages/torch-*.dist-info")):
            version = found.name.removeprefix("torch-").removesuffix(".dist-info")
            numbers = re.match(r"(\d+)\.(\d+)", version)
            if numbers and (int(numbers[1]), int(numbers[2])) < FIRST:
                return version
    return ""
