"""The printable report: what it says, in both formats, and that it is one page."""

from __future__ import annotations

import dataclasses
import io
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from model.container.command import summary
from model.container.report import report_page
from model.container.results import CaseResult, Quality, RegionMetrics
from test.conftest import need
from test.container.test_table import RESULT

LOBES = ("right", "left", "right_upper_lobe", "right_middle_lobe", "right_lower_lobe", "left_upper_lobe", "left_lower_lobe")


@pytest.fixture(scope="module")
def slices() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (944, 740), "grey").save(buffer, format="PNG")
    return buffer.getvalue()


class Words(HTMLParser):
    """The text of a page, without its style."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""

    def handle_data(self, data: str) -> None:
        self.text += f" {data}"


def text_of_html(html: str) -> str:
    parser = Words()
    parser.feed(html.partition("<body>")[2])
    return " ".join(parser.text.split())


def text_of_pdf(pdf: bytes, folder: Path) -> tuple[str, int]:
    """The text that Poppler reads, and the number of pages."""
    need(shutil.which("pdftotext") is not None, "pdftotext (Debian package poppler-utils)")
    (folder / "page.pdf").write_bytes(pdf)
    done = subprocess.run(["pdftotext", "-layout", folder / "page.pdf", "-"], capture_output=True, encoding="utf-8", check=True)
    return " ".join(done.stdout.split()), done.stdout.count("\f")


EXPECTED = (
    "scan",
    "Research software, not a medical device.",
    "Centrilobular emphysema: score 3 of 5, moderate, 14.2 % of the lung",
    "Paraseptal emphysema: score 1 of 2, mild",
    "advanced destructive",
    "below 1 %",
    "10 to 20 %",
    "from 30 %",
    "from 5 %",
    "those of Xie et al., Sci Rep 2023, Table 1, not the definitions of the Fleischner Society.",
    "16.9",
    "-957",
    "5266",
    "right",
    "17.2",
    "-960",
    "2800",
    "one; odd",
    "two",
    "trained on nothing, or little.",
    "Not validated on scans with visual scores.",
    "Image quality",
    "20 HU",
    "1.06 mm",
    "-815 HU",
    "lung surface outside the image",
)


def test_both_formats_say_what_was_found(slices: bytes, tmp_path: Path) -> None:
    pdf, html = report_page(RESULT, slices)
    text, pages = text_of_pdf(pdf, tmp_path)
    assert pages == 1
    for expected in EXPECTED:
        assert expected in text
        assert expected in text_of_html(html)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"validated_on": "500 scans of a hospital"}, "Validated on: 500 scans of a hospital."),
        ({}, "Not validated on scans with visual scores."),
        ({"lung_mask_source": "given"}, "Lung mask: supplied with the CT."),
        ({"lung_mask_source": "automatic"}, "Lung mask: segmented automatically; check the green contour."),
    ],
)
def test_the_notes_say_where_weights_and_lung_mask_come_from(slices: bytes, changes: dict[str, Any], said: str) -> None:
    assert RESULT.provenance is not None
    result = dataclasses.replace(RESULT, provenance=dataclasses.replace(RESULT.provenance, **changes))
    assert said in text_of_html(report_page(result, slices)[1])


@pytest.mark.parametrize(
    ("validated_on", "said"),
    [("500 scans", "Validated on: 500 scans."), (None, "Not validated on scans with visual scores.")],
)
def test_the_printed_table_says_what_the_weights_were_validated_on(validated_on: str | None, said: str) -> None:
    assert RESULT.provenance is not None
    result = dataclasses.replace(RESULT, provenance=dataclasses.replace(RESULT.provenance, validated_on=validated_on))
    assert said in summary([result], 1.0, Path("output")).splitlines()


def test_measures_of_image_quality_are_rounded_as_in_warnings() -> None:
    assert Quality(20.44, 1.0, 1.4115, 3.725, 5.0, 0.0, -825.6).measures == {
        "noise": "20 HU",
        "edge width": "1 mm",
        "pixel spacing": "1.41 mm",
        "slice spacing": "3.73 mm",
        "slice thickness": "5 mm",
        "lung surface outside the image": "0 %",
        "mean density": "-826 HU",
    }


def test_the_scores_that_were_found_are_marked_on_their_scales(slices: bytes) -> None:
    html = report_page(RESULT, slices)[1]
    assert [grade.partition("<")[0] for grade in re.findall(r"class=reached [^>]*>([^/]*)", html)] == ["3 moderate", "1 mild"]


def test_a_page_with_all_lobes_and_many_warnings_is_still_one_page(slices: bytes, tmp_path: Path) -> None:
    metrics = RESULT.metrics
    assert metrics is not None
    regions = dict.fromkeys(LOBES, RegionMetrics(15.5, 3.1, 17.25, -960, 2800))
    warnings = tuple(
        f"number {number}: the lung mask is implausible in a way that takes a long sentence" for number in range(12)
    )
    crowded = dataclasses.replace(RESULT, metrics=dataclasses.replace(metrics, regions=regions), warnings=warnings)
    text, pages = text_of_pdf(report_page(crowded, slices)[0], tmp_path)
    assert pages == 1
    assert "right middle lobe" in text
    assert "number 11" in text


def test_a_name_is_text_and_no_markup(slices: bytes, tmp_path: Path) -> None:
    odd = CaseResult("<script>alert(1)</script> & Größe 患者", RESULT.metrics, RESULT.provenance, ("<b>",))
    pdf, html = report_page(odd, slices)
    assert "<script>" not in html
    assert "<script>alert(1)</script> & Größe 患者" in text_of_html(html)
    text, _ = text_of_pdf(pdf, tmp_path)
    assert r"<script>alert(1)</script> & Größe \u60a3\u8005" in text


def test_the_same_case_has_the_same_bytes(slices: bytes) -> None:
    assert report_page(RESULT, slices) == report_page(RESULT, slices)


def test_a_percentage_below_a_threshold_is_not_shown_as_the_threshold(slices: bytes) -> None:
    metrics = RESULT.metrics
    assert metrics is not None
    near = dataclasses.replace(
        metrics, cle_severity_score=1, cle_severity="trace", cle_percentage=4.9712, pse_severity_score=0, pse_severity="absent"
    )
    result = dataclasses.replace(RESULT, metrics=dataclasses.replace(near, pse_percentage=0.9601))
    text = text_of_html(report_page(result, slices)[1])
    assert "score 1 of 5, trace, 4.97 % of the lung" in text
    assert "score 0 of 2, absent, 0.96 % of the lung" in text
    assert "lungs 5266 4.97 0.96 16.9" in text
    assert "1 trace, 4.97 %" in summary([result], 1.0, Path("output"))


def words_of_pdf(pdf: bytes, folder: Path) -> list[tuple[str, float, float]]:
    """The words on the page, each with its left and right end in points."""
    need(shutil.which("pdftotext") is not None, "pdftotext (Debian package poppler-utils)")
    (folder / "page.pdf").write_bytes(pdf)
    done = subprocess.run(["pdftotext", "-bbox", folder / "page.pdf", "-"], capture_output=True, encoding="utf-8", check=True)
    found = re.findall(r'<word xMin="([\d.]+)" yMin="[\d.]+" xMax="([\d.]+)"[^>]*>([^<]*)<', done.stdout)
    return [(word, float(left), float(right)) for left, right, word in found]


def test_texts_of_the_pdf_stay_in_their_fields(slices: bytes, tmp_path: Path) -> None:
    metrics = RESULT.metrics
    assert metrics is not None
    worst = dataclasses.replace(metrics, cle_severity_score=5, cle_severity="advanced destructive", cle_percentage=45.0)
    quality = Quality(21.3, 1.06, 0.7012, 5.0, 5.0, 12.34, -850.2)
    words = words_of_pdf(report_page(dataclasses.replace(RESULT, metrics=worst, quality=quality), slices)[0], tmp_path)
    left, right = 12 * 72 / 25.4, (210 - 12) * 72 / 25.4  # of the text on A4
    field = (right - left) / 6
    names = [word for word, *_ in words]
    at = max(place for place in range(len(names)) if names[place : place + 2] == ["advanced", "destructive"])
    assert names[at - 1] == "5"
    assert right - field < words[at - 1][1] < words[at + 1][2] < right
    at = names.index("outside")
    assert names[at - 4 : at + 5] == ["slice", "thickness", "lung", "surface", "outside", "the", "image", "mean", "density"]
    before, behind = words[at - 2][1] - words[at - 3][2], words[at + 3][1] - words[at + 2][2]
    assert min(before, behind) > 6
