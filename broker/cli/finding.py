"""Findings of `gpu-broker doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Severity(IntEnum):
    """The weight of a finding; the worst of all is the exit code."""

    NOTE = 0
    WRONG = 1
    BROKEN = 2


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One thing that is not as it should be, in a sentence, and what to do about it.

    Attributes:
        severity: a note may be as it is meant; what is broken lets no lease be had.
    """

    problem: str
    remedy: str
    severity: Severity = Severity.WRONG

    @property
    def lines(self) -> tuple[str, str]:
        """Say it, then the way out."""
        return f"{self.severity.name:<5}  {self.problem}", f"{'':7}{self.remedy}"

    @property
    def data(self) -> dict[str, str]:
        """The same for programs."""
        severity = self.severity.name.lower()
        return {"problem": self.problem, "remedy": self.remedy, "severity": severity}
