"""The viewer's page (Streamlit): a CT with its activation maps, and single slices. `viewer.py` starts it.

What somebody uploads, and what comes of it, is kept in the memory of their session and goes with it. Nothing of it is logged.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import streamlit as st
from streamlit.delta_generator import DeltaGenerator
from streamlit.runtime.scriptrunner import get_script_run_ctx
from streamlit.runtime.uploaded_file_manager import UploadedFile

from ..command_line import DeviceName, InferencePrecisionName
from ..container.grand_challenge import RESULTS_FILE
from ..container.results import CaseResult
from ..errors import InputError
from ..stages import Stage, observed_by, stage_line
from .access import Access
from .answer import always_in_view
from .case import (
    ViewedCase,
    example_files,
    finished_cases,
    finished_run,
    open_finished,
    score_uploads,
    smoothed,
    unpacked_output,
)
from .case_view import show_answer, show_case
from .comparison_tab import FIRST, SECOND, comparison_tab
from .shelf import Held, Shelf
from .slice_tab import slice_tab
from .upload_addresses import keep_upload_addresses
from .uploads import Upload
from .waiting import WaitingLine
from .widgets import as_text, uploads

if TYPE_CHECKING:  # it brings torch
    from ..subtyping import EmphysemaSubtyper

logger = logging.getLogger(__name__)

WRONG_PASSWORD_SECONDS = 2.0
_MOST_NAMED = 3
"""Cases that were not scored and are named with the reason."""
_SCORED, _KEPT, _OPENED, _ADMITTED, _UPLOADERS = "scored", "kept", "opened", "admitted", "uploaders"
_EXAMPLES, _SCORING = "examples", "scoring"
_EXAMPLE, _SMOOTHED_EXAMPLE = "example (simulated)", "example (simulated), smoothed"
_ARCHIVE = "finished-zip"
_FORGET_HELP = (
    "Remove the scan, its results and what was kept from memory. Reloading the page (F5) loses the result, too, but "
    "removes the files only later."
)
_OPEN_AT_ONCE = 3
"""Cases of finished outputs: one that is shown, and two that are compared."""
_NUMBERS = itertools.count()
_LINE = WaitingLine()
"""In which the sessions of this server wait to score."""
_SHELF = Shelf()
"""The cases of all sessions of this server."""

_STAGES = {
    Stage.READ: "reading the files",
    Stage.LUNGS: "segmenting the lungs",
    Stage.PLAUSIBILITY: "checking the lung mask",
    Stage.QUALITY: "measuring the image quality",
    Stage.REGIONS: "separating right and left lung",
    Stage.PREPARE: "preparing the network's input",
    Stage.NETWORK: "running the network",
    Stage.MAPS: "resampling the maps to the CT",
    Stage.REPORT: "measuring density and writing the maps",
}

_CONTROLS_AND_VIEW = (4, 9)
"""Widths of the columns of a tab: files and answer, pictures."""
_COMPACT = """<style>
.block-container {padding-top: 2.2rem; padding-bottom: 3rem}
h1 {font-size: 1.5rem !important; padding: 0 !important}
h3 {font-size: 1.15rem !important; padding: 0 !important}
[data-testid="stCaptionContainer"], [data-testid="stCaptionContainer"] p {color: inherit; opacity: 1}
[data-testid="stFileUploaderDropzoneInstructions"] span, [role="tab"], [role="tab"] p {color: inherit !important}
@media (max-width: 1000px) {
  [data-testid="stHorizontalBlock"] {flex-wrap: wrap}
  [data-testid="stHorizontalBlock"] > [data-testid="stColumn"] {min-width: min(100%, 22rem)}
}
</style>"""
"""Streamlit's own margins would leave half of the window empty. Its captions have too little contrast (WCAG 2.2, 1.4.3). Its
columns are too narrow on a tablet."""


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
        access: who is let in.
    """

    bundle: tuple[Path, ...]
    slices_bundle: Path
    example: Path
    input: Path | None
    output: Path | None
    lungmask_weights: Path | None
    device: DeviceName
    precision: InferencePrecisionName
    access: Access


@dataclass(frozen=True)
class ScoredUploads:
    """A case and the uploads that it was scored from: it is shown only as long as they are the ones in the fields.

    Attributes:
        files: identifiers that Streamlit gave to the uploads; another upload of the same file has another one.
        name: of the CT, as the user called it; shown on the page, never logged.
        held: the result.
        number: another one for each result, so that controls of one do not pass to the next.
    """

    files: tuple[tuple[str, ...], tuple[str, ...]]
    name: str = field(repr=False)
    held: Held = field(repr=False)
    number: int = field(default_factory=lambda: next(_NUMBERS))


@dataclass(frozen=True)
class OpenedArchive:
    """An uploaded .zip of a finished output: its results, and the cases that were opened last.

    Attributes:
        file: the identifier that Streamlit gave to the upload.
        not_scored: name and reason of the cases that were not scored.
    """

    file: str
    results: dict[str, CaseResult] = field(repr=False)
    not_scored: list[str] = field(repr=False)
    cases: dict[str, Held] = field(default_factory=dict, repr=False)


def show(options: PageOptions) -> None:
    """Draw the page; Streamlit calls this anew whenever somebody touches something."""
    keep_upload_addresses()
    st.set_page_config("Emphysema subtyping", layout="wide")
    st.html(_COMPACT)
    st.html(always_in_view())
    st.title("Emphysema subtyping on chest CT")
    if not _admitted(options.access):
        return
    scan, finished, comparison, single = st.tabs(["CT scan", "Finished output", "Compare", "Single slice"])
    with scan, _errors_shown():
        _scan_tab(options)
    with finished, _errors_shown():
        _finished_tab(options)
    with comparison, _errors_shown():
        _comparison_tab(options)
    with single, _errors_shown():
        slice_tab(options.slices_bundle, options.example)


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
        st.error(as_text(str(error)))
    except MemoryError:
        st.error("Not enough memory for this scan.")
    except Exception as error:
        if type(error).__module__.startswith("streamlit"):
            raise  # how Streamlit stops and reruns a page
        logger.error("unexpected %s", type(error).__name__)
        st.error(f"Internal error ({type(error).__name__}). Your input is probably not the cause.")


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
    buttons = controls.container(horizontal=True)
    score = buttons.button("Score", type="primary", disabled=not ct_files)
    anything = bool(ct_files or mask_files) or any(name in st.session_state for name in (_SCORED, _KEPT, _EXAMPLES))
    if buttons.button("Forget", disabled=not anything, help=_FORGET_HELP):
        st.session_state.pop(_SCORED, None)
        st.session_state.pop(_KEPT, None)
        st.session_state.pop(_EXAMPLES, None)
        st.session_state.pop(_SCORING, None)
        _drop([*ct_files, *mask_files])
        st.session_state[_UPLOADERS] = uploaders + 1  # fields of another key start without files
        st.rerun()
    example_case = example_files(options.example)
    example = example_case is not None and buttons.button(
        "Score the example", disabled=bool(ct_files or mask_files), help="A simulated scan that comes with the software"
    )
    keep_place = buttons.empty()
    files = _identifiers(ct_files), _identifiers(mask_files)
    scored: ScoredUploads | None = st.session_state.get(_SCORED)
    if scored is not None and (score or example or scored.files != files):
        del st.session_state[_SCORED]  # it is of other files than those in the fields now, or about to be made anew
        scored = None
    answer, shown = controls.empty(), view.empty()  # they replace what an earlier run of the page drew, before scoring
    name, given = "", None
    if score:
        name, given = _name_of(ct_files), (uploads(ct_files), uploads(mask_files))
    elif example:
        name, given = _EXAMPLE, example_case
    if given is not None:
        st.session_state[_SCORING] = files
        with view:
            try:
                case = _scored(options, *given)
            except Exception:  # unlike what Streamlit interrupts a page with, which is no Exception
                del st.session_state[_SCORING]
                raise
        del st.session_state[_SCORING]
        scored = st.session_state[_SCORED] = ScoredUploads(files, name, _SHELF.hold(case))
        if _KEPT in st.session_state:
            st.session_state[SECOND] = f"{name} (scored)"
    if scored is None and st.session_state.get(_SCORING) == files:
        shown.warning("Scoring was interrupted because another control was used. Press Score again.")
        return
    if scored is None:
        st.session_state.pop(_SCORING, None)
        shown.info("Press Score to see the result of these files." if ct_files else "Choose a CT, or score the example.")
        return
    if scored.held.case is None:
        shown.info("This result was removed to make room for the scans of others. Score the scan again.")
        return
    if keep_place.button("Keep to compare", help="Keep this result while the next scan is scored; see the tab Compare"):
        st.session_state[_KEPT] = scored
        st.session_state[FIRST], st.session_state[SECOND] = f"{scored.name} (kept)", None
    with answer.container():
        show_answer(scored.held.case.result)
    with shown.container():
        show_case(scored.held.case, scored.name, f"scan-{scored.number}")


def _drop(files: Sequence[UploadedFile]) -> None:
    """Remove uploads from the server's memory: Streamlit keeps those of a field that is no longer drawn."""
    context = get_script_run_ctx()
    assert context is not None, "the page is drawn"
    manager: Any = context.uploaded_file_mgr  # its class can remove files; the protocol that it is declared by cannot
    for file in files:
        manager.remove_file(context.session_id, file.file_id)


def _identifiers(files: Sequence[UploadedFile]) -> tuple[str, ...]:
    return tuple(file.file_id for file in files)


def _name_of(files: Sequence[UploadedFile]) -> str:
    others = len(files) - 1
    return f"{files[0].name} and {others} more files" if others > 1 else " and ".join(file.name for file in files)


def _scored(options: PageOptions, ct_files: Sequence[Upload], mask_files: Sequence[Upload]) -> ViewedCase:
    with st.status("Scoring; a full-size scan takes a minute or so on a CPU", expanded=True) as status:
        progress = _Progress(st.progress(0.0, "loading the weights"), with_mask=bool(mask_files))

        def show_stage(stage: Stage, seconds: float) -> None:
            status.write(stage_line(stage, seconds))
            progress.ended(stage, seconds)

        def show_line(before: int) -> None:
            status.update(label=f"Waiting; scans ahead of yours: {before}")

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
def _subtyper(places: tuple[Path, ...], device: DeviceName, precision: InferencePrecisionName) -> EmphysemaSubtyper:
    """The network, once for all sessions."""
    from ..subtyping import EmphysemaSubtyper
    from ..weights import locate_bundle

    return EmphysemaSubtyper.from_bundle(locate_bundle(*places), device, precision)


def _finished_tab(options: PageOptions) -> None:
    controls, view = st.columns(_CONTROLS_AND_VIEW)
    archive = controls.file_uploader("A .zip of an output folder of process.py", key=_ARCHIVE)
    opened = _opened_archive()
    if opened is not None:
        source = opened.file
        entity = _choose(opened.results, controls, source)
        case = _of_archive(opened, entity)
        not_scored = opened.not_scored
    elif archive is None and options.output is not None:
        source = "folder"
        results, not_scored = finished_run(options.output)
        entity = _choose(results, controls, source)
        case = _finished(options.output, results[entity], options.input, _changed(options.output))
    else:
        example = _opened_example(options, controls, view)
        if example is None:
            view.info(
                "Upload a .zip of what process.py wrote, or start the viewer with --output FOLDER (and --input FOLDER, for "
                "the CT)."
            )
            return
        source, entity, case, not_scored = "example", _EXAMPLE, example, []
    with controls:
        if not_scored:
            more = [f"and {len(not_scored) - _MOST_NAMED} more"] if len(not_scored) > _MOST_NAMED else []
            lines = [f"- {as_text(line)}" for line in (*not_scored[:_MOST_NAMED], *more)]
            st.warning("\n".join(["Not scored:", *lines]))
        show_answer(case.result)
    with view:
        show_case(case, entity, f"finished-{source}-{entity}")


def _opened_example(options: PageOptions, controls: DeltaGenerator, view: DeltaGenerator) -> ViewedCase | None:
    if options.example.is_dir() and controls.button("Open the example", help="A simulated scan, scored now"):
        with view:
            _score_example(options, _EXAMPLE)
    examples: dict[str, Held] = st.session_state.get(_EXAMPLES, {})
    return examples[_EXAMPLE].case if _EXAMPLE in examples else None


def _opened_archive() -> OpenedArchive | None:
    """The .zip in its field, read once; None without one."""
    archive: UploadedFile | None = st.session_state.get(_ARCHIVE)
    opened: OpenedArchive | None = st.session_state.get(_OPENED)
    if archive is None or opened is None or opened.file != archive.file_id:
        st.session_state.pop(_OPENED, None)
        opened = None
    if archive is not None and opened is None:
        with unpacked_output(Upload(archive.name, archive.getvalue())) as folder:
            opened = st.session_state[_OPENED] = OpenedArchive(archive.file_id, *finished_run(folder))
    return opened


def _of_archive(opened: OpenedArchive, entity: str) -> ViewedCase:
    """One case of the .zip in its field."""
    held = opened.cases.pop(entity, None)
    if held is None or held.case is None:
        archive: UploadedFile = st.session_state[_ARCHIVE]
        with unpacked_output(Upload(archive.name, archive.getvalue())) as folder:
            held = _SHELF.hold(open_finished(folder, opened.results[entity], None))
    opened.cases[entity] = held  # the last one is the one used last
    while len(opened.cases) > _OPEN_AT_ONCE:
        del opened.cases[next(iter(opened.cases))]
    return _still_held(held)


def _score_example(options: PageOptions, name: str) -> None:
    """Score the example, or a smoothed copy of it, which stands for a scan with another kernel."""
    files = example_files(options.example)
    if files is None:
        return
    ct, mask = files
    if name == _SMOOTHED_EXAMPLE:
        ct = [smoothed(*ct)]
    examples: dict[str, Held] = st.session_state.setdefault(_EXAMPLES, {})
    examples[name] = _SHELF.hold(_scored(options, ct, mask))


def _comparison_tab(options: PageOptions) -> None:
    cases = _comparable(options)
    if len(cases) < 2 and options.example.is_dir() and st.button("Compare the example with a smoothed copy"):
        for name in (_EXAMPLE, _SMOOTHED_EXAMPLE):
            _score_example(options, name)
        st.session_state[FIRST], st.session_state[SECOND] = _EXAMPLE, _SMOOTHED_EXAMPLE
        cases = _comparable(options)
    comparison_tab(cases)


def _comparable(options: PageOptions) -> dict[str, Callable[[], ViewedCase]]:
    """The cases of this session that can be compared, by what they are called."""
    cases: dict[str, Callable[[], ViewedCase]] = {}
    scored: ScoredUploads | None = st.session_state.get(_SCORED)
    kept: ScoredUploads | None = st.session_state.get(_KEPT)
    for role, uploaded in (("kept", kept), ("scored", scored)):
        if uploaded is not None and uploaded.held.case is not None and not (role == "scored" and uploaded is kept):
            cases[f"{uploaded.name} ({role})"] = partial(_still_held, uploaded.held)
    examples: dict[str, Held] = st.session_state.get(_EXAMPLES, {})
    for name, held in examples.items():
        if held.case is not None:
            cases[name] = partial(_still_held, held)
    try:
        opened = _opened_archive()
    except InputError:
        opened = None  # the tab of finished outputs says what is wrong with it
    if opened is not None:
        for entity in opened.results:
            cases[f"{entity} (finished)"] = partial(_of_archive, opened, entity)
    elif options.output is not None and st.session_state.get(_ARCHIVE) is None:
        changed = _changed(options.output)
        for entity, result in finished_cases(options.output).items():
            cases[f"{entity} (finished)"] = partial(_finished, options.output, result, options.input, changed)
    return cases


def _still_held(held: Held) -> ViewedCase:
    if held.case is None:
        raise InputError(
            "Compare", "this result was removed to make room for the scans of others", "a scan that is scored again"
        )
    return held.case


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
        "warnings": len(result.warnings),
        "CLE": metrics.cle_severity_score,
        "PSE": metrics.pse_severity_score,
        "CLE %": None if metrics.cle_percentage is None else round(metrics.cle_percentage, 1),
        "PSE %": None if metrics.pse_percentage is None else round(metrics.pse_percentage, 1),
        "LAA-950 %": round(metrics.laa950_percentage, 1),
    }


def _changed(output: Path) -> float:
    """When the results were last written: what was opened before is stale after that."""
    return (output / RESULTS_FILE).stat().st_mtime


@st.cache_resource(show_spinner="Opening", max_entries=_OPEN_AT_ONCE)
def _finished(output: Path, result: CaseResult, inputs: Path | None, changed: float) -> ViewedCase:  # noqa: ARG001 (cache key)
    return open_finished(output, result, inputs)
