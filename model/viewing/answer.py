"""The answer in words and HTML: each score as a place on its scale, with the Fleischner names and their percentages."""

from __future__ import annotations

from html import escape

from .. import DISCLAIMER, __version__
from ..container.results import Metrics, SubtypeScore
from ..fleischner import Grade, Subtype
from ..rendering import COLOURS

_MARKED = "border:3px solid currentColor;font-weight:700;"
_UNMARKED = "border:1px solid rgba(128,128,128,.6);"


def interval_text(grade: Grade, last: bool) -> str:
    """The percentages of the lung that a grade stands for (Xie et al. 2023, Table 1)."""
    if grade.lower == 0:
        return f"below {grade.upper:g} %"
    return f"from {grade.lower:g} %" if last else f"{grade.lower:g} to {grade.upper:g} %"


def score_scale(subtype: Subtype, found: SubtypeScore) -> str:
    """HTML of one score: its name, the percentage, and all grades side by side with the found one marked."""
    highest = len(subtype.grades) - 1
    colour = "rgb({},{},{})".format(*COLOURS[subtype.name])
    extent = "no percentage: the weights classify" if found.percentage is None else f"{found.percentage:.1f} % of the lung"
    name = f"{subtype.name.capitalize()} ({subtype.abbreviation.upper()})"
    grades = "".join(_grade(grade, grade.score == found.score, grade.score == highest, colour) for grade in subtype.grades)
    label = escape(f"{name} score: {found.score} of {highest}, {found.severity}, {extent}")
    return (
        f'<section aria-label="{label}" style="margin-bottom:.5rem">'
        f'<div style="display:flex;justify-content:space-between;align-items:baseline;flex-wrap:wrap">'
        f'<span><span style="display:inline-block;width:.8em;height:.8em;background:{colour};margin-right:.4em"></span>'
        f"{name}</span><span>{escape(extent)}</span></div>"
        f'<div style="font-size:1.6rem;font-weight:600;line-height:1.3">{found.score} ({escape(found.severity)})</div>'
        f'<div style="display:flex;gap:2px">{grades}</div></section>'
    )


def _grade(grade: Grade, found: bool, last: bool, colour: str) -> str:
    shade = f"background:{colour};color:#000;" if found else ""
    return (
        f'<div style="flex:1;min-width:0;padding:2px;text-align:center;font-size:.68rem;line-height:1.2;overflow-wrap:anywhere;'
        f'border-radius:4px;{shade}{_MARKED if found else _UNMARKED}">'
        f'<div style="font-size:.9rem">{grade.score}</div><div>{escape(grade.severity)}</div>'
        f"<div>{escape(interval_text(grade, last))}</div></div>"
    )


def measurements(metrics: Metrics) -> str:
    """HTML of the densitometry of the lungs, each value with what it means."""
    rows = (
        ("LAA-950", f"{metrics.laa950_percentage:.1f} %", "of the lung below -950 HU"),
        ("Perc15", f"{metrics.perc15_hu} HU", "15 % of the lung lie below"),
        ("Lung volume", f"{metrics.lung_volume_ml} ml", "of the mask"),
    )
    items = "".join(
        f'<div style="flex:1"><div style="font-size:.8rem">{name}</div><div style="font-size:1.05rem;font-weight:600">'
        f'{escape(value)}</div><div style="font-size:.7rem">{escape(meaning)}</div></div>'
        for name, value, meaning in rows
    )
    return f'<div style="display:flex;gap:.6rem">{items}</div>'


def always_in_view() -> str:
    """HTML of the disclaimer: a bar that stays at the bottom of the window."""
    return (
        '<div role="note" style="position:fixed;bottom:0;left:0;right:0;z-index:1000;padding:.2rem 1rem;text-align:center;'
        f'background:#7a1f1f;color:#fff;font-size:.85rem">{escape(DISCLAIMER)} Version {escape(__version__)}.</div>'
    )
