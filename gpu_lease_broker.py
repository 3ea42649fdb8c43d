"""Entry of the command `gpu-broker`, outside of the package `broker`.

Another distribution on PyPI has a package of that name, too. pip installs its files over ours
without a word, so they are looked at before anything of `broker` is imported.
"""

from __future__ import annotations

import signal
import sys
from importlib.util import find_spec
from pathlib import Path

OURS = '"""Broker: the HTTP API on port 8014,'
"""Begin of our `broker/__init__.py`."""

WAY_OUT = "pip uninstall broker; pip install --force-reinstall gpu-lease-broker"

UNAVAILABLE = 69


def main() -> None:
    """Run the command line, unless another package lies over ours."""
    raises = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if raises:  # during the imports Ctrl-C ends us without a traceback
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if problem := neighbour():
        sys.stderr.write(f"gpu-broker: {problem}\n")
        sys.exit(UNAVAILABLE)
    from broker.cli import main as command_line  # noqa: PLC0415 - only if it is ours

    if raises:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    command_line()


def neighbour() -> str | None:
    """Return a sentence about a `broker` package that is not ours; None: it is ours."""
    found = find_spec("broker")  # it is not imported
    if found is None or found.origin is None:
        return f"its package broker is not there: {WAY_OUT}"
    if Path(found.origin).read_text("utf-8", "replace").startswith(OURS):
        return None
    return (
        f"{found.origin} is another distribution's: a package called broker lies over ours, or "
        f"before it on the path. Both do not work in one environment: {WAY_OUT}"
    )
