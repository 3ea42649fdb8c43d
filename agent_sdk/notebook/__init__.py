"""Cells of Jupyter and IPython that hold a lease: `%load_ext agent_sdk.notebook`, then `%%gpu`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell


def load_ipython_extension(shell: InteractiveShell) -> None:
    """Add the magic to a shell; IPython calls it at `%load_ext`."""
    from agent_sdk.notebook.magic import GpuMagics  # noqa: PLC0415 - it needs IPython

    shell.register_magics(GpuMagics)
