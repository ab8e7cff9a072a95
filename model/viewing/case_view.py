"""One case on the page: its answer, warnings, pictures, downloads, charts and regions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import streamlit as st

from .. import fleischner
from ..container.results import CaseResult, results_text
from ..container.table import results_table
from ..rendering import AXES, Plane, without_commands
from .answer import measurements, region_diagram, score_scale
from .case import SUBTYPES, ViewedCase
from .charts import HEIGHT_TITLE, height_chart, histogram_chart
from .linked_planes import linked_planes
from .planes import SLABS, labelled, plane_picture, png
from .widgets import as_text, download, draw_chart, show_quality, window_controls

_PICTURES = ("Three linked planes", "One plane, labelled, to download")
_FROM: dict[Plane, str] = {"axial": "from the base", "coronal": "from the front", "sagittal": "from the right"}


def show_answer(result: CaseResult) -> None:
    """Draw the scores on their scales, the densitometry and the weights."""
    metrics, provenance = result.metrics, result.provenance
    assert metrics is not None, "only cases that were scored are shown"
    assert provenance is not None, "a case that was scored has it"
    for subtype in fleischner.SUBTYPES:
        st.html(score_scale(subtype, metrics.of(subtype)))
    st.html(measurements(metrics))
    trained_on = as_text(without_commands(provenance.trained_on))
    st.caption(f"Weights: {as_text(provenance.bundle)}, trained on {trained_on}. {as_text(provenance.validation)}")


def show_case(case: ViewedCase, name: str, key: str) -> None:
    """Draw all but the answer.

    Args:
        name: of the scan, for the title and the pictures.
        key: of the controls: another one for each case, so that controls of one do not pass to the next.
    """
    st.subheader(f"Scan: {as_text(name)}")
    _show_warnings(case)
    if st.radio("Pictures", _PICTURES, horizontal=True, key=f"{key}-pictures", label_visibility="collapsed") == _PICTURES[0]:
        linked_planes(case, name, f"{key}-linked")
        picture = None
    else:
        picture = _show_slices(case, name, key)
    _show_downloads(case, picture, key)
    _show_charts(case)
    _show_regions(case.result)


def _show_warnings(case: ViewedCase) -> None:
    """What makes the answer doubtful, before the answer."""
    warnings = list(case.result.warnings)
    if case.hounsfield is None:
        warnings.append("The CT of this case was not found; the maps are shown on black.")
    if warnings:
        st.warning("\n".join(f"- {as_text(warning)}" for warning in warnings))
    show_quality(case.result)
    if case.result.provenance is not None and case.result.provenance.lung_mask_source == "automatic":
        st.info("The lungs were segmented automatically. Check the green contour: what lies outside it was not scored.")


def _show_regions(result: CaseResult) -> None:
    assert result.metrics is not None, "only cases that were scored are shown"
    regions = result.metrics.regions
    names = {
        "cle_percentage": "centrilobular, %",
        "pse_percentage": "paraseptal, %",
        "laa950_percentage": "LAA-950, %",
        "perc15_hu": "Perc15, HU",
        "volume_ml": "volume, ml",
    }
    table, *pictures = st.columns([3, 1, 1])
    for place, subtype in zip(pictures, fleischner.SUBTYPES, strict=True):
        place.html(region_diagram(subtype, result.metrics))
    table.table(
        {
            "region": [name.replace("_", " ") for name in regions],
            **{title: [_rounded(getattr(part, field)) for part in regions.values()] for field, title in names.items()},
        }
    )


def _rounded(value: float | None) -> str:
    return "none" if value is None else f"{value:.1f}" if isinstance(value, float) else str(value)


def _show_charts(case: ViewedCase) -> None:
    left, right = st.columns(2)
    if case.percent_by_height:
        draw_chart(left, HEIGHT_TITLE, height_chart(case.percent_by_height, case.spacing[0]))
    if case.histogram is not None:
        draw_chart(right, "HU inside the lung; the line is -950 HU", histogram_chart(*case.histogram))


def _show_slices(case: ViewedCase, name: str, key: str) -> np.ndarray:
    """The controls and the picture below them; returns the picture as it is shown."""
    where, how = st.columns([3, 2])
    plane: Plane = where.radio("Plane", list(AXES), horizontal=True, key=f"{key}-plane")
    slices = case.shape[AXES[plane]]
    kept = st.session_state.setdefault(f"{key}-slices", {"axial": case.most_affected_level + 1})
    number = where.slider("Slice", 1, slices, kept.get(plane, (slices + 1) // 2), key=f"{key}-slice-{plane}")
    kept[plane] = number  # Streamlit forgets a slider that is not drawn
    window_place, slab_place = how.columns(2)
    window = window_controls(window_place, key)
    slab = SLABS[slab_place.selectbox("Slab", list(SLABS), key=f"{key}-slab")]
    switches = st.columns(5)
    shown = [
        subtype
        for place, subtype in zip(switches, SUBTYPES, strict=False)
        if place.checkbox(f"{subtype.capitalize()} map", value=True, key=f"{key}-{subtype}")
    ]
    contour = case.lung is not None and switches[2].checkbox("Lung contour", value=True, key=f"{key}-contour")
    apart = switches[3].toggle("Side by side", key=f"{key}-apart", help="CT and each map in a picture of its own")
    opacity = switches[4].slider("Opacity, %", 0, 100, 65, key=f"{key}-opacity") / 100

    def drawn(subtypes: Sequence[str], title: str) -> np.ndarray:
        maps = {subtype: case.maps[subtype] for subtype in subtypes}
        strength = opacity
        if case.hounsfield is None and not maps:
            maps, strength = case.maps, 0.0
        lung = case.lung if contour else None
        pixels = plane_picture(
            case.hounsfield, maps, plane, number - 1, case.spacing, window, strength, lung, strength > 0, slab
        )
        across = 1 if plane == "sagittal" else 2
        position = f"{plane} slice {number} of {slices}, {(number - 1) * case.spacing[AXES[plane]]:.0f} mm {_FROM[plane]}"
        projected = f"; {slab.projection} of {slab.thickness_mm:g} mm" if slab is not None else ""
        notes = (position, f"window: centre {window.centre:g} HU, width {window.width:g} HU{projected}")
        return labelled(pixels, plane, case.shape[across] * case.spacing[across], title, subtypes, contour, notes)

    if apart:
        pictures = [drawn([], f"{name}: CT"), *(drawn([subtype], f"{name}: {subtype}") for subtype in shown)]
    else:
        pictures = [drawn(shown, name)]
    picture = np.concatenate(pictures, axis=1)
    st.image(picture, caption=f"{plane} slice {number} of {slices}", width="stretch" if apart else "content")
    return picture


def _show_downloads(case: ViewedCase, picture: np.ndarray | None, key: str) -> None:
    row = st.container(horizontal=True)
    download(row, "Results (JSON)", results_text([case.result]), "results.json", "application/json", key)
    download(row, "Results (CSV)", results_table([case.result]), "results.csv", "text/csv", key)
    files = case.files
    for subtype, content in files.maps.items():
        download(row, f"{subtype.capitalize()} map (.mha)", content, f"{subtype}-emphysema-heatmap.mha", None, key)
    if files.lung_mask is not None:
        download(row, "Lungs that were scored (.mha)", files.lung_mask, "lung-mask.mha", None, key)
    if picture is not None:
        download(row, "This slice (PNG)", png(picture), "slice.png", "image/png", key)
    if files.report_pdf is not None:
        download(row, "Printable report (PDF)", files.report_pdf, "report.pdf", "application/pdf", key)
    if files.report_html is not None:
        download(row, "Printable report (HTML)", files.report_html, "report.html", "text/html", key)
    if files.overview is not None:
        download(row, "Overview (PNG)", files.overview, "overview.png", "image/png", key)
