"""The page to print: what it says, in both formats, and that it is one page."""

from __future__ import annotations

import dataclasses
import io
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from model.container.report import report_page
from model.container.results import CaseResult, RegionMetrics
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
    "10 to 20 %",
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
    "Image quality",
    "20.4 HU",
    "1.06 mm",
    "-815 HU",
    "0.02 % of the surface",
)


def test_both_formats_say_what_was_found(slices: bytes, tmp_path: Path) -> None:
    pdf, html = report_page(RESULT, slices)
    text, pages = text_of_pdf(pdf, tmp_path)
    assert pages == 1
    for expected in EXPECTED:
        assert expected in text
        assert expected in text_of_html(html)


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
    assert "<script>alert(1)</script> & Größe ??" in text


def test_the_same_case_has_the_same_bytes(slices: bytes) -> None:
    assert report_page(RESULT, slices) == report_page(RESULT, slices)
