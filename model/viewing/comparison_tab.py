"""The tab that compares two scans."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import streamlit as st

from .. import fleischner
from ..rendering import AXES, Plane
from .answer import score_scale
from .case import SUBTYPES, ViewedCase
from .charts import HEIGHT_TITLE, height_chart
from .comparison import COLUMNS, differences, differences_table, region_differences, reservations, side_by_side
from .planes import png
from .widgets import as_text, download, draw_chart, show_quality, window_controls

FIRST, SECOND = "compare-first", "compare-second"
"""Keys of the fields that choose the scans, in Streamlit's session state."""


def comparison_tab(cases: Mapping[str, Callable[[], ViewedCase]]) -> None:
    """Draw the tab.

    Args:
        cases: how to open each case that can be compared, by what it is called.

    Raises:
        InputError: a case cannot be opened.
    """
    if len(cases) < 2:
        st.info(
            "Two scans are needed, such as a follow-up, or one scan with two kernels. Score a scan, press Keep to compare, and "
            "score the next; or open a finished output of several cases."
        )
        return
    for key in (FIRST, SECOND):
        if st.session_state.get(key) not in cases:
            st.session_state[key] = None  # it has gone meanwhile
    columns = st.columns(2)
    first = columns[0].selectbox("First scan", cases, key=FIRST, placeholder="Choose a scan")
    second = columns[1].selectbox("Second scan", cases, key=SECOND, placeholder="Choose a scan")
    if first is None or second is None:
        return  # nothing is opened before it is asked for: a scan takes a gigabyte
    names = (first, second)
    pair = (cases[first](), cases[second]())
    for place, name, case in zip(columns, names, pair, strict=True):
        metrics = case.result.metrics
        assert metrics is not None, "only cases that were scored are shown"
        with place:
            st.subheader(f"Scan: {as_text(name)}")
            if case.result.warnings:
                st.warning("\n".join(f"- {as_text(warning)}" for warning in case.result.warnings))
            for subtype in fleischner.SUBTYPES:
                st.html(score_scale(subtype, metrics.of(subtype)))
            show_quality(case.result)
    for reservation in reservations(pair[0].result, pair[1].result):
        st.warning(as_text(reservation))
    _show_differences(pair, names)
    _show_pictures(pair, names)


def _show_differences(pair: tuple[ViewedCase, ViewedCase], names: tuple[str, str]) -> None:
    first, second = (case.result.metrics for case in pair)
    assert first is not None
    assert second is not None
    lungs, regions = differences(first, second), region_differences(first, second)
    for place, rows in zip(st.columns(2), (lungs, regions), strict=True):
        if rows:
            place.table(dict(zip(COLUMNS, map(list, zip(*(row.cells for row in rows), strict=True)), strict=True)))
    download(
        st.container(),
        "Differences (CSV)",
        differences_table(names, [*lungs, *regions]),
        "differences.csv",
        "text/csv",
        "compare",
    )


def _show_pictures(pair: tuple[ViewedCase, ViewedCase], names: tuple[str, str]) -> None:
    where, height, how = st.columns([2, 3, 2])
    plane: Plane = where.radio("Plane", list(AXES), horizontal=True, key="compare-plane")
    share = height.slider("Position in the lungs, %", 0, 100, 50, key="compare-share") / 100
    window = window_controls(how, "compare")
    switches = st.columns(4)
    shown = [
        subtype
        for place, subtype in zip(switches, SUBTYPES, strict=False)
        if place.checkbox(f"{subtype.capitalize()} map", value=True, key=f"compare-{subtype}")
    ]
    picture = side_by_side(pair, names, plane, share, window, shown)
    st.image(picture, caption=f"{plane}, {100 * share:.0f} % of the way through the lungs", width="stretch")
    download(st.container(), "Both slices (PNG)", png(picture), "slices.png", "image/png", "compare")
    for place, name, case in zip(st.columns(2), names, pair, strict=True):
        if case.percent_by_height:
            title = f"{as_text(name)}: {HEIGHT_TITLE}"
            draw_chart(place, title, height_chart(case.percent_by_height, case.spacing[0]))
