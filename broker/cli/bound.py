"""`gpu-broker run` that does not outlive its MCP server, however that ends."""

from __future__ import annotations

import os
import signal
import sys

from broker.cli import main as gpu_broker
from broker.run.child import PR_SET_PDEATHSIG, prctl


def main() -> None:
    """Run the command line after the parent's pid, and die with the parent."""
    parent = int(sys.argv.pop(1))
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == parent:  # else it died before
        gpu_broker()
