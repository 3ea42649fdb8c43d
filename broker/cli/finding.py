"""Findings of `gpu-broker doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Severity(IntEnum):
    """Severity of a finding; that of the worst one is the exit code."""

    NOTE = 0
    WRONG = 1
    BROKEN = 2


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Problem in a sentence, with its remedy.

    Attributes:
        severity: a note may be as it is meant; what is broken lets no lease be had.
    """

    problem: str
    remedy: str
    severity: Severity = Severity.WRONG

    @property
    def lines(self) -> tuple[str, str]:
        """Problem and remedy, as lines of text."""
        return f"{self.severity.name:<5}  {self.problem}", f"{'':7}{self.remedy}"

    @property
    def data(self) -> dict[str, str]:
        """Problem, remedy and severity, for programs."""
        severity = self.severity.name.lower()
        return {"problem": self.problem, "remedy": self.remedy, "severity": severity}
