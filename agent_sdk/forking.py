"""What a forked child must forget: it has its parent's objects, but none of its threads.

A lock that another thread held at the fork is locked for ever in the child; so what has a thread or
a lock is made anew there, before any of the child's code runs.
"""

from __future__ import annotations

import os
from typing import Protocol
from weakref import WeakSet


class Forkable(Protocol):
    """Something that has a thread or a lock."""

    def reset(self) -> None:
        """Be as new: no lock is held, no thread runs."""
        ...


_known: WeakSet[Forkable] = WeakSet()


def renew_in_child(what: Forkable) -> None:
    """Reset it now, and in every child that this process forks, for as long as it lives."""
    what.reset()
    _known.add(what)


def _forked() -> None:
    for each in list(_known):
        each.reset()


os.register_at_fork(after_in_child=_forked)
