"""The answer in words: scales as Table 1 of Xie et al. has them, and the charts beside it."""

from __future__ import annotations

import re

import numpy as np
import pytest

from model.container.results import SubtypeScore
from model.fleischner import CENTRILOBULAR, PARASEPTAL
from model.viewing.answer import always_in_view, score_scale
from model.viewing.charts import MOST_HEIGHTS, height_chart, histogram_chart


def text_of(html: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", html).split())


def test_a_score_stands_on_its_scale_with_names_and_percentages() -> None:
    html = score_scale(CENTRILOBULAR, SubtypeScore(3, "moderate", 14.2))
    for part in (
        "3 (moderate)",
        "14.2 % of the lung",
        "0 absent below 1 %",
        "3 moderate 10 to 20 %",
        "5 advanced destructive from 30 %",
    ):
        assert part in text_of(html)
    assert html.count("border:3px") == 1, "one grade is marked, by more than its colour"
    assert 'aria-label="Paraseptal (PSE) score: 2 of 2, substantial, 7.0 % of the lung"' in score_scale(
        PARASEPTAL, SubtypeScore(2, "substantial", 7.0)
    )


def test_a_score_without_a_percentage_says_so() -> None:
    assert "no percentage" in text_of(score_scale(PARASEPTAL, SubtypeScore(0, "absent", None)))


def test_the_disclaimer_stays_in_view() -> None:
    assert "Research software, not a medical device." in always_in_view()
    assert "position:fixed" in always_in_view()


def test_heights_are_counted_from_the_base_of_the_lung_and_averaged_where_there_are_many() -> None:
    percent = np.full(500, np.nan)
    percent[100:340] = 5.0
    values = height_chart({"centrilobular": percent}, 0.5)["data"]["values"]
    assert len(values) == MOST_HEIGHTS
    assert {value["percent"] for value in values} == {5.0}
    assert values[0]["height"] == pytest.approx(0.2, abs=0.06)  # the mean of the first two slices, 0 and 0.5 mm
    assert values[-1]["height"] == pytest.approx(119.2, abs=0.06)


def test_the_histogram_has_a_line_at_950() -> None:
    _, rule = histogram_chart(np.array([-960.0, -950.0]), np.array([40.0, 60.0]))["layer"]
    assert rule["data"]["values"] == [{"HU": -950}]
