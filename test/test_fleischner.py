"""Grades and intervals against Table 1 b and c of Xie et al. (Sci Rep 2023)."""

from __future__ import annotations

import math

import pytest

from model.fleischner import CENTRILOBULAR, PARASEPTAL, SUBTYPES, Subtype, interval_text


@pytest.mark.parametrize(
    ("percentage", "score", "severity"),
    [
        (0, 0, "absent"),
        (0.9999, 0, "absent"),
        (1, 1, "trace"),
        (5, 2, "mild"),
        (10, 3, "moderate"),
        (20, 4, "confluent"),
        (29.9999, 4, "confluent"),
        (30, 5, "advanced destructive"),
        (100, 5, "advanced destructive"),
    ],
)
def test_centrilobular_grades_are_those_of_table_1b(percentage: float, score: int, severity: str) -> None:
    grade = CENTRILOBULAR.grade(percentage)
    assert (grade.score, grade.severity) == (score, severity)
    assert CENTRILOBULAR.score(percentage) == score


@pytest.mark.parametrize(
    ("percentage", "score", "severity"),
    [(0, 0, "absent"), (1, 1, "mild"), (4.9999, 1, "mild"), (5, 2, "substantial"), (100, 2, "substantial")],
)
def test_paraseptal_grades_are_those_of_table_1c(percentage: float, score: int, severity: str) -> None:
    grade = PARASEPTAL.grade(percentage)
    assert (grade.score, grade.severity) == (score, severity)


@pytest.mark.parametrize("subtype", SUBTYPES, ids=lambda subtype: subtype.name)
def test_intervals_cover_0_to_100_without_gap_or_overlap(subtype: Subtype) -> None:
    assert subtype.grades[0].lower == 0
    assert subtype.grades[-1].upper == 100
    for below, above in zip(subtype.grades, subtype.grades[1:], strict=False):
        assert below.upper == above.lower
        assert above.score == below.score + 1


def test_intervals_are_written_as_table_1_has_them() -> None:
    texts = [[interval_text(grade, grade is subtype.grades[-1]) for grade in subtype.grades] for subtype in SUBTYPES]
    assert texts == [
        ["below 1 %", "1 to 5 %", "5 to 10 %", "10 to 20 %", "20 to 30 %", "from 30 %"],
        ["below 1 %", "1 to 5 %", "from 5 %"],
    ]


@pytest.mark.parametrize("percentage", [-0.1, 100.1, math.nan, math.inf])
def test_a_percentage_outside_0_to_100_is_refused(percentage: float) -> None:
    with pytest.raises(ValueError, match="expected a number from 0 to 100"):
        CENTRILOBULAR.score(percentage)


@pytest.mark.parametrize(
    ("subtype", "percentage", "text"),
    [
        (CENTRILOBULAR, 4.9712, "4.97"),
        (CENTRILOBULAR, 4.99996, "4.99996"),
        (CENTRILOBULAR, 5.0412, "5.0"),
        (CENTRILOBULAR, 3.96, "4.0"),
        (CENTRILOBULAR, math.nextafter(30, 0), "29.999999999999996"),
        (CENTRILOBULAR, 99.97, "100.0"),
        (PARASEPTAL, 0.9601, "0.96"),
        (PARASEPTAL, 9.96, "10.0"),
        (PARASEPTAL, 0.0, "0.0"),
    ],
)
def test_a_percentage_is_shown_with_the_decimals_that_its_grade_needs(subtype: Subtype, percentage: float, text: str) -> None:
    assert subtype.percentage_text(percentage) == text
