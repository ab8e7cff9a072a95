"""The viewer's page (Streamlit): a CT with its activation maps, and single slices. `viewer.py` starts it.

What somebody uploads, and what comes of it, is kept in the memory of their session and goes with it. Nothing of it is logged.
"""

from __future__ import annotations

import itertools
import json
import logging
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import streamlit as st
from streamlit.delta_generator import DeltaGenerator
from streamlit.runtime.uploaded_file_manager import UploadedFile

from .. import fleischner
from ..container.grand_challenge import RESULTS_FILE
from ..container.results import CaseResult, results_text
from ..container.table import results_table
from ..errors import InputError
from ..rendering import AXES, Plane, without_commands
from ..slices import CLASS_NAMES
from ..slices.images import LUNG_WINDOW, Window, as_picture, read_levels
from ..stages import Stage, observed_by, stage_line
from .access import Access
from .answer import always_in_view, measurements, score_scale
from .case import SUBTYPES, ViewedCase, example_files, finished_cases, open_finished, score_uploads, unpacked_output
from .charts import height_chart, histogram_chart
from .linked_planes import linked_planes
from .planes import SLABS, WINDOWS, heat_over, labelled, plane_picture, png
from .uploads import Upload, private_folder
from .waiting import WaitingLine

logger = logging.getLogger(__name__)

WRONG_PASSWORD_SECONDS = 2.0
_SCORED, _OPENED, _ADMITTED, _LEVELS, _UPLOADERS = "scored", "opened", "admitted", "levels", "uploaders"
_NUMBERS = itertools.count()
_LINE = WaitingLine()
"""In which the sessions of this server wait to score."""

_STAGES = {
    Stage.READ: "reading the files",
    Stage.LUNGS: "segmenting the lungs",
    Stage.PLAUSIBILITY: "checking the lung mask",
    Stage.REGIONS: "telling the lungs apart",
    Stage.PREPARE: "preparing the network's input",
    Stage.NETWORK: "computing the network",
    Stage.MAPS: "bringing the maps onto the CT",
    Stage.REPORT: "measuring density and writing the maps",
}

_CONTROLS_AND_VIEW = (4, 9)
"""Widths of the columns of a tab: files and answer, pictures."""
_PICTURES = ("Three linked planes", "One plane, labelled, to download")
_FROM: dict[Plane, str] = {"axial": "from the base", "coronal": "from the front", "sagittal": "from the right"}
_COMPACT = """<style>
.block-container {padding-top: 2.2rem; padding-bottom: 3rem}
h1 {font-size: 1.5rem !important; padding: 0 !important}
h3 {font-size: 1.15rem !important; padding: 0 !important}
</style>"""
"""Streamlit's own margins would leave half of the window empty."""


@dataclass(frozen=True)
class PageOptions:
    """What the page was started with.

    Attributes:
        bundle: where weight bundles are looked for, in this order.
        slices_bundle: of the slice network.
        example: a folder as process.py reads it, with the example case; need not exist.
        input, output: a folder that was scored and what was written for it, to be opened from the page; or None.
        lungmask_weights: of the lungmask network, to find lungs with; or None.
        device, precision: as `EmphysemaSubtyper.from_bundle` takes them.
    """

    bundle: tuple[Path, ...]
    slices_bundle: Path
    example: Path
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
        number: another one for each result, so that controls of one do not pass to the next.
    """

    files: tuple[tuple[str, ...], tuple[str, ...]]
    name: str = field(repr=False)
    case: ViewedCase = field(repr=False)
    number: int = field(default_factory=lambda: next(_NUMBERS))


@dataclass(frozen=True)
class OpenedArchive:
    """An uploaded .zip of a finished output: its results, and the one case that was opened.

    Attributes:
        file: the identifier that Streamlit gave to the upload.
    """

    file: str
    results: dict[str, CaseResult] = field(repr=False)
    case: ViewedCase | None = field(default=None, repr=False)


def show(options: PageOptions) -> None:
    """Draw the page; Streamlit calls this anew whenever somebody touches something."""
    st.set_page_config("Emphysema subtyping", layout="wide")
    st.html(_COMPACT)
    st.html(always_in_view())
    st.title("Emphysema subtyping on chest CT")
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
    controls, view = st.columns(_CONTROLS_AND_VIEW)
    uploaders = st.session_state.setdefault(_UPLOADERS, 0)
    ct_files = controls.file_uploader(
        "CT: one .mha, .nii, .nii.gz or .nrrd file, or the DICOM files of one series (or a .zip of them)",
        accept_multiple_files=True,
        key=f"ct-{uploaders}",
    )
    mask_files = controls.file_uploader(
        "Lung mask, on any grid; without one, the lungs are segmented", accept_multiple_files=True, key=f"mask-{uploaders}"
    )
    buttons = controls.columns([2, 2, 3])
    score = buttons[0].button("Score", type="primary", disabled=not ct_files, width="stretch")
    anything = bool(ct_files or mask_files or _SCORED in st.session_state)
    if buttons[1].button("Forget", disabled=not anything, help="Remove the scan and its results from memory", width="stretch"):
        st.session_state.pop(_SCORED, None)
        st.session_state[_UPLOADERS] = uploaders + 1  # fields of another key start without files
        st.rerun()
    example_case = example_files(options.example)
    example = example_case is not None and buttons[2].button(
        "Score the example", disabled=anything, help="A simulated scan that comes with the software", width="stretch"
    )
    files = _identifiers(ct_files), _identifiers(mask_files)
    scored: ScoredUploads | None = st.session_state.get(_SCORED)
    if scored is not None and (score or scored.files != files):
        del st.session_state[_SCORED]  # it is of other files than those in the fields now, or about to be made anew
        scored = None
    answer, shown = controls.empty(), view.empty()  # they replace what an earlier run of the page drew, before scoring
    name, uploads = "", None
    if score:
        name, uploads = _name_of(ct_files), (_uploads(ct_files), _uploads(mask_files))
    elif example:
        name, uploads = "example (simulated)", example_case
    if uploads is not None:
        with view:
            case = _scored(options, *uploads)
        scored = st.session_state[_SCORED] = ScoredUploads(files, name, case)
    if scored is not None:
        with answer.container():
            _show_answer(scored.case.result)
        with shown.container():
            _show_case(scored.case, scored.name, f"scan-{scored.number}")
    elif ct_files:
        shown.info("Press Score to see the result of these files.")
    else:
        shown.info("Choose a CT on the left, or score the example.")


def _identifiers(files: Sequence[UploadedFile]) -> tuple[str, ...]:
    return tuple(file.file_id for file in files)


def _name_of(files: Sequence[UploadedFile]) -> str:
    others = len(files) - 1
    return f"{files[0].name} and {others} more files" if others > 1 else " and ".join(file.name for file in files)


def _as_text(name: str) -> str:
    """A user's text for Streamlit's Markdown, which shows it letter by letter."""
    return re.sub(r"([^\w\s])", r"\\\1", name)


def _scored(options: PageOptions, ct_files: Sequence[Upload], mask_files: Sequence[Upload]) -> ViewedCase:
    with st.status("Scoring; a full-size scan takes a minute or so on a CPU", expanded=True) as status:
        progress = _Progress(st.progress(0.0, "loading the weights"), with_mask=bool(mask_files))

        def show_stage(stage: Stage, seconds: float) -> None:
            status.write(stage_line(stage, seconds))
            progress.ended(stage, seconds)

        def show_line(before: int) -> None:
            status.update(label=f"Waiting: scans of others before this one: {before}")

        try:
            subtyper = _subtyper(options.bundle, options.device, options.precision)
            with _LINE.turn(show_line), observed_by(show_stage):
                status.update(label="Scoring; a full-size scan takes a minute or so on a CPU")
                progress.show()
                case = score_uploads(subtyper, ct_files, mask_files, options.lungmask_weights)
        except Exception:
            status.update(label="Not scored", state="error", expanded=False)
            raise
        status.update(label="Scored", state="complete", expanded=False)
    return case


class _Progress:
    """The step that scoring is at, and the time left by the seconds that the steps of the scan before took."""

    _before: ClassVar[dict[Stage, float]] = {}

    def __init__(self, bar: DeltaGenerator, with_mask: bool) -> None:
        self._bar = bar
        self._stages = [stage for stage in _STAGES if stage is not Stage.LUNGS or not with_mask]
        self._seconds: dict[Stage, float] = {}

    def ended(self, stage: Stage, seconds: float) -> None:
        """Note that a step has ended."""
        if stage in self._stages:
            self._seconds[stage] = seconds
            self._before[stage] = seconds
            self.show()

    def show(self) -> None:
        """Draw the bar."""
        left = [stage for stage in self._stages if stage not in self._seconds]
        if not left:
            self._bar.progress(1.0, "done")
            return
        text = f"step {len(self._seconds) + 1} of {len(self._stages)}: {_STAGES[left[0]]}"
        if all(stage in self._before for stage in left):
            text += f"; about {max(round(sum(self._before[stage] for stage in left)), 1)} s left, by the scan before"
        self._bar.progress(len(self._seconds) / len(self._stages), text)


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
    controls, view = st.columns(_CONTROLS_AND_VIEW)
    archive = controls.file_uploader("A .zip of an output folder of process.py", key="finished-zip")
    if archive is not None:
        source = archive.file_id
        opened: OpenedArchive | None = st.session_state.get(_OPENED)
        if opened is None or opened.file != source:
            st.session_state.pop(_OPENED, None)
            with unpacked_output(Upload(archive.name, archive.getvalue())) as folder:
                opened = OpenedArchive(source, finished_cases(folder))
        entity = _choose(opened.results, controls, source)
        if opened.case is None or opened.case.result.entity != entity:
            with unpacked_output(Upload(archive.name, archive.getvalue())) as folder:
                opened = replace(opened, case=open_finished(folder, opened.results[entity], None))
        st.session_state[_OPENED] = opened
        case = opened.case
        assert case is not None, "it was opened above"
    elif options.output is not None:
        st.session_state.pop(_OPENED, None)
        source = "folder"
        results = finished_cases(options.output)
        entity = _choose(results, controls, source)
        case = _finished(options.output, results[entity], options.input, _changed(options.output))
    else:
        st.session_state.pop(_OPENED, None)
        view.info(
            "Upload a .zip of what process.py wrote, or start the viewer with --output FOLDER (and --input FOLDER, for the CT)."
        )
        return
    with controls:
        _show_answer(case.result)
    with view:
        _show_case(case, entity, f"finished-{source}-{entity}")


def _choose(results: dict[str, CaseResult], place: DeltaGenerator, key: str) -> str:
    """A table to sort and search, and a field that a case can be chosen in by keyboard, too; returns the entity."""
    entities = list(results)
    chosen = f"entity-{key}"
    if len(entities) > 1:
        rows = [_row(result) for result in results.values()]

        def take() -> None:
            picked = st.session_state[f"table-{key}"].selection.rows
            if picked:
                st.session_state[chosen] = entities[picked[0]]

        place.dataframe(
            rows, key=f"table-{key}", on_select=take, selection_mode="single-row", hide_index=True, height=220, width="stretch"
        )
    return place.selectbox(f"Case (of {len(entities)}; type to search)", entities, key=chosen)


def _row(result: CaseResult) -> dict[str, Any]:
    metrics = result.metrics
    assert metrics is not None, "only cases that were scored are shown"
    return {
        "case": result.entity,
        "CLE": metrics.cle_severity_score,
        "PSE": metrics.pse_severity_score,
        "CLE %": metrics.cle_percentage,
        "PSE %": metrics.pse_percentage,
        "LAA-950 %": metrics.laa950_percentage,
        "warnings": len(result.warnings),
    }


def _changed(output: Path) -> float:
    """When the results were last written: what was opened before is stale after that."""
    return (output / RESULTS_FILE).stat().st_mtime


@st.cache_resource(show_spinner="Opening", max_entries=1)
def _finished(output: Path, result: CaseResult, inputs: Path | None, changed: float) -> ViewedCase:  # noqa: ARG001 (cache key)
    return open_finished(output, result, inputs)


def _show_answer(result: CaseResult) -> None:
    metrics, provenance = result.metrics, result.provenance
    assert metrics is not None, "only cases that were scored are shown"
    assert provenance is not None, "a case that was scored has it"
    for subtype in fleischner.SUBTYPES:
        st.html(score_scale(subtype, metrics.of(subtype)))
    st.html(measurements(metrics))
    st.caption(f"Weights: {_as_text(provenance.bundle)}, trained on {_as_text(without_commands(provenance.trained_on))}.")


def _show_case(case: ViewedCase, name: str, key: str) -> None:
    st.subheader(f"Scan: {_as_text(name)}")
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
        st.warning("\n".join(f"- {_as_text(warning)}" for warning in warnings))
    if case.result.quality is not None:
        st.caption(f"Image quality: {_as_text(case.result.quality.text)}.")
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
    st.table(
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
        left.caption("Emphysema by height in the lung, percent of the lung in each axial slice")
        left.vega_lite_chart(height_chart(case.percent_by_height, case.spacing[0]), width="stretch")
    if case.histogram is not None:
        right.caption("HU inside the lung; the line is -950 HU")
        right.vega_lite_chart(histogram_chart(*case.histogram), width="stretch")


def _show_slices(case: ViewedCase, name: str, key: str) -> np.ndarray:
    """The controls and the picture below them; returns the picture as it is shown."""
    where, how = st.columns([3, 2])
    plane: Plane = where.radio("Plane", list(AXES), horizontal=True, key=f"{key}-plane")
    slices = case.shape[AXES[plane]]
    kept = st.session_state.setdefault(f"{key}-slices", {"axial": case.most_affected_level + 1})
    number = where.slider("Slice", 1, slices, kept.get(plane, (slices + 1) // 2), key=f"{key}-slice-{plane}")
    kept[plane] = number  # Streamlit forgets a slider that is not drawn
    window_place, slab_place = how.columns(2)
    window = _window_controls(window_place, key)
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


def _window_controls(place: DeltaGenerator, key: str) -> Window:
    name = place.selectbox("Window", [*WINDOWS, "other"], key=f"{key}-window")
    if name != "other":
        return WINDOWS[name]
    centre = place.number_input("Centre, HU", value=LUNG_WINDOW.centre, step=50.0, key=f"{key}-centre")
    width = place.number_input("Width, HU", value=LUNG_WINDOW.width, min_value=1.0, step=50.0, key=f"{key}-width")
    return Window(centre, width)


def _show_downloads(case: ViewedCase, picture: np.ndarray | None, key: str) -> None:
    row = st.container(horizontal=True)
    _download(row, "Results (JSON)", results_text([case.result]), "results.json", "application/json", key)
    _download(row, "Results (CSV)", results_table([case.result]), "results.csv", "text/csv", key)
    for subtype, content in case.map_files.items():
        _download(row, f"{subtype.capitalize()} map (.mha)", content, f"{subtype}-emphysema-heatmap.mha", None, key)
    if picture is not None:
        _download(row, "This slice (PNG)", png(picture), "slice.png", "image/png", key)
    if case.report is not None:
        _download(row, "Page to print (PDF)", case.report, "report.pdf", "application/pdf", key)
    if case.overview is not None:
        _download(row, "Overview (PNG)", case.overview, "overview.png", "image/png", key)


def _download(place: DeltaGenerator, label: str, content: str | bytes, name: str, mime: str | None, key: str) -> None:
    """A button that leaves the page as it is: were it drawn anew, a second download soon after could find its file gone."""
    place.download_button(label, content, name, mime, key=f"{key}-{name}", on_click="ignore")


def _slice_tab(options: PageOptions) -> None:
    classifier = _classifier(options.slices_bundle)
    file = st.file_uploader("Slice: a PNG, JPEG or DICOM file, or a volume to choose a slice of", key="slice")
    example = example_files(options.example)
    take_example = example is not None and st.toggle("A slice of the example (simulated)", disabled=file is not None)
    window = _window_controls(st.columns(3)[0], "single")
    if file is not None:
        name, levels = file.name, _levels_of(file.file_id, *_uploads([file]))
    elif example is not None and take_example:
        name, levels = "example (simulated)", _levels_of("example", *example[0])
    else:
        st.session_state.pop(_LEVELS, None)
        return
    count = len(levels)
    number = st.slider("Slice of the volume, from the base", 1, count, (count + 1) // 2) if count > 1 else 1
    picture = as_picture(levels[number - 1], window)
    answer = classifier.predict(levels[number - 1])
    left, middle, right = st.columns(3)
    left.image(picture, caption=f"the slice: {_as_text(name)}", width="stretch")
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
