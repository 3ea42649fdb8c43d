"""Kinds of what hosts find: the one declaration, for all that finds, tells, shows or ends it."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple


class FindingKind(NamedTuple):
    """Kind of finding.

    Attributes:
        of: its subject: a lease, or a process on a GPU.
        grave: it costs others something.
        means: its meaning, for a first-time reader of the word.
        notice: the message to the holder of the lease; empty for a process.
        because: the reason of an end that the policy asks for; empty: nothing is ended for it.
    """

    of: Literal["lease", "process"]
    grave: bool
    means: str
    notice: str = ""
    because: str = ""

    @property
    def enforceable(self) -> bool:
        """Tell whether the policy has an action for it; where not, the holder is always told."""
        return bool(self.because)


KINDS: Final[dict[str, FindingKind]] = {
    "idle": FindingKind(
        "lease",
        grave=False,
        means="the lease's holder has no process on its GPU, or the GPU has done nothing for a "
        "while",
        notice="no process of it has used its GPU for a while: give it back if it is not needed",
        because="no process used its GPU",
    ),
    "overuse": FindingKind(
        "lease",
        grave=True,
        means="the lease's processes have allocated more memory than it holds",
        notice="its processes use more GPU memory than it holds: free some, or lease more",
        because="its processes use more than it holds",
    ),
    "squatter": FindingKind(
        "process",
        grave=True,
        means="a process that has no lease uses the GPU",
        because="it has no lease",
    ),
    "orphan": FindingKind(
        "process",
        grave=False,
        means="a process of a lease that is over still uses the GPU",
        because="its lease is over",
    ),
    "degraded": FindingKind(
        "lease",
        grave=True,
        means="the lease is on a GPU that failed: lost, or in quarantine",
        notice="a GPU of it has failed: save what can be saved, and ask for another lease",
    ),
}
"""Every kind, by its word; of leases the worst comes last."""

OF_LEASE: Final = tuple(word for word in reversed(KINDS) if KINDS[word].of == "lease")
"""Findings of a lease, the worst first."""

OF_PROCESS: Final = tuple(word for word, kind in KINDS.items() if kind.of == "process")
"""Findings of a process."""

NOTICES: Final = {word: kind.notice for word, kind in KINDS.items() if kind.notice}
"""Meanings of notices, for the holders that get them."""
