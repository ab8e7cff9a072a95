"""What several tabs of the page have: a window for the CT, downloads, and a user's text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import streamlit as st
from streamlit.delta_generator import DeltaGenerator
from streamlit.runtime.uploaded_file_manager import UploadedFile

from ..container.results import CaseResult
from ..slices.images import LUNG_WINDOW, Window
from .charts import with_text_colour
from .planes import WINDOWS
from .uploads import Upload


def as_text(name: str) -> str:
    """A user's text for Streamlit's Markdown, which shows it letter by letter."""
    return re.sub(r"([^\w\s]|_)", r"\\\1", name)


def uploads(files: Sequence[UploadedFile]) -> list[Upload]:
    """What a field of the page holds."""
    return [Upload(file.name, file.getvalue()) for file in files]


def window_controls(place: DeltaGenerator, key: str) -> Window:
    """Draw a choice of windows, with centre and width for a free one."""
    name = place.selectbox("Window", [*WINDOWS, "other"], key=f"{key}-window")
    if name != "other":
        return WINDOWS[name]
    centre = place.number_input("Centre, HU", value=LUNG_WINDOW.centre, step=50.0, key=f"{key}-centre")
    width = place.number_input("Width, HU", value=LUNG_WINDOW.width, min_value=1.0, step=50.0, key=f"{key}-width")
    return Window(centre, width)


def download(place: DeltaGenerator, label: str, content: str | bytes, name: str, mime: str | None, key: str) -> None:
    """A button that leaves the page as it is: were it drawn anew, a second download soon after could find its file gone."""
    place.download_button(label, content, name, mime, key=f"{key}-{name}", on_click="ignore")


def show_quality(result: CaseResult) -> None:
    """The measures of a scan's image quality, where there are some."""
    if result.quality is not None:
        st.caption(f"Image quality: {as_text(result.quality.text)}.")


def draw_chart(place: DeltaGenerator, title: str, chart: dict[str, Any]) -> None:
    """Draw a chart of `model.viewing.charts` below its title."""
    place.caption(title)
    place.vega_lite_chart(with_text_colour(chart), width="stretch")
