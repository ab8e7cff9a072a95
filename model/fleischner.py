"""The Fleischner Society's visual scoring system: subtypes, grades, and the intervals of Table 1 of the paper (percent of the
lung volume).

Source: Lynch et al., Radiology 2015 (the scoring system); Xie et al., Sci Rep 2023, Table 1 b and c (the intervals).
This is the only module that holds those intervals.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Grade:
    """One grade of a subtype.

    Attributes:
        score: the ordinal visual score, from 0.
        severity: the grade's name in the Fleischner system.
        lower: smallest percentage of the lung that is read as this grade, in percent (inclusive).
        upper: where the next grade begins, in percent (exclusive; the top grade ends at 100, inclusive).
    """

    score: int
    severity: str
    lower: float
    upper: float


@dataclass(frozen=True)
class Subtype:
    """A subtype of emphysema with its grades, mildest first; their intervals cover 0 to 100 percent without a gap."""

    name: str
    abbreviation: str
    grades: tuple[Grade, ...]

    def grade(self, percentage: float) -> Grade:
        """Return the grade whose interval holds `percentage` (0 to 100, in percent of the lung).

        Raises:
            ValueError: `percentage` is not a number from 0 to 100.
        """
        if not 0.0 <= percentage <= 100.0:
            raise ValueError(f"{self.name} percentage is {percentage}, expected a number from 0 to 100")
        return next(grade for grade in reversed(self.grades) if percentage >= grade.lower)

    def percentage_text(self, percentage: float) -> str:
        """Return `percentage` (0 to 100, in percent of the lung) as text, to be shown beside its score.

        It has one decimal, or as many more as keep the number in its grade: 4.97, which is graded below 5, is not shown as 5.0.

        Raises:
            ValueError: as `grade` does.
        """
        grade = self.grade(percentage)
        texts = (*(f"{percentage:.{decimals}f}" for decimals in range(1, 17)), str(percentage))
        return next(text for text in texts if self.grade(float(text)) == grade)

    def score(self, percentage: float) -> int:
        """Return the visual score for `percentage` of the lung (0 to 100, in percent); raises as `grade` does."""
        return self.grade(percentage).score


def interval_text(grade: Grade, last: bool) -> str:
    """Return the interval of a grade in words, such as "1 to 5 %".

    Args:
        grade: of any subtype.
        last: whether it is its subtype's highest grade, which is given without its upper end, 100 %.
    """
    if grade.lower == 0:
        return f"below {grade.upper:g} %"
    return f"from {grade.lower:g} %" if last else f"{grade.lower:g} to {grade.upper:g} %"


def _subtype(name: str, abbreviation: str, *rows: tuple[str, float, float]) -> Subtype:
    grades = tuple(Grade(score, severity, lower, upper) for score, (severity, lower, upper) in enumerate(rows))
    return Subtype(name, abbreviation, grades)


CENTRILOBULAR = _subtype(
    "centrilobular",
    "cle",
    ("absent", 0.0, 1.0),
    ("trace", 1.0, 5.0),
    ("mild", 5.0, 10.0),
    ("moderate", 10.0, 20.0),
    ("confluent", 20.0, 30.0),
    ("advanced destructive", 30.0, 100.0),
)

PARASEPTAL = _subtype(
    "paraseptal",
    "pse",
    ("absent", 0.0, 1.0),
    ("mild", 1.0, 5.0),
    ("substantial", 5.0, 100.0),
)

SUBTYPES = (CENTRILOBULAR, PARASEPTAL)
