"""A printable report of each case, as PDF and as HTML: scores on their scales, measurements, slices, warnings and weights.

Both show the same content. No browser is needed to make them.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from .. import DISCLAIMER
from ..fleischner import CENTRILOBULAR, PARASEPTAL, SUBTYPES, Subtype, interval_text
from ..rendering import COLOURS, Colour, without_commands
from .results import CaseResult, SubtypeScore

if TYPE_CHECKING:
    from reportlab.platypus import Flowable, Table

TITLE = "Emphysema subtypes on chest CT"
_COLUMNS = ("region", "volume, ml", "centrilobular, %", "paraseptal, %", "LAA-950, %", "Perc15, HU")
_EXPLAINED = (
    "Percentages are of the region. LAA-950: voxels below -950 HU. Perc15: 15th percentile of the density. Scores carry the "
    "names of the Fleischner grades; their intervals (percent of the lung volume) are those of Xie et al., Sci Rep 2023, Table "
    "1, not the definitions of the Fleischner Society. An interval includes its lower end."
)
_QUALITY_EXPLAINED = (
    "Noise: standard deviation in homogeneous lung. Edge width: sharpness of the edge to the chest wall. Lung surface outside "
    "the image: the part of the lungs' surface where the image ends. A warning is given when a measure lies outside the range "
    "of the scans that the weights were tested on."
)


@dataclass(frozen=True)
class Grade:
    """One field of a scale: the score with its name, the interval that it stands for, and whether the case has it."""

    title: str
    interval: str
    reached: bool


@dataclass(frozen=True)
class Scale:
    """A subtype's grades."""

    title: str
    grades: tuple[Grade, ...]
    colour: Colour


@dataclass(frozen=True)
class Page:
    """What the page says.

    Attributes:
        entity: the name of the case.
        scales: of both subtypes.
        rows: of the table of measurements, below `_COLUMNS`.
        slices: a PNG file.
        quality: name and value of each measure of image quality.
        warnings: about the case, one sentence each.
        notes: about the weights and the run, one sentence each.
    """

    entity: str
    scales: tuple[Scale, ...]
    rows: tuple[tuple[str, ...], ...]
    slices: bytes
    quality: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]

    @classmethod
    def of(cls, result: CaseResult, slices: bytes) -> Page:
        """The page of a case that was scored.

        Args:
            result: with metrics.
            slices: a PNG file, as `rendering.three_planes` draws it.
        """
        metrics = result.metrics
        assert metrics is not None
        scales = tuple(_scale(subtype, metrics.of(subtype)) for subtype in SUBTYPES)
        whole = ("lungs", metrics.lung_volume_ml, metrics.cle_percentage, metrics.pse_percentage)
        rows = [_row(*whole, metrics.laa950_percentage, metrics.perc15_hu)]
        for name, region in metrics.regions.items():
            if name != "both":
                extents = (region.cle_percentage, region.pse_percentage)
                rows.append(
                    _row(name.replace("_", " "), region.volume_ml, *extents, region.laa950_percentage, region.perc15_hu)
                )
        quality = tuple(result.quality.measures.items()) if result.quality else ()
        return cls(result.entity or "", scales, tuple(rows), slices, quality, result.warnings, tuple(_notes(result)))


def report_page(result: CaseResult, slices: bytes) -> tuple[bytes, str]:
    """The page of a case as PDF (A4) and as HTML that needs no other file; see `Page.of`."""
    page = Page.of(result, slices)
    return _pdf(page), _html(page)


def _scale(subtype: Subtype, found: SubtypeScore) -> Scale:
    extent = "" if found.percentage is None else f", {subtype.percentage_text(found.percentage)} % of the lung"
    grades = tuple(
        Grade(
            f"{grade.score} {grade.severity}",
            interval_text(grade, last=grade == subtype.grades[-1]),
            grade.score == found.score,
        )
        for grade in subtype.grades
    )
    title = f"{subtype.name.capitalize()} emphysema: score {found.score} of {len(grades) - 1}, {found.severity}{extent}"
    return Scale(title, grades, COLOURS[subtype.name])


def _row(name: str, volume: int, cle: float | None, pse: float | None, laa950: float, perc15: int) -> tuple[str, ...]:
    extents = (
        "not available" if value is None else subtype.percentage_text(value)
        for subtype, value in ((CENTRILOBULAR, cle), (PARASEPTAL, pse))
    )
    return (name, str(volume), *extents, f"{laa950:.1f}", str(perc15))


def _notes(result: CaseResult) -> list[str]:
    run = result.provenance
    assert run is not None
    source = {"given": "supplied with the CT", "automatic": "segmented automatically; check the green contour"}
    notes = [f"Weights: {run.bundle}, trained on {without_commands(run.trained_on)}.", run.validation]
    if run.sha256:
        notes.append(f"sha256 of the weights: {run.sha256}.")
    if run.lung_mask_source:
        notes.append(f"Lung mask: {source[run.lung_mask_source]}.")
    notes.append(f"emphysema-subtyping {run.version}, profile {run.profile}, {run.device}, {run.precision}.")
    return notes


_STYLE = """
body { font: 10pt/1.35 sans-serif; color: #111; background: #fff; max-width: 180mm; margin: 8mm auto; }
h1 { font-size: 15pt; margin: 0; } h2 { font-size: 11pt; margin: 3mm 0 1mm; }
.disclaimer { font-weight: bold; } .case { overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; } th, td { border: 1px solid #aaa; padding: 1mm 2mm; text-align: right; }
th:first-child, td:first-child { text-align: left; }
.scale td { text-align: center; width: 16%; color: #444; }
.scale td.reached { color: #000; font-weight: bold; border: 3px solid #000; }
.quality td, .quality td:first-child { text-align: center; }
img { width: 100%; margin-top: 3mm; }
.warnings { border: 2px solid #b07800; background: #fff6dc; padding: 1mm 3mm; margin: 3mm 0; }
small { color: #333; }
@page { size: A4; margin: 12mm; }
"""


def _html(page: Page) -> str:
    scales = "".join(
        f"<h2>{escape(scale.title)}</h2><table class=scale><tr>{''.join(_html_grade(scale, grade) for grade in scale.grades)}"
        "</tr></table>"
        for scale in page.scales
    )
    head = "".join(f"<th>{escape(column)}</th>" for column in _COLUMNS)
    rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in page.rows)
    warnings = "".join(f"<div>{escape(warning)}</div>" for warning in page.warnings)
    quality = ""
    if page.quality:
        names, values = ("".join(f"<td>{escape(text)}</td>" for text in column) for column in zip(*page.quality, strict=True))
        quality = (
            f"<h2>Image quality</h2><table class=quality><tr>{names}</tr><tr>{values}</tr></table>"
            f"<small>{_QUALITY_EXPLAINED}</small>"
        )
    picture = base64.b64encode(page.slices).decode()
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{escape(page.entity)}: {TITLE}</title><style>{_STYLE}</style></head><body>
<h1>{TITLE}</h1>
<div class="case">Case: <b>{escape(page.entity)}</b></div>
<div class="disclaimer">{DISCLAIMER}</div>
{f'<div class="warnings"><b>Warnings</b>{warnings}</div>' if warnings else ""}
{scales}
<h2>Measurements</h2>
<table><tr>{head}</tr>{rows}</table>
<small>{_EXPLAINED}</small>
{quality}
<img alt="Axial, coronal and sagittal slices with the activation maps" src="data:image/png;base64,{picture}">
<small>{"<br>".join(map(escape, page.notes))}<br>{"" if warnings else "No warnings."}</small>
</body></html>
"""


def _html_grade(scale: Scale, grade: Grade) -> str:
    background = f' class=reached style="background:rgb{_pale(scale.colour)}"' if grade.reached else ""
    return f"<td{background}>{escape(grade.title)}<br>{escape(grade.interval)}</td>"


def _pale(colour: Colour) -> Colour:
    """The colour mixed with white, so that black text can be read on it."""
    red, green, blue = ((value + 255) // 2 for value in colour)
    return red, green, blue


_POINTS_PER_MM = 72 / 25.4
_SCALE_POINTS = 7.5
"""Size of letters at which the longest name of a score fits into its field, in bold."""


def _pdf(page: Page) -> bytes:
    from reportlab.lib.pagesizes import A4
    from reportlab.lib.styles import ParagraphStyle
    from reportlab.platypus import Image, KeepInFrame, Paragraph, SimpleDocTemplate, Spacer

    mm = _POINTS_PER_MM
    plain = ParagraphStyle("plain", fontName="Helvetica", fontSize=8.5, leading=10.5)
    bold = ParagraphStyle("bold", plain, fontName="Helvetica-Bold")
    heading = ParagraphStyle("heading", bold, fontSize=10.5, leading=13, spaceBefore=5, spaceAfter=2)
    title = ParagraphStyle("title", bold, fontSize=15, leading=18)
    warning = ParagraphStyle("warning", plain, backColor="#fff6dc", borderColor="#b07800", borderWidth=1, borderPadding=4)
    width, height = A4[0] - 24 * mm, A4[1] - 24 * mm

    def text(content: str, style: ParagraphStyle = plain) -> Flowable:
        return Paragraph(escape(_latin(content)), style)

    story: list[Any] = [text(TITLE, title), text(f"Case: {page.entity}"), text(DISCLAIMER, bold), Spacer(1, 2 * mm)]
    if page.warnings:
        lines = "<br/>".join(escape(_latin(line)) for line in ("Warnings:", *page.warnings))
        story += [Spacer(1, 1 * mm), Paragraph(lines, warning), Spacer(1, 2 * mm)]
    for scale in page.scales:
        story += [text(scale.title, heading), _pdf_scale(scale, width)]
    story += [text("Measurements", heading), _pdf_table(page.rows, width), text(_EXPLAINED, plain)]
    if page.quality:
        story += [text("Image quality", heading), _pdf_quality(page.quality, width), text(_QUALITY_EXPLAINED, plain)]
    story.append(Spacer(1, 2 * mm))
    picture = Image(io.BytesIO(page.slices))
    scaling = min(width / picture.imageWidth, 0.45 * height / picture.imageHeight)
    picture.drawWidth, picture.drawHeight = scaling * picture.imageWidth, scaling * picture.imageHeight
    story += [picture, Spacer(1, 2 * mm), *(text(note) for note in page.notes)]
    if not page.warnings:
        story.append(text("No warnings."))

    buffer = io.BytesIO()
    margin = 12 * mm
    document = SimpleDocTemplate(
        buffer,
        pagesize=A4,
        leftMargin=margin - 6,
        rightMargin=margin - 6,
        topMargin=margin - 6,
        bottomMargin=margin - 6,
        title=TITLE,
        author="emphysema-subtyping",
        subject=DISCLAIMER,
        invariant=1,  # no date: the same case gives the same bytes
    )
    document.build([KeepInFrame(width, height, story, mode="shrink")])
    return buffer.getvalue()


def _pdf_scale(scale: Scale, width: float) -> Table:
    from reportlab.lib.colors import Color, black
    from reportlab.platypus import Table

    cells = [[f"{grade.title}\n{grade.interval}" for grade in scale.grades]]
    # All scales have fields of one width, so that they can be compared.
    table = Table(cells, colWidths=width / max(len(subtype.grades) for subtype in SUBTYPES), hAlign="LEFT")
    style: list[tuple[Any, ...]] = [
        ("GRID", (0, 0), (-1, -1), 0.5, Color(0.7, 0.7, 0.7)),
        ("ALIGN", (0, 0), (-1, -1), "CENTER"),
        ("FONT", (0, 0), (-1, -1), "Helvetica", _SCALE_POINTS),
        ("LEADING", (0, 0), (-1, -1), 10),
        ("LEFTPADDING", (0, 0), (-1, -1), 2),
        ("RIGHTPADDING", (0, 0), (-1, -1), 2),
    ]
    for column, grade in enumerate(scale.grades):
        if grade.reached:
            place = ((column, 0), (column, 0))
            style += [
                ("BACKGROUND", *place, Color(*(value / 255 for value in _pale(scale.colour)))),
                ("BOX", *place, 2, black),
                ("FONT", *place, "Helvetica-Bold", _SCALE_POINTS),
            ]
    table.setStyle(style)
    return table


def _pdf_table(rows: Sequence[tuple[str, ...]], width: float) -> Table:
    from reportlab.lib.colors import Color
    from reportlab.platypus import Table

    table = Table([_COLUMNS, *rows], colWidths=[width * share for share in (0.25, *(5 * [0.15]))], hAlign="LEFT")
    table.setStyle(
        [
            ("GRID", (0, 0), (-1, -1), 0.5, Color(0.7, 0.7, 0.7)),
            ("FONT", (0, 0), (-1, -1), "Helvetica", 8.5),
            ("FONT", (0, 0), (-1, 0), "Helvetica-Bold", 8.5),
            ("ALIGN", (1, 0), (-1, -1), "RIGHT"),
            ("TOPPADDING", (0, 0), (-1, -1), 1.5),
            ("BOTTOMPADDING", (0, 0), (-1, -1), 1.5),
        ]
    )
    return table


def _pdf_quality(quality: Sequence[tuple[str, str]], width: float) -> Table:
    from reportlab.lib.colors import Color
    from reportlab.pdfbase.pdfmetrics import stringWidth
    from reportlab.platypus import Table

    names, values = zip(*quality, strict=True)
    widths = [max(stringWidth(text, "Helvetica", 8) for text in column) for column in quality]
    spare = (width - sum(widths)) / len(quality)  # the same for each column
    table = Table([names, values], colWidths=[needed + spare for needed in widths], hAlign="LEFT")
    table.setStyle(
        [
            ("GRID", (0, 0), (-1, -1), 0.5, Color(0.7, 0.7, 0.7)),
            ("FONT", (0, 0), (-1, -1), "Helvetica", 8),
            ("ALIGN", (0, 0), (-1, -1), "CENTER"),
            ("TOPPADDING", (0, 0), (-1, -1), 1.5),
            ("BOTTOMPADDING", (0, 0), (-1, -1), 1.5),
        ]
    )
    return table


def _latin(text: str) -> str:
    r"""A text in the letters that PDF's standard fonts have; others are escaped (as `\u60a3`), so that names stay apart."""
    return text.encode("cp1252", "backslashreplace").decode("cp1252")
