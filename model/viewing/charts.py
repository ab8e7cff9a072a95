"""Charts beside the answer, as Vega-Lite specifications: emphysema by height in the lung, and the density of the lung."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..lungs.densitometry import LOW_ATTENUATION_HU

HEIGHT_PX = 320
LINE_COLOURS = {"centrilobular": "#d55e00", "paraseptal": "#0072b2"}
"""Orange and blue of Okabe and Ito, for the colour-blind. Those of the maps are too light for lines on white."""
DENSITY_COLOUR, LIMIT_COLOUR = "#7a7f87", "#c0392b"
MOST_HEIGHTS = 120
SMALLEST_SLICE = 0.05
"""Of the largest slice's lung area: below it, a few voxels at the apex or the base would be the largest percentages."""
HEIGHT_TITLE = (
    "Emphysema by height in the lung, percent of the lung in each axial slice, without slices that have less than "
    f"{100 * SMALLEST_SLICE:.0f} % of the largest one's lung"
)


def with_text_colour(chart: dict[str, Any]) -> dict[str, Any]:
    """A chart whose axes and legend have the colour of the page's text, also after the browser has changed to dark.

    Streamlit's own grey of axes has too little contrast. Only in an SVG, the colour follows that of the page.
    """
    colour = {"labelColor": "currentColor", "titleColor": "currentColor"}
    return {**chart, "config": {"axis": colour, "legend": colour}, "usermeta": {"embedOptions": {"renderer": "svg"}}}


def height_chart(percent_by_height: dict[str, npt.NDArray[np.float64]], spacing_mm: float) -> dict[str, Any]:
    """Percent of the lung in each axial slice by height over the lowest slice with a value; averaged where there are many.

    Args:
        percent_by_height: of each subtype: one value an axial slice, from the base; NaN where there is none.
        spacing_mm: between axial slices.
    """
    values = []
    for subtype, percent in percent_by_height.items():
        inside = np.flatnonzero(~np.isnan(percent))
        for part in np.array_split(inside, min(len(inside), MOST_HEIGHTS)):
            height = (part.mean() - inside[0]) * spacing_mm
            values.append({"subtype": subtype, "height": round(float(height), 1), "percent": float(percent[part].mean())})
    names = list(percent_by_height)
    return {
        "height": HEIGHT_PX,
        "data": {"values": values},
        "mark": {"type": "line", "strokeWidth": 2.5},
        "encoding": {
            "y": {"field": "height", "type": "quantitative", "title": "mm above the lowest slice shown"},
            "x": {"field": "percent", "type": "quantitative", "title": "% of the lung", "scale": {"domainMin": 0}},
            "order": {"field": "height"},
            "color": {
                "field": "subtype",
                "scale": {"domain": names, "range": [LINE_COLOURS[name] for name in names]},
                "legend": {"orient": "top", "title": None},
            },
            "strokeDash": {"field": "subtype", "scale": {"domain": names, "range": [[1, 0], [6, 3]]}},
        },
    }


def histogram_chart(bounds: npt.NDArray[np.float64], percent: npt.NDArray[np.float64]) -> dict[str, Any]:
    """Density of the lung, with a line where low attenuation begins.

    Args:
        bounds: lower bounds of the bins; HU.
        percent: of the lung's voxels in each bin.
    """
    values = [{"HU": float(bound), "percent": float(share)} for bound, share in zip(bounds, percent, strict=True)]
    axes = {
        "x": {"field": "HU", "type": "quantitative", "scale": {"zero": False, "nice": False}},
        "y": {"field": "percent", "type": "quantitative", "title": "% of the lung"},
    }
    return {
        "height": HEIGHT_PX,
        "layer": [
            {
                "data": {"values": values},
                "mark": {"type": "area", "interpolate": "step-after", "color": DENSITY_COLOUR},
                "encoding": axes,
            },
            {
                "data": {"values": [{"HU": LOW_ATTENUATION_HU}]},
                "mark": {"type": "rule", "color": LIMIT_COLOUR, "strokeWidth": 2, "strokeDash": [4, 3]},
                "encoding": {"x": axes["x"]},
            },
        ],
    }
