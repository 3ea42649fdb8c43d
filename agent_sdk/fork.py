"""Renewal of state in a forked child: it has its parent's objects, but none of its threads.

A lock that another thread held at the fork is locked for ever in the child; so what has a thread or
a lock is made anew there, before any of the child's code runs. What belongs to one process, as a
lease does, is marked with that process's identity.
"""

from __future__ import annotations

import os
from typing import NoReturn, Protocol
from weakref import WeakSet


class Forkable(Protocol):
    """Object with a thread or a lock."""

    def reset(self) -> None:
        """Start over: no lock is held, no thread runs."""
        ...


class OfOneProcess:
    """Object that cannot travel to another process: it has threads, or connections."""

    def __reduce__(self) -> NoReturn:
        """Raise an error about that, instead of one about the first lock."""
        raise TypeError(
            f"{type(self).__name__} belongs to its process: make another where it is needed"
        )


_known: WeakSet[Forkable] = WeakSet()

_identity = os.urandom(8).hex()

_left: list[object] = []
"""Objects that only the parent may close: closing them here would close them there."""


def identity() -> str:
    """Return this process's name: another after a fork, after an exec, and on another machine.

    A pid is not enough: in a new pid namespace parent and child are both process 1.
    """
    return _identity


def renew_in_child(what: Forkable) -> None:
    """Reset an object in every child that this process forks, while the object lives."""
    what.reset()
    _known.add(what)


def leave_to_parent(what: object) -> None:
    """Keep an object of the parent's until this process ends, so that nothing closes it here."""
    _left.append(what)


def _forked() -> None:
    global _identity  # noqa: PLW0603 - one word of the process
    _identity = os.urandom(8).hex()
    for each in list(_known):
        each.reset()


os.register_at_fork(after_in_child=_forked)
