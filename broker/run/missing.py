"""Programs that cannot be started, told before any lease is asked for."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from broker.run.progress import Progress

NOT_FOUND: Final = 127
NOT_EXECUTABLE: Final = 126
"""Exit codes that a shell uses, too."""


def missing(name: str, teller: Progress) -> int:
    """Tell that there is no such program, and return the exit code for it; 0: there is one."""
    if shutil.which(name) is not None:
        return 0
    if Path(name).exists() and "/" in name:
        teller.failed("not_executable", f"{name}: Permission denied")
        return NOT_EXECUTABLE
    teller.failed("not_found", f"{name}: no such command")
    return NOT_FOUND
