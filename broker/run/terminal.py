"""Control of the terminal: the command's own group gets it as a shell's job would.

The command has it from its start when our group is in the foreground and holds only us and the
processes that wait for us. In a pipeline others may read the terminal too: there the command
gets it when it is stopped for wanting it.
"""

from __future__ import annotations

import os
from contextlib import suppress

from broker.run.processes import parents


class Terminal:
    """Controlling terminal, if there is one, and its foreground group.

    SIGTTOU must be ignored: we set the terminal, and write to it, from the background too.
    """

    def __init__(self) -> None:
        self._fd: int | None = None
        with suppress(OSError):
            self._fd = os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY)
        self.given = False

    @property
    def to_be_given(self) -> bool:
        """True if there is a terminal that may be given later, as after `fg`."""
        return self._fd is not None and not self.given

    def give(self, group: int) -> bool:
        """Put a group into the foreground, if our own is there; return whether it is now."""
        with suppress(OSError):
            if self._fd is not None and self._ours:
                os.tcsetpgrp(self._fd, group)
                self.given = True
        return self.given

    def give_if_alone(self, group: int) -> bool:
        """Do the same, unless other processes of our group may want the terminal."""
        return self.to_be_given and self._ours and _alone() and self.give(group)

    @property
    def _ours(self) -> bool:
        """True if our group is in the foreground."""
        with suppress(OSError):
            return self._fd is not None and os.tcgetpgrp(self._fd) == os.getpgrp()
        return False

    def take(self) -> None:
        """Take the terminal back, if it was given."""
        if self.given and self._fd is not None:
            with suppress(OSError):
                os.tcsetpgrp(self._fd, os.getpgrp())

    def close(self) -> None:
        """Close the terminal."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def _alone() -> bool:
    """Tell whether our process group holds only us and our ancestors."""
    processes = dict(parents())
    ancestors, pid = {os.getpid()}, os.getppid()
    while pid in processes and pid not in ancestors:
        ancestors.add(pid)
        pid = processes[pid][0]
    ours = {pid for pid, (_, group) in processes.items() if group == os.getpgrp()}
    return ours <= ancestors
