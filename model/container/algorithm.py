"""The run of `process.py` as evalutils has it: cases in, `results.json` out.

A module of its own because evalutils brings pandas, which takes half a second to import: `process.py` does that while the first
scan is being read.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import time
from pathlib import Path
from typing import Any

from pandas import DataFrame, Series

from ..command_line import MapType
from ..dicom_output.derived import DerivedObjects
from ..dicom_output.software import Software
from ..dicom_output.source import SourceSeries
from ..errors import InputError, printable, unexpected
from ..fleischner import SUBTYPES
from ..imaging.native import print_error
from ..imaging.readers import read_header
from ..imaging.scan import Scan
from ..lungs import densitometry
from ..lungs.segmentation import EXPECTED_LUNGMASK, segment_lungs
from ..rendering import View, preview, three_planes
from ..stages import Stage, stage_line, timed
from ..subtyping import EmphysemaSubtyper, Subtyping
from . import grand_challenge
from .grand_challenge import Case, OutputFolder
from .logs import Progress, fields
from .reading import Scans, stat_of
from .report import report_page
from .results import CaseResult, case_result, failed_result, provenance
from .resume import FinishedCase, Record, content_fingerprint, options_of_case, reason_to_repeat
from .startup import scikit_learn_when_used

with scikit_learn_when_used():
    from evalutils.evalutils import Algorithm
    from evalutils.exceptions import FileLoaderError
    from evalutils.io import FileLoader

logger = logging.getLogger("process")

CASES_TO_WRITING = 20.0
"""Results are written again once this many times as long has passed as writing them took: writing all of them after each of n
cases would take time in proportion to n². Runs of less than some hundred cases write them after each."""


@dataclasses.dataclass(frozen=True)
class Written:
    """What is written of a case beside its scores and maps.

    Attributes:
        map_type: of the activation maps.
        lung_mask: the lungs that were scored; they are also written where they were found in the CT itself.
        preview: a picture.
        report: a printable report.
        dicom: DICOM objects, of a CT that came as a DICOM series.
    """

    map_type: MapType = "uint8"
    lung_mask: bool = False
    preview: bool = False
    report: bool = False
    dicom: bool = False


def recorded_options(written: Written, lungmask_weights: Path | None) -> dict[str, str]:
    """The options that change what is written, as `Record.options` has them but for `options_of_case`.

    Raises:
        InputError: the lungmask network's weights cannot be read.
    """
    try:
        network = content_fingerprint([lungmask_weights]) if lungmask_weights else ""
    except OSError as error:
        raise InputError(lungmask_weights or "", f"it cannot be read ({error.strerror})", EXPECTED_LUNGMASK) from error
    return {**{name: str(value) for name, value in dataclasses.asdict(written).items()}, "lungmask_weights": network}


class HeaderLoader(FileLoader):  # type: ignore[misc]
    """Reads and checks the header alone: evalutils' own loader reads and hashes the whole volume, twice."""

    def load(self, *, fname: Path) -> list[dict[str, Any]]:
        """Return the file's path and size in voxels.

        Raises:
            FileLoaderError: the file cannot be a scan or mask; the cause is an `InputError`.
        """
        try:
            return [{"path": fname, "size": read_header(fname).size}]
        except InputError as error:
            raise FileLoaderError(str(error)) from error


class EmphysemaAlgorithm(Algorithm):  # type: ignore[misc]
    """Scores every case of a run with one subtyper and collects `results.json`.

    A case that cannot be scored is listed with its error, and the others go on.

    Attributes:
        exit_code: 0 while every case was scored, 2 after an input that cannot be used, 1 after anything else.
    """

    def __init__(
        self,
        cases: list[Case],
        scans: Scans,
        subtyper: EmphysemaSubtyper,
        outputs: OutputFolder,
        written: Written,
        lungmask_weights: Path | None,
        *,
        resume: bool = False,
        verify: bool = False,
    ) -> None:
        """
        Args:
            resume: skip the cases that an earlier run has finished with the same bundle, options and input.
            verify: tell inputs by their contents, not by size and time of modification.

        Raises:
            InputError: a case's file lies where outputs are written, or the lungmask network's weights cannot be read.
        """
        outputs.check_apart(cases)
        loader = HeaderLoader()
        super().__init__(
            index_key="ct",
            file_loaders={"ct": loader, "lung_mask": loader},
            validators={},
            output_path=outputs.folder / "images",
            output_file=outputs.folder / grand_challenge.RESULTS_FILE,
        )
        self.exit_code = 0
        self._listed = cases
        self._scans = scans
        self._subtyper = subtyper
        self._outputs = outputs
        self._written = written
        self._lungmask_weights = lungmask_weights
        self._resume = resume
        self._verify = verify
        self._finished: dict[int, CaseResult] = {}
        self._done: dict[int, CaseResult] = {}
        self._records: dict[str, Record] = {}
        self._write_again = 0.0
        self._is_behind = False
        self._options = recorded_options(written, lungmask_weights)

    @property
    def results(self) -> list[CaseResult]:
        """What `results.json` holds: one result a case, in the order of the cases."""
        return list(self._case_results)

    def load(self) -> None:
        """Read the headers of all cases before the first is scored; `problem` says what stands in a case's way, if anything.

        What an earlier run wrote is removed, but for the cases that it finished if this run continues it.
        """
        if self._resume:
            self._find_finished()
            self._scans.begin(self._finished)
        self._remove_earlier()
        rows = []
        for index, case in enumerate(self._listed):
            row: dict[str, Any] = {"case": case, "problem": ""}
            try:
                known = "" if index in self._finished else self._scans.known_problem(index)
                row["problem"] = known or ""
                if known is None:
                    for key, path in zip(("ct", "lung_mask"), case.files, strict=False):
                        self._file_loaders[key].load(fname=path)
            except (InputError, FileLoaderError) as error:
                row["problem"] = str(error)
            rows.append(row)
        self._cases[self._index_key] = DataFrame(rows)
        self._progress = Progress(len(rows), len(rows) - len(self._finished))

    def _find_finished(self) -> None:
        """Note which cases need not be scored again, and say why those that were scored before must be."""
        earlier = self._outputs.earlier_results()
        for index, case in enumerate(self._listed):
            if case.entity not in earlier:
                continue
            found, stat = earlier[case.entity], stat_of(case)
            current = provenance(self._subtyper, case.lung_mask_source)
            content = functools.partial(self._content, case, stat) if self._verify else None
            reason = reason_to_repeat(found, current, options_of_case(self._options, case.lobes), stat, content)
            if reason:
                logger.info("%s: scored again: %s", printable(case.entity), reason)
                continue
            self._finished[index] = found.result
            self._records[case.entity] = dataclasses.replace(found.record, stat=stat)

    def _content(self, case: Case, stat: str) -> str | None:
        """The fingerprint of what a case's files hold, where it is asked for and can be had.

        Args:
            stat: of the files that are meant; others have no fingerprint here.
        """
        if not self._verify:
            return None
        try:
            content = content_fingerprint(case.files)
        except (InputError, OSError):
            return None
        return content if stat_of(case) == stat else None

    def _remove_earlier(self) -> None:
        """Remove an earlier run's files of cases that this one does not keep, and its results of them."""
        unknown = self._outputs.remove_others(self._records)
        listed = {case.entity for case in self._listed}
        left = [path for path in unknown if path.stem not in listed]
        if left:
            logger.info("%d maps of earlier runs are of no case of this one, such as %s", len(left), printable(str(left[0])))
        if self._resume:
            logger.info("%d of %d cases were finished before", len(self._finished), len(self._listed))
            with self._outputs as outputs:
                outputs.write_results(list(self._finished.values()))
                outputs.write_records(self._records)
                if 0 in self._finished:
                    self._write_scores(self._finished[0])
                else:  # they are of another case, or of this one before it changed
                    self._outputs.remove_scores()
        self._outputs.remove_notes()

    def process_case(self, *, idx: int, case: Series) -> CaseResult:
        """Score one case, unless it is finished; write its maps, with the run's first case the score files, and all results."""
        if idx in self._finished:
            return self._finished[idx]
        self._progress.begin(idx + 1, case["case"].entity)
        result = self._result(case["case"], case["problem"], idx)
        self._progress.end()
        return result

    def _result(self, files: Case, problem: str, index: int) -> CaseResult:
        try:
            self._outputs.discard(files.entity)
            if problem:
                raise FileLoaderError(problem)
            return self._scored(files, index)
        except (InputError, FileLoaderError) as error:
            self.exit_code = self.exit_code or 2
            message = str(error)
        except Exception as error:
            self.exit_code = 1
            message = printable(f"{files.entity}: {unexpected(error)}")
        print_error(message)
        self._records.pop(files.entity, None)
        result = failed_result(message, files.entity)
        with self._outputs:
            is_behind = self._write_results({index: result})
        self._done[index], self._is_behind = result, is_behind
        return result

    def process(self) -> None:
        """Score all cases; however the run ends, `results.json` holds every case that it finished."""
        try:
            super().process()
        finally:
            if self._is_behind:
                self._write_again = 0.0
                with self._outputs:
                    self._write_results({})
            self._outputs.remove_notes()

    def _write_results(self, added: dict[int, CaseResult]) -> bool:
        """Write the results of all finished cases, in the order of the cases, or until then a note of the one that is added.

        In a `with` block. Returns whether it was a note.
        """
        start = time.monotonic()
        if start < self._write_again:
            for result in added.values():
                if result.entity in self._records:
                    self._outputs.write_note(result.entity, FinishedCase(result, self._records[result.entity]))
            return True
        results = self._finished | self._done | added
        self._outputs.write_results([results[index] for index in sorted(results)])
        if self._records:
            self._outputs.write_records(self._records)
        end = time.monotonic()
        self._write_again = end + CASES_TO_WRITING * (end - start)
        return False

    def _write_scores(self, result: CaseResult) -> None:
        """Write the score files; in a `with` block."""
        assert result.metrics is not None, "the case was scored"
        for subtype in SUBTYPES:
            self._outputs.write_score(subtype.name, result.metrics.of(subtype))

    def predict(self, *, input_image: Scan) -> Subtyping:
        """Score one scan."""
        return self._subtyper.predict(input_image, self._written.map_type)

    def save(self) -> None:
        """Nothing is left to write: `process_case` and `process` write `results.json`."""

    def _scored(self, case: Case, index: int) -> CaseResult:
        start = time.perf_counter()
        scan, stat = self._scan(case, index)
        content = self._content(case, stat)
        source = self._dicom_source(case, scan)
        subtyping = self.predict(input_image=scan)
        with timed(Stage.DENSITOMETRY):
            density = densitometry.measure(scan, subtyping.regions)
            result = case_result(case.entity, scan, subtyping, density, self._subtyper, case.lung_mask_source)
        for warning in result.warnings:
            logger.info("%s: %s", printable(case.entity), warning, extra=fields(entity=case.entity, warning=warning))
        dicom = None
        if source is not None:
            with timed(Stage.DICOM):
                dicom = DerivedObjects.of(source, scan, subtyping, density, self._software(), result.warnings)
        with timed(Stage.WRITE), self._outputs as outputs:
            findings = subtyping.findings
            maps = {finding.subtype.name: scan.to_file_grid(finding.activation_map) for finding in findings}
            outputs.write_maps(case.entity, maps)
            if self._written.lung_mask or case.lung_mask_source == "automatic":
                outputs.write_lung_mask(case.entity, scan.to_file_grid(scan.lung))
            if self._written.preview:
                run = result.provenance
                assert run is not None, "the case was scored"
                outputs.write_preview(case.entity, preview(scan, subtyping, case.entity, run.trained_on, run.validation))
            if self._written.report:
                outputs.write_report(case.entity, *report_page(result, three_planes(View.of(scan, subtyping))))
            if dicom is not None:
                outputs.write_dicom(case.entity, dicom)
            files = tuple(str(path.relative_to(outputs.folder)) for path in outputs.pending)
            self._records[case.entity] = Record(stat, options_of_case(self._options, case.lobes), files, content)
            if index == 0:
                self._write_scores(result)
            is_behind = self._write_results({index: result})
        self._done[index], self._is_behind = result, is_behind
        seconds = time.perf_counter() - start
        logger.info("%s", stage_line("in all", seconds), extra=fields(entity=case.entity, seconds=round(seconds, 3)))
        return result

    def _scan(self, case: Case, index: int) -> tuple[Scan, str]:
        """The scan, and the state of the files that it was read from."""
        with timed(Stage.READ):
            volumes = self._scans.take(index)
            if volumes.lung_mask is not None:
                return Scan.of(volumes.ct, volumes.lung_mask, lobes=case.lobes), volumes.stat
        with timed(Stage.LUNGS):
            return Scan.of(volumes.ct, segment_lungs(volumes.ct, self._lungmask_weights)), volumes.stat

    def _dicom_source(self, case: Case, scan: Scan) -> SourceSeries | None:
        """The headers that DICOM objects are derived from, if they are asked for; read before the case is scored."""
        if not self._written.dicom:
            return None
        if not case.is_dicom:
            logger.info("%s: the CT is not DICOM: no DICOM objects are written", printable(case.entity))
            return None
        return SourceSeries.read(case.ct, scan.geometry)

    def _software(self) -> Software:
        """What DICOM objects name as their maker."""
        metadata = self._subtyper.metadata
        return Software(metadata.name, self._subtyper.bundle_sha256 or "", metadata.profile, metadata.trained_on)
