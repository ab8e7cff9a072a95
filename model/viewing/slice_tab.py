"""The tab for single slices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import streamlit as st

from ..slices import CLASS_NAMES
from ..slices.images import as_picture, read_levels
from .case import example_files
from .planes import heat_over
from .uploads import Upload, private_folder
from .widgets import as_text, download, uploads, window_controls

_LEVELS = "levels"


@st.cache_resource(show_spinner=False)
def _classifier(bundle: Path) -> Any:
    from ..slices.bundle import SliceClassifier

    return SliceClassifier.from_bundle(bundle)


def slice_tab(bundle: Path, example_folder: Path) -> None:
    """Draw the tab.

    Args:
        bundle: of the slice network.
        example_folder: with the example case; need not exist.

    Raises:
        InputError: bundle or upload cannot be used.
    """
    classifier = _classifier(bundle)
    file = st.file_uploader("Slice: a PNG, JPEG or DICOM file, or a volume to choose a slice of", key="slice")
    example = example_files(example_folder)
    take_example = example is not None and st.toggle("A slice of the example (simulated)", disabled=file is not None)
    window = window_controls(st.columns(3)[0], "single")
    if file is not None:
        name = file.name
        with st.spinner("Reading the slices"):
            levels = _levels_of(file.file_id, *uploads([file]))
    elif example is not None and take_example:
        name = "example (simulated)"
        with st.spinner("Reading the slices"):
            levels = _levels_of("example", *example[0])
    else:
        st.session_state.pop(_LEVELS, None)
        return
    count = len(levels)
    number = st.slider("Slice of the volume, from the base", 1, count, (count + 1) // 2) if count > 1 else 1
    picture = as_picture(levels[number - 1], window)
    left, middle, right = st.columns(3)
    left.image(picture, caption=f"the slice: {as_text(name)}", width="stretch")
    with middle, st.spinner("Classifying the slice"):
        answer = classifier.predict(levels[number - 1])
    middle.image(heat_over(picture, answer.attention), caption="regions that support the class (Grad-CAM)", width="stretch")
    if answer.uncertain:
        needed = f"no class reaches {100 * classifier.metadata.uncertain_below:.0f} %"
        right.metric("Class", "uncertain", needed, delta_color="off", delta_arrow="off")
    else:
        share = f"{CLASS_NAMES[answer.label]}, {100 * answer.probabilities[answer.label]:.0f} %"
        right.metric("Class", answer.label, share, delta_color="off", delta_arrow="off")
    for label, share in answer.probabilities.items():
        right.progress(min(max(share, 0.0), 1.0), text=f"{label}, {CLASS_NAMES[label]}: {100 * share:.1f} %")
    right.caption(f"Network: {classifier.metadata.summary}.")
    download(
        st.container(), "Class and probabilities (JSON)", _slice_document(answer), "slice.json", "application/json", "single"
    )


def _levels_of(identifier: str, upload: Upload) -> np.ndarray:
    """The slices in an upload, read once for as long as it is there: the page is drawn anew at every touch."""
    known = st.session_state.get(_LEVELS)
    if known is not None and known[0] == identifier:
        return known[1]
    st.session_state.pop(_LEVELS, None)
    with private_folder() as folder:
        path = folder / f"slice{upload.suffix}"
        path.write_bytes(upload.content)
        levels = read_levels(path)
    st.session_state[_LEVELS] = identifier, levels
    return levels


def _slice_document(answer: Any) -> str:
    return (
        json.dumps({"class": answer.label, "likeliest": answer.likeliest, "probabilities": answer.probabilities}, indent=2)
        + "\n"
    )
