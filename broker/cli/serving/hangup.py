"""End of the terminal of a service: it stops in good order, as by SIGTERM."""

from __future__ import annotations

import os
import signal


def stop_at_hangup() -> None:
    """Take SIGHUP for SIGTERM, but where it is ignored: nohup has said that it goes on."""
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, _stop)


def _stop(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
