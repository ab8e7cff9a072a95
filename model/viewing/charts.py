"""Charts beside the answer, as Vega-Lite specifications: emphysema by height in the lung, and the density of the lung."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..lungs.densitometry import LOW_ATTENUATION_HU
from ..rendering import COLOURS

HEIGHT_PX = 320
MOST_HEIGHTS = 120


def height_chart(percent_by_height: dict[str, npt.NDArray[np.float64]], spacing_mm: float) -> dict[str, Any]:
    """Percent of the lung in each axial slice by height over the lung's base; slices are averaged where there are many.

    Args:
        percent_by_height: of each subtype: one value an axial slice, from the base; NaN where there is no lung.
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
            "y": {"field": "height", "type": "quantitative", "title": "mm above the lung's base"},
            "x": {"field": "percent", "type": "quantitative", "title": "% of the lung", "scale": {"domainMin": 0}},
            "order": {"field": "height"},
            "color": {
                "field": "subtype",
                "scale": {"domain": names, "range": [_hexadecimal(COLOURS[name]) for name in names]},
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
            {"data": {"values": values}, "mark": {"type": "area", "interpolate": "step-after"}, "encoding": axes},
            {
                "data": {"values": [{"HU": LOW_ATTENUATION_HU}]},
                "mark": {"type": "rule", "color": "#d62728", "strokeWidth": 2, "strokeDash": [4, 3]},
                "encoding": {"x": axes["x"]},
            },
        ],
    }


def _hexadecimal(colour: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)
