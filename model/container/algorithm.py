"""The run of `process.py` as evalutils has it: cases in, `results.json` out.

A module of its own because evalutils brings pandas and scikit-learn, which take more than a second to import: `process.py` does
that while the first scan is being read.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from evalutils.evalutils import Algorithm
from evalutils.exceptions import FileLoaderError
from evalutils.io import FileLoader
from pandas import DataFrame, Series

from ..command_line import MapType
from ..errors import InputError, printable, unexpected
from ..imaging.native import print_error
from ..imaging.readers import read_header
from ..imaging.scan import Scan
from ..lungs.segmentation import segment_lungs
from ..rendering import preview
from ..stages import Stage, stage_line, timed
from ..subtyping import EmphysemaSubtyper, Subtyping
from . import grand_challenge
from .grand_challenge import Case, OutputFolder
from .reading import ReadAhead
from .results import CaseResult, SubtypeScore, case_result, failed_result

logger = logging.getLogger("process")


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
        map_type: MapType,
        with_preview: bool,
        lungmask_weights: Path | None,
    ) -> None:
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
        self._map_type = map_type
        self._with_preview = with_preview
        self._lungmask_weights = lungmask_weights

    @property
    def results(self) -> list[CaseResult]:
        """What `results.json` holds: one result a case, in the order of the cases."""
        return list(self._case_results)

    def load(self) -> None:
        """Read the headers of all cases before the first is scored; `problem` says what stands in a case's way, if anything."""
        rows = []
        for case in self._listed:
            row: dict[str, Any] = {"case": case, "problem": ""}
            try:
                for key, path in zip(("ct", "lung_mask"), case.files, strict=False):
                    self._file_loaders[key].load(fname=path)
            except (InputError, FileLoaderError) as error:
                row["problem"] = str(error)
            rows.append(row)
        self._cases[self._index_key] = DataFrame(rows)

    def process_case(self, *, idx: int, case: Series) -> CaseResult:
        """Score one case; write its maps, with the run's first case the score files, and the results so far."""
        result = self._result(case["case"], case["problem"], idx)
        with self._outputs as outputs:
            outputs.write_results([*self._case_results, result])
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
        return failed_result(message, files.entity)

    def predict(self, *, input_image: Scan) -> Subtyping:
        """Score one scan."""
        return self._subtyper.predict(input_image, self._map_type)

    def save(self) -> None:
        """Nothing is left to write: `process_case` has written `results.json`."""

    def _scored(self, case: Case, index: int) -> CaseResult:
        start = time.perf_counter()
        logger.info("%s", printable(case.entity))
        scan = self._scan(case, index)
        subtyping = self.predict(input_image=scan)
        with timed(Stage.DENSITOMETRY):
            result = case_result(case.entity, scan, subtyping, self._subtyper, case.lung_mask_source)
        for warning in result.warnings:
            logger.info("%s: %s", printable(case.entity), warning)
        with timed(Stage.WRITE), self._outputs as outputs:
            findings = subtyping.findings
            maps = {finding.subtype.name: scan.to_file_grid(finding.activation_map) for finding in findings}
            outputs.write_maps(case.entity, maps)
            if index == 0:
                for finding in findings:
                    outputs.write_score(finding.subtype.name, SubtypeScore(finding.score, finding.severity, finding.percentage))
            if self._with_preview:
                outputs.write_preview(case.entity, preview(scan, subtyping, self._subtyper.metadata.trained_on))
        logger.info("%s", stage_line("in all", time.perf_counter() - start))
        return result

    def _scan(self, case: Case, index: int) -> Scan:
        with timed(Stage.READ):
            volumes = self._scans.take(index)
            if volumes.lung_mask is not None:
                return Scan.of(volumes.ct, volumes.lung_mask, lobes=case.lobes)
        with timed(Stage.LUNGS):
            return Scan.of(volumes.ct, segment_lungs(volumes.ct, self._lungmask_weights))
