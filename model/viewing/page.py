"""The viewer's page (Streamlit): a CT with its activation maps, and single slices. `viewer.py` starts it.

What somebody uploads, and what comes of it, is kept in the memory of their session and goes with it. Nothing of it is logged.
"""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import streamlit as st
from streamlit.delta_generator import DeltaGenerator
from streamlit.runtime.uploaded_file_manager import UploadedFile

from .. import DISCLAIMER, __version__, fleischner
from ..container.results import CaseResult, results_text
from ..errors import InputError
from ..slices import CLASS_NAMES
from ..slices.images import LUNG_WINDOW, Window, as_picture, read_levels
from ..stages import Stage, observed_by, stage_line
from .access import Access
from .case import SUBTYPES, ViewedCase, finished_cases, open_finished, score_uploads
from .planes import AXES, WINDOWS, PlaneName, heat_over, plane_picture, png
from .uploads import Upload, private_folder

logger = logging.getLogger(__name__)

WRONG_PASSWORD_SECONDS = 2.0
_SCORED, _ADMITTED, _LEVELS, _UPLOADERS = "scored", "admitted", "levels", "uploaders"
_ONE_AT_A_TIME = threading.Lock()
"""A full-size scan takes gigabytes of memory."""


@dataclass(frozen=True)
class PageOptions:
    """What the page was started with.

    Attributes:
        bundle: where weight bundles are looked for, in this order.
        slices_bundle: of the slice network.
        input, output: a folder that was scored and what was written for it, to be opened from the page; or None.
        lungmask_weights: of the lungmask network, to find lungs with; or None.
        device, precision: as `EmphysemaSubtyper.from_bundle` takes them.
    """

    bundle: tuple[Path, ...]
    slices_bundle: Path
    input: Path | None
    output: Path | None
    lungmask_weights: Path | None
    device: Any
    precision: Any
    access: Access


@dataclass(frozen=True)
class ScoredUploads:
    """A case and the uploads that it was scored from: it is shown only as long as they are the ones in the fields.

    Attributes:
        files: identifiers that Streamlit gave to the uploads; another upload of the same file has another one.
        name: of the CT, as the user called it; shown on the page, never logged.
        case: the result.
    """

    files: tuple[tuple[str, ...], tuple[str, ...]]
    name: str = field(repr=False)
    case: ViewedCase = field(repr=False)


def show(options: PageOptions) -> None:
    """Draw the page; Streamlit calls this anew whenever somebody touches something."""
    st.set_page_config("Emphysema subtyping", layout="wide")
    st.title("Emphysema subtyping on chest CT")
    st.caption(f"{DISCLAIMER} Version {__version__}.")
    if not _admitted(options.access):
        return
    scan, finished, single = st.tabs(["CT scan", "Finished output", "Single slice"])
    with scan, _errors_shown():
        _scan_tab(options)
    with finished, _errors_shown():
        _finished_tab(options)
    with single, _errors_shown():
        _slice_tab(options)


def _admitted(access: Access) -> bool:
    if access.refuses(dict(st.context.headers)):
        st.error(
            "This viewer is for the machine that it runs on, and your request came from elsewhere or through a tunnel. "
            "Whoever runs it can start it with a password (--password-file), or with --behind-proxy."
        )
        return False
    if access.password is None or st.session_state.get(_ADMITTED):
        return True
    with st.form("password"):
        given = st.text_input("Password", type="password")
        entered = st.form_submit_button("Enter")
    if entered and access.admits(given):
        st.session_state[_ADMITTED] = True
        st.rerun()
    if entered:
        time.sleep(WRONG_PASSWORD_SECONDS)  # so that trying many takes long
        st.error("Wrong password.")
    return False


@contextmanager
def _errors_shown() -> Iterator[None]:
    """Show what is wrong with an input; of our own errors show and log the kind alone: their text may quote an upload."""
    try:
        yield
    except InputError as error:
        st.error(str(error))
    except MemoryError:
        st.error("The memory of this machine does not suffice for this scan.")
    except Exception as error:
        if type(error).__module__.startswith("streamlit"):
            raise  # how Streamlit stops and reruns a page
        logger.error("unexpected %s", type(error).__name__)
        st.error(f"Something went wrong that is not your input's fault ({type(error).__name__}).")


def _scan_tab(options: PageOptions) -> None:
    left, right = st.columns(2)
    uploaders = st.session_state.setdefault(_UPLOADERS, 0)
    ct_files = left.file_uploader(
        "CT: one .mha, .nii, .nii.gz or .nrrd file, or the DICOM files of one series (or a .zip of them)",
        accept_multiple_files=True,
        key=f"ct-{uploaders}",
    )
    mask_files = right.file_uploader(
        "Lung mask, on any grid; without one, the lungs are segmented", accept_multiple_files=True, key=f"mask-{uploaders}"
    )
    buttons = st.columns([1, 1, 6])
    score = buttons[0].button("Score", type="primary", disabled=not ct_files)
    anything = bool(ct_files or mask_files)
    if buttons[1].button("Forget", disabled=not anything, help="Remove the scan and its results from memory"):
        st.session_state.pop(_SCORED, None)
        st.session_state[_UPLOADERS] = uploaders + 1  # fields of another key start without files
        st.rerun()
    files = _identifiers(ct_files), _identifiers(mask_files)
    scored: ScoredUploads | None = st.session_state.get(_SCORED)
    if scored is not None and (score or scored.files != files):
        del st.session_state[_SCORED]  # it is of other files than those in the fields now, or about to be made anew
        scored = None
    shown = st.empty()  # replaces what an earlier run of the page drew, before the minute of scoring
    if score:
        case = _scored(options, ct_files, mask_files)
        scored = st.session_state[_SCORED] = ScoredUploads(files, _name_of(ct_files), case)
    if scored is not None:
        with shown.container():
            st.subheader(f"Scan: {_as_text(scored.name)}")
            _show_case(scored.case, "scan")
    elif ct_files:
        shown.info("Press Score to see the result of these files.")


def _identifiers(files: Sequence[UploadedFile]) -> tuple[str, ...]:
    return tuple(file.file_id for file in files)


def _name_of(files: Sequence[UploadedFile]) -> str:
    others = len(files) - 1
    return f"{files[0].name} and {others} more files" if others > 1 else " and ".join(file.name for file in files)


def _as_text(name: str) -> str:
    """A user's text for Streamlit's Markdown, which shows it letter by letter."""
    return re.sub(r"([^\w\s])", r"\\\1", name)


def _scored(options: PageOptions, ct_files: Sequence[UploadedFile], mask_files: Sequence[UploadedFile]) -> ViewedCase:
    with st.status("Scoring; a full-size scan takes a minute or so on a CPU", expanded=True) as status:

        def show_stage(stage: Stage, seconds: float) -> None:
            status.write(stage_line(stage, seconds))

        try:
            status.write(str(Stage.WEIGHTS))
            subtyper = _subtyper(options.bundle, options.device, options.precision)
            if _ONE_AT_A_TIME.locked():
                status.write("another scan is being scored; waiting for it")
            with _ONE_AT_A_TIME, observed_by(show_stage):
                case = score_uploads(subtyper, _uploads(ct_files), _uploads(mask_files), options.lungmask_weights)
        except Exception:
            status.update(label="Not scored", state="error", expanded=False)
            raise
        status.update(label="Scored", state="complete", expanded=False)
    return case


@st.cache_resource(show_spinner=False)
def _subtyper(places: tuple[Path, ...], device: Any, precision: Any) -> Any:
    """The network, once for all sessions."""
    from ..subtyping import EmphysemaSubtyper
    from ..weights import locate_bundle

    return EmphysemaSubtyper.from_bundle(locate_bundle(*places), device, precision)


@st.cache_resource(show_spinner=False)
def _classifier(bundle: Path) -> Any:
    from ..slices.bundle import SliceClassifier

    return SliceClassifier.from_bundle(bundle)


def _uploads(files: Sequence[UploadedFile]) -> list[Upload]:
    return [Upload(file.name, file.getvalue()) for file in files]


def _finished_tab(options: PageOptions) -> None:
    if options.output is None:
        st.info("Start the viewer with --output FOLDER (and --input FOLDER, for the CT) to open what process.py wrote there.")
        return
    results = finished_cases(options.output)
    entity = st.selectbox("Case", list(results), key="entity")
    st.subheader(f"Scan: {_as_text(entity)}")
    _show_case(_finished(options.output, results[entity], options.input), "finished")


@st.cache_resource(show_spinner="Opening", max_entries=1)
def _finished(output: Path, result: CaseResult, inputs: Path | None) -> ViewedCase:
    return open_finished(output, result, inputs)


def _show_case(case: ViewedCase, key: str) -> None:
    _show_metrics(case.result)
    if case.hounsfield is None:
        st.info("The CT of this case was not found; the maps are shown on black.")
    picture = _show_slices(case, key)
    _show_downloads(case, picture, key)


def _show_metrics(result: CaseResult) -> None:
    metrics, provenance = result.metrics, result.provenance
    assert metrics is not None, "only cases that were scored are shown"
    assert provenance is not None, "a case that was scored has it"
    columns = st.columns(5)
    for column, subtype in zip(columns, fleischner.SUBTYPES, strict=False):
        found = metrics.of(subtype)
        delta = None if found.percentage is None else f"{found.percentage:.1f} % of the lung"
        score = f"{found.score} ({found.severity})"
        column.metric(f"{subtype.name.capitalize()} score", score, delta, delta_color="off", delta_arrow="off")
    columns[2].metric("LAA-950", f"{metrics.laa950_percentage:.1f} %")
    columns[3].metric("Perc15", f"{metrics.perc15_hu} HU")
    columns[4].metric("Lung volume", f"{metrics.lung_volume_ml} ml")
    if provenance.lung_mask_source == "automatic":
        st.info("The lungs were segmented automatically. Check the slices: what lies outside the lungs was not scored.")
    for warning in result.warnings:
        st.warning(warning)
    if result.quality is not None:
        st.caption(f"Image quality: {result.quality.text}.")
    names = {
        "cle_percentage": "centrilobular, %",
        "pse_percentage": "paraseptal, %",
        "laa950_percentage": "LAA-950, %",
        "perc15_hu": "Perc15, HU",
        "volume_ml": "volume, ml",
    }
    st.table(
        {
            "region": [name.replace("_", " ") for name in metrics.regions],
            **{title: [_rounded(getattr(part, field)) for part in metrics.regions.values()] for field, title in names.items()},
        }
    )
    st.caption(f"Weights: {provenance.bundle}, trained on {provenance.trained_on}.")


def _rounded(value: float | None) -> str:
    return "none" if value is None else f"{value:.1f}" if isinstance(value, float) else str(value)


def _show_slices(case: ViewedCase, key: str) -> np.ndarray:
    """The controls and the picture beside them; returns the picture as it is shown."""
    controls, view = st.columns([1, 3])
    plane: PlaneName = controls.radio("Plane", list(AXES), horizontal=True, key=f"{key}-plane")
    slices = case.shape[AXES[plane]]
    number = controls.slider("Slice", 1, slices, (slices + 1) // 2, key=f"{key}-slice-{plane}")
    window = _window_controls(controls, key)
    shown = [
        subtype for subtype in SUBTYPES if controls.checkbox(f"{subtype.capitalize()} map", value=True, key=f"{key}-{subtype}")
    ]
    apart = controls.toggle("Maps apart, side by side", key=f"{key}-apart")
    opacity = controls.slider("Opacity of the maps, %", 0, 100, 65, key=f"{key}-opacity") / 100

    def drawn(subtypes: Sequence[str]) -> np.ndarray:
        maps = {subtype: case.maps[subtype] for subtype in subtypes}
        if case.hounsfield is None and not maps:
            maps, strength = case.maps, 0.0
        else:
            strength = opacity
        return plane_picture(case.hounsfield, maps, plane, number - 1, case.spacing, window, strength)

    pictures = [drawn([subtype]) for subtype in shown] if apart and len(shown) > 1 else [drawn(shown)]
    picture = np.concatenate(pictures, axis=1)
    view.image(picture, caption=f"{plane} slice {number} of {slices}", width="stretch")
    return picture


def _window_controls(place: DeltaGenerator, key: str) -> Window:
    name = place.selectbox("Window", [*WINDOWS, "other"], key=f"{key}-window")
    if name != "other":
        return WINDOWS[name]
    centre = place.number_input("Centre, HU", value=LUNG_WINDOW.centre, step=50.0, key=f"{key}-centre")
    width = place.number_input("Width, HU", value=LUNG_WINDOW.width, min_value=1.0, step=50.0, key=f"{key}-width")
    return Window(centre, width)


def _show_downloads(case: ViewedCase, picture: np.ndarray, key: str) -> None:
    places = iter(st.columns(5))
    _download(next(places), "Results (JSON)", results_text([case.result]), "results.json", "application/json", key)
    for subtype, content in case.map_files.items():
        _download(next(places), f"{subtype.capitalize()} map (.mha)", content, f"{subtype}-emphysema-heatmap.mha", None, key)
    _download(next(places), "This slice (PNG)", png(picture), "slice.png", "image/png", key)
    if case.overview is not None:
        _download(next(places), "Overview (PNG)", case.overview, "overview.png", "image/png", key)


def _download(place: DeltaGenerator, label: str, content: str | bytes, name: str, mime: str | None, key: str) -> None:
    """A button that leaves the page as it is: were it drawn anew, a second download soon after could find its file gone."""
    place.download_button(label, content, name, mime, key=f"{key}-{name}", on_click="ignore")


def _slice_tab(options: PageOptions) -> None:
    classifier = _classifier(options.slices_bundle)
    file = st.file_uploader("Slice: a PNG, JPEG or DICOM file, or a volume to choose a slice of", key="slice")
    window = _window_controls(st.columns(3)[0], "single")
    if file is None:
        st.session_state.pop(_LEVELS, None)
        return
    levels = _levels_of(file)
    count = len(levels)
    number = st.slider("Slice of the volume, from the base", 1, count, (count + 1) // 2) if count > 1 else 1
    picture = as_picture(levels[number - 1], window)
    answer = classifier.predict(levels[number - 1])
    left, middle, right = st.columns(3)
    left.image(picture, caption="the slice", width="stretch")
    middle.image(heat_over(picture, answer.attention), caption="what spoke for the answer (Grad-CAM)", width="stretch")
    if answer.uncertain:
        needed = f"no class reaches {100 * classifier.metadata.uncertain_below:.0f} %"
        right.metric("Class", "uncertain", needed, delta_color="off", delta_arrow="off")
    else:
        share = f"{CLASS_NAMES[answer.label]}, {100 * answer.probabilities[answer.label]:.0f} %"
        right.metric("Class", answer.label, share, delta_color="off", delta_arrow="off")
    for label, share in answer.probabilities.items():
        right.progress(min(max(share, 0.0), 1.0), text=f"{label}, {CLASS_NAMES[label]}: {100 * share:.1f} %")
    right.caption(f"Network: {classifier.metadata.summary}.")
    _download(
        st.container(), "Class and probabilities (JSON)", _slice_document(answer), "slice.json", "application/json", "single"
    )


def _levels_of(file: UploadedFile) -> np.ndarray:
    """The slices in an upload, read once for as long as it is there: the page is drawn anew at every touch."""
    known = st.session_state.get(_LEVELS)
    if known is not None and known[0] == file.file_id:
        return known[1]
    st.session_state.pop(_LEVELS, None)
    (upload,) = _uploads([file])
    with private_folder() as folder:
        path = folder / f"slice{upload.suffix}"
        path.write_bytes(upload.content)
        levels = read_levels(path)
    st.session_state[_LEVELS] = file.file_id, levels
    return levels


def _slice_document(answer: Any) -> str:
    return (
        json.dumps({"class": answer.label, "likeliest": answer.likeliest, "probabilities": answer.probabilities}, indent=2)
        + "\n"
    )
