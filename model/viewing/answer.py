"""The answer in words and HTML: each score as a place on its scale, with the Fleischner names and their percentages."""

from __future__ import annotations

import base64
from html import escape

from .. import DISCLAIMER, __version__
from ..container.results import Metrics, SubtypeScore
from ..fleischner import Grade, Subtype, interval_text
from ..rendering import COLOURS

_MARKED = "border:3px solid currentColor;font-weight:700;"
_UNMARKED = "border:1px solid rgba(128,128,128,.6);"


def score_scale(subtype: Subtype, found: SubtypeScore) -> str:
    """HTML of one score: its name, the percentage, and all grades side by side with the found one marked."""
    highest = len(subtype.grades) - 1
    colour = "rgb({},{},{})".format(*COLOURS[subtype.name])
    extent = "no percentage: the weights classify"
    if found.percentage is not None:
        extent = f"{subtype.percentage_text(found.percentage)} % of the lung"
    name = f"{subtype.name.capitalize()} ({subtype.abbreviation.upper()})"
    grades = "".join(_grade(grade, grade.score == found.score, grade.score == highest, colour) for grade in subtype.grades)
    label = escape(f"{name} score: {found.score} of {highest}, {found.severity}, {extent}")
    return (
        f'<section aria-label="{label}" style="margin-bottom:.5rem">'
        f'<div style="display:flex;justify-content:space-between;align-items:baseline;flex-wrap:wrap;gap:0 .5rem">'
        f'<span><span style="display:inline-block;width:.8em;height:.8em;background:{colour};margin-right:.4em"></span>'
        f"{name}</span><span>{escape(extent)}</span></div>"
        f'<div style="font-size:1.6rem;font-weight:600;line-height:1.3">{found.score} ({escape(found.severity)})</div>'
        f'<div style="display:flex;flex-wrap:wrap;gap:2px">{grades}</div></section>'
    )


def _grade(grade: Grade, found: bool, last: bool, colour: str) -> str:
    shade = f"background:{colour};color:#000;" if found else ""
    return (
        f'<div style="flex:1;min-width:min-content;padding:2px;text-align:center;font-size:.68rem;line-height:1.2;'
        f'border-radius:4px;{shade}{_MARKED if found else _UNMARKED}">'
        f'<div style="font-size:.9rem">{grade.score}</div><div>{escape(grade.severity)}</div>'
        f"<div>{escape(interval_text(grade, last)).replace(' %', '&nbsp;%')}</div></div>"
    )


def measurements(metrics: Metrics) -> str:
    """HTML of the densitometry of the lungs, each value with what it means."""
    rows = (
        ("LAA-950", f"{metrics.laa950_percentage:.1f} %", "of the lung below -950 HU"),
        ("Perc15", f"{metrics.perc15_hu} HU", "15th percentile of lung density"),
        ("Lung volume", f"{metrics.lung_volume_ml} ml", "of the mask"),
    )
    items = "".join(
        f'<div style="flex:1"><div style="font-size:.8rem">{name}</div><div style="font-size:1.05rem;font-weight:600">'
        f'{escape(value)}</div><div style="font-size:.7rem">{escape(meaning)}</div></div>'
        for name, value, meaning in rows
    )
    return f'<div style="display:flex;gap:.6rem">{items}</div>'


_LUNGS = {
    "right": "M86,14 C58,6 30,48 20,112 C14,150 14,172 24,176 C46,160 70,158 92,166 Z",
    "left": "M114,14 C142,6 170,48 180,112 C186,150 186,172 176,176 C154,160 136,158 124,164 C130,140 112,128 108,116 Z",
}
"""Outlines of the lungs from the front, the patient's right on the left."""
_LOBES = {
    "right_upper_lobe": ("right", "0,0 100,0 100,84 0,98"),
    "right_middle_lobe": ("right", "100,84 0,98 0,124 100,136"),
    "right_lower_lobe": ("right", "0,124 100,136 100,200 0,200"),
    "left_upper_lobe": ("left", "100,0 200,0 200,92 100,126"),
    "left_lower_lobe": ("left", "200,92 100,126 100,200 200,200"),
}
"""The lung and the part of it that stands for each lobe. A diagram: from the front, lobes lie over each other."""
_TEXT_AT = {
    "right": (56, 112),
    "left": (146, 112),
    "both": (100, 178),
    "right_upper_lobe": (62, 66),
    "right_middle_lobe": (56, 114),
    "right_lower_lobe": (54, 152),
    "left_upper_lobe": (142, 74),
    "left_lower_lobe": (152, 140),
}
_FULL_SHADE_PERCENT = 40.0


def region_diagram(subtype: Subtype, metrics: Metrics) -> str:
    """HTML of a small picture: the lungs or their lobes from the front, shaded by the percentage of one subtype.

    Empty where there is no percentage.
    """
    field = f"{subtype.abbreviation}_percentage"
    percentages = {name: getattr(region, field) for name, region in metrics.regions.items()}
    if any(value is None for value in percentages.values()):
        return ""
    lobes = {name: value for name, value in percentages.items() if name in _LOBES}
    parts = lobes or percentages
    colour = "rgb({},{},{})".format(*COLOURS[subtype.name])
    shapes = []
    for name, value in parts.items():
        shade = f'fill="{colour}" fill-opacity="{min(value / _FULL_SHADE_PERCENT, 1):.2f}"'
        if name in _LOBES:
            lung, points = _LOBES[name]
            shapes.append(f'<g clip-path="url(#{lung})"><polygon points="{points}" {shade} stroke="#333"/></g>')
        else:
            shapes += [f'<path d="{_LUNGS[lung]}" {shade}/>' for lung in _LUNGS if name in (lung, "both")]
    outlines = "".join(f'<path d="{outline}" fill="none" stroke="#333" stroke-width="1.5"/>' for outline in _LUNGS.values())
    clips = "".join(f'<clipPath id="{lung}"><path d="{outline}"/></clipPath>' for lung, outline in _LUNGS.items())
    texts = "".join(
        f'<text x="{x}" y="{y}">{value:.1f} %</text>' for (x, y), value in ((_TEXT_AT[name], parts[name]) for name in parts)
    )
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 200 184" width="400" height="368">'
        f'<rect width="200" height="184" fill="#fff"/><defs>{clips}</defs>{"".join(shapes)}{outlines}'
        f'<g font-family="sans-serif" font-size="13" text-anchor="middle" fill="#000">{texts}'
        '<text x="8" y="14">R</text><text x="192" y="14">L</text></g></svg>'
    )
    words = ", ".join(f"{name.replace('_', ' ')} {value:.1f} %" for name, value in parts.items())
    title = f"{subtype.name.capitalize()}, % of the region"
    return (
        f'<figure style="margin:0"><img alt="{escape(title)}: {escape(words)}" style="width:100%;max-width:15rem" '
        f'src="data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}">'
        f'<figcaption style="font-size:.85rem">{escape(title)}</figcaption></figure>'
    )


def always_in_view() -> str:
    """HTML of the disclaimer: a bar that stays at the bottom of the window."""
    return (
        '<div role="note" style="position:fixed;bottom:0;left:0;right:0;z-index:1000;padding:.2rem 1rem;text-align:center;'
        f'background:#7a1f1f;color:#fff;font-size:.85rem">{escape(DISCLAIMER)} Version {escape(__version__)}.</div>'
    )
