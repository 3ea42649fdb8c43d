"""Findings of `gpu-broker doctor`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One thing that is wrong, in a sentence, and what to do about it.

    Attributes:
        sure: False: it may be as it should all the same; the exit code does not count it.
    """

    problem: str
    remedy: str
    sure: bool = True

    @property
    def lines(self) -> tuple[str, str]:
        """Say it, then the way out."""
        return f"{'WRONG' if self.sure else 'MAYBE'}  {self.problem}", f"       {self.remedy}"
