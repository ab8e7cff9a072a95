"""The answer in words: scales as Table 1 of Xie et al. has them, and the charts beside it."""

from __future__ import annotations

import base64
import dataclasses
import re

import numpy as np
import pytest

from model.container.results import RegionMetrics, SubtypeScore
from model.fleischner import CENTRILOBULAR, PARASEPTAL
from model.rendering import COLOURS
from model.viewing.answer import always_in_view, region_diagram, score_scale
from model.viewing.charts import (
    DENSITY_COLOUR,
    LIMIT_COLOUR,
    LINE_COLOURS,
    MOST_HEIGHTS,
    height_chart,
    histogram_chart,
    with_text_colour,
)
from test.container.test_table import RESULT

GROUNDS = {"light": "#ffffff", "dark": "#0e1117"}
"""Of Streamlit's pages."""


def text_of(html: str) -> str:
    return " ".join(re.sub(r"<[^>]*>|&nbsp;", " ", html).split())


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


def test_heights_are_counted_from_the_lowest_slice_with_a_value_and_averaged_where_there_are_many() -> None:
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


def picture_in(html: str) -> str:
    found = re.search(r"base64,([^\"]+)", html)
    assert found is not None
    return base64.b64decode(found.group(1)).decode()


def test_regions_are_a_picture_that_says_its_percentages_in_words_too() -> None:
    assert RESULT.metrics is not None
    sides = {"right": RegionMetrics(20.0, 1.0, 17.25, -960, 2800), "left": RegionMetrics(0.0, 1.0, 1.0, -900, 2400)}
    html = region_diagram(CENTRILOBULAR, dataclasses.replace(RESULT.metrics, regions=sides))
    assert 'alt="Centrilobular, % of the region: right 20.0 %, left 0.0 %"' in html
    svg = picture_in(html)
    assert ">20.0 %<" in svg
    assert svg.count('fill-opacity="0.50"') == svg.count('fill-opacity="0.00"') == 1, "20 of 40 %, and none"


def test_lobes_are_shown_where_they_are_known_and_nothing_without_percentages() -> None:
    assert RESULT.metrics is not None
    lobes = ("right_upper_lobe", "right_middle_lobe", "right_lower_lobe", "left_upper_lobe", "left_lower_lobe")
    parts = {name: RegionMetrics(10.0 + number, 2.0, 3.0, -900, 900) for number, name in enumerate(("right", "left", *lobes))}
    svg = picture_in(region_diagram(CENTRILOBULAR, dataclasses.replace(RESULT.metrics, regions=parts)))
    assert re.findall(r">(\d+)\.0 %<", svg) == ["12", "13", "14", "15", "16"]
    assert region_diagram(PARASEPTAL, RESULT.metrics) == "", "a classification network has no percentages"


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours, as WCAG 2.2 defines it."""

    def luminance(colour: str) -> float:
        channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def test_the_contrast_of_known_colours() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005), "the example that is well known to fail 4.5"


def test_text_and_lines_have_the_contrast_of_level_aa() -> None:
    """WCAG 2.2: 4.5 for text (1.4.3), 3 for graphics (1.4.11)."""
    for filled in COLOURS.values():
        assert contrast("#000000", "#{:02x}{:02x}{:02x}".format(*filled)) >= 4.5, "the score that is marked on its scale"
    bar = re.search(r"background:(#\w{6});color:(#\w{3})", always_in_view())
    assert bar is not None
    assert contrast(bar.group(1), "#" + 2 * bar.group(2)[1:]) >= 4.5
    for theme, ground in GROUNDS.items():
        for colour in (*LINE_COLOURS.values(), DENSITY_COLOUR, LIMIT_COLOUR):
            assert contrast(colour, ground) >= 3, (colour, theme)


def test_charts_take_the_colour_of_text_from_the_page() -> None:
    chart = with_text_colour({"mark": "line"})
    assert chart["config"]["axis"]["labelColor"] == "currentColor"
    assert chart["usermeta"]["embedOptions"]["renderer"] == "svg", "a canvas keeps the colour that it was drawn with"
    assert chart["mark"] == "line"
