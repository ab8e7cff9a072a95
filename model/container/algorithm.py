"""The run of `process.py` as evalutils has it: cases in, `results.json` out.

A module of its own because evalutils brings pandas, which takes half a second to import: `process.py` does that while the first
scan is being read.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
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
from ..lungs.densitometry import Densitometry
from ..lungs.segmentation import segment_lungs
from ..rendering import View, preview, three_planes
from ..stages import Stage, stage_line, timed
from ..subtyping import EmphysemaSubtyper, Subtyping
from . import grand_challenge
from .grand_challenge import Case, OutputFolder
from .logs import Progress, fields
from .reading import ReadAhead
from .report import report_page
from .results import CaseResult, case_result, failed_result, provenance
from .resume import Record, content_fingerprint, stat_fingerprint
from .startup import scikit_learn_when_used

with scikit_learn_when_used():
    from evalutils.evalutils import Algorithm
    from evalutils.exceptions import FileLoaderError
    from evalutils.io import FileLoader

logger = logging.getLogger("process")


@dataclasses.dataclass(frozen=True)
class Written:
    """What is written of a case beside its scores and maps.

    Attributes:
        map_type: of the activation maps.
        lung_mask: the lungs that were scored; they are also written where they were found in the CT itself.
        preview: a picture.
        report: a page to print.
        dicom: DICOM objects, of a CT that came as a DICOM series.
    """

    map_type: MapType = "uint8"
    lung_mask: bool = False
    preview: bool = False
    report: bool = False
    dicom: bool = False


class HeaderLoader(FileLoader):  # type: ignore[misc]
    """Reads and checks the header alone: evalutils' own loader reads and hashes the whole volume, twice."""

    def load(self, *, fname: Path) -> list[dict[str, Any]]:
        """Return the file's path and size in voxels.

        Raises:
            FileLoaderError: the file cannot be a scan or mask; the cause is an `InputError`.
        """
        try:
            return [{"path": fname, "size": read_header(fname)}]
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
        scans: ReadAhead,
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
        """
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
        self._records: dict[str, Record] = {}
        self._options = {
            **{name: str(value) for name, value in dataclasses.asdict(written).items()},
            "lungmask_weights": content_fingerprint([lungmask_weights]) if lungmask_weights else "",
        }

    @property
    def results(self) -> list[CaseResult]:
        """What `results.json` holds: one result a case, in the order of the cases."""
        return list(self._case_results)

    def load(self) -> None:
        """Read the headers of all cases before the first is scored; `problem` says what stands in a case's way, if anything.

        What an earlier run wrote is removed, but for the cases that it finished if this run continues it.
        """
        stats = [_stat_fingerprint(case) for case in self._listed]
        if self._resume:
            self._find_finished(stats)
            self._scans.begin(self._finished)
        self._remove_earlier()
        rows = []
        for index, (case, stat) in enumerate(zip(self._listed, stats, strict=True)):
            row: dict[str, Any] = {"case": case, "problem": "", "stat": stat}
            try:
                if index not in self._finished:
                    for key, path in zip(("ct", "lung_mask"), case.files, strict=False):
                        self._file_loaders[key].load(fname=path)
            except (InputError, FileLoaderError) as error:
                row["problem"] = str(error)
            rows.append(row)
        self._cases[self._index_key] = DataFrame(rows)
        self._progress = Progress(len(rows), len(rows) - len(self._finished))

    def _find_finished(self, stats: list[str]) -> None:
        """Note which cases need not be scored again, and say why those that were scored before must be."""
        earlier = self._outputs.earlier_results()
        for index, (case, stat) in enumerate(zip(self._listed, stats, strict=True)):
            if case.entity not in earlier:
                continue
            result, record = earlier[case.entity]
            if result.provenance != provenance(self._subtyper, case.lung_mask_source):
                reason = "the bundle, its device or precision, or this software has changed"
            elif record.options != self._options:
                reason = "the options have changed"
            elif self._verify and record.sha256 is None:
                reason = "the earlier run had no --verify"
            elif self._content(case) != record.sha256 if self._verify else stat != record.stat:
                reason = "the input has changed"
            else:
                self._finished[index] = result
                self._records[case.entity] = dataclasses.replace(record, stat=stat)
                continue
            logger.info("%s: scored again: %s", printable(case.entity), reason)

    def _content(self, case: Case) -> str | None:
        """The fingerprint of what a case's files hold, where it is asked for and can be had."""
        if not self._verify:
            return None
        try:
            return content_fingerprint(case.files)
        except (InputError, OSError):
            return None

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

    def process_case(self, *, idx: int, case: Series) -> CaseResult:
        """Score one case, unless it is finished; write its maps, with the run's first case the score files, and all results."""
        if idx in self._finished:
            return self._finished[idx]
        self._progress.begin(idx + 1, case["case"].entity)
        result = self._result(case["case"], case["problem"], case["stat"], idx)
        self._progress.end()
        return result

    def _result(self, files: Case, problem: str, stat: str, index: int) -> CaseResult:
        try:
            self._outputs.discard(files.entity)
            if problem:
                raise FileLoaderError(problem)
            return self._scored(files, stat, index)
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
            self._write_results(result, index)
        return result

    def _write_results(self, result: CaseResult, index: int) -> None:
        """Write the results up to this one, and those of an earlier run for cases that come later; in a `with` block."""
        later = [self._finished[place] for place in self._finished if place > index]
        self._outputs.write_results([*self._case_results, result, *later])
        if self._records:
            self._outputs.write_records(self._records)

    def _write_scores(self, result: CaseResult) -> None:
        """Write the score files; in a `with` block."""
        assert result.metrics is not None, "the case was scored"
        for subtype in SUBTYPES:
            self._outputs.write_score(subtype.name, result.metrics.of(subtype))

    def predict(self, *, input_image: Scan) -> Subtyping:
        """Score one scan."""
        return self._subtyper.predict(input_image, self._written.map_type)

    def save(self) -> None:
        """Nothing is left to write: `process_case` has written `results.json`."""

    def _scored(self, case: Case, stat: str, index: int) -> CaseResult:
        start = time.perf_counter()
        content = self._content(case)
        scan = self._scan(case, index)
        source = self._dicom_source(case, scan)
        subtyping = self.predict(input_image=scan)
        with timed(Stage.DENSITOMETRY):
            result = case_result(case.entity, scan, subtyping, self._subtyper, case.lung_mask_source)
        for warning in result.warnings:
            logger.info("%s: %s", printable(case.entity), warning, extra=fields(entity=case.entity, warning=warning))
        dicom = None
        if source is not None:
            with timed(Stage.DICOM):
                dicom = self._dicom_objects(source, scan, subtyping, result)
        with timed(Stage.WRITE), self._outputs as outputs:
            findings = subtyping.findings
            maps = {finding.subtype.name: scan.to_file_grid(finding.activation_map) for finding in findings}
            outputs.write_maps(case.entity, maps)
            if self._written.lung_mask or case.lung_mask_source == "automatic":
                outputs.write_lung_mask(case.entity, scan.to_file_grid(scan.lung.astype(np.uint8)))
            if self._written.preview:
                trained_on = self._subtyper.metadata.trained_on
                outputs.write_preview(case.entity, preview(scan, subtyping, case.entity, trained_on))
            if self._written.report:
                outputs.write_report(case.entity, *report_page(result, three_planes(View.of(scan, subtyping))))
            if dicom is not None:
                outputs.write_dicom(case.entity, dicom)
            files = tuple(str(path.relative_to(outputs.folder)) for path in outputs.pending)
            self._records[case.entity] = Record(stat, self._options, files, content)
            if index == 0:
                self._write_scores(result)
            self._write_results(result, index)
        seconds = time.perf_counter() - start
        logger.info("%s", stage_line("in all", seconds), extra=fields(entity=case.entity, seconds=round(seconds, 3)))
        return result

    def _scan(self, case: Case, index: int) -> Scan:
        with timed(Stage.READ):
            volumes = self._scans.take(index)
            if volumes.lung_mask is not None:
                return Scan.of(volumes.ct, volumes.lung_mask, lobes=case.lobes)
        with timed(Stage.LUNGS):
            return Scan.of(volumes.ct, segment_lungs(volumes.ct, self._lungmask_weights))

    def _dicom_source(self, case: Case, scan: Scan) -> SourceSeries | None:
        """The headers that DICOM objects are derived from, if they are asked for; read before the case is scored."""
        if not self._written.dicom:
            return None
        if not case.is_dicom:
            logger.info("%s: the CT is not DICOM: no DICOM objects are written", printable(case.entity))
            return None
        return SourceSeries.read(case.ct, scan.geometry)

    def _dicom_objects(self, source: SourceSeries, scan: Scan, subtyping: Subtyping, result: CaseResult) -> DerivedObjects:
        """The DICOM objects of a case, with the numbers of its result."""
        metrics, run = result.metrics, result.provenance
        assert metrics is not None
        assert run is not None
        whole = Densitometry(metrics.laa950_percentage, metrics.perc15_hu, metrics.lung_volume_ml)
        parts = {
            name: Densitometry(region.laa950_percentage, region.perc15_hu, region.volume_ml)
            for name, region in metrics.regions.items()
        }
        software = Software(run.bundle, run.sha256 or "", run.profile or "", run.trained_on)
        return DerivedObjects.of(source, scan, subtyping, (whole, parts), software, result.warnings)


def _stat_fingerprint(case: Case) -> str:
    """Empty where the files cannot be looked at; why not is said when the case is to be scored."""
    try:
        return stat_fingerprint(case.files)
    except (InputError, OSError):
        return ""
