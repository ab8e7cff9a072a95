"""One case of a cohort: read, scored and written by the container's own code, in a process that has the network loaded."""

from __future__ import annotations

import contextlib
import errno
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import SimpleITK as sitk

from ..command_line import DeviceName, InferencePrecisionName, MapType
from ..container.grand_challenge import OutputFolder, bundle_places, finished_cases
from ..container.reading import AlreadyRead, CaseVolumes, read_case
from ..container.results import CaseResult, LungMaskSource, Provenance, failed_result
from ..container.resume import (
    FinishedCase,
    Record,
    content_fingerprint,
    options_of_case,
    reason_to_repeat,
    stat_fingerprint,
)
from ..errors import InputError, printable, unexpected
from ..heap import reuse_freed_memory
from ..imaging.geometry import ImageGeometry
from ..imaging.integrity import data_file_of
from ..imaging.readers import Volume, files_behind
from ..whole_files import FolderInUseError
from .cases import CASES_FOLDER, CohortCase
from .journal import Entry

if TYPE_CHECKING:
    from ..container.algorithm import Written

logger = logging.getLogger("process")

FOLDER_FREE_SECONDS = 120.0
"""How long to wait for a case's folder: a worker of a driver that was killed may still be writing there."""


@dataclass(frozen=True)
class Settings:
    """How cases are scored and what is written of each; as the options of `process.py`.

    `output` is the cohort's folder.
    """

    output: Path
    weights: Path | None = None
    device: DeviceName = "auto"
    precision: InferencePrecisionName = "auto"
    map_type: MapType = "uint8"
    lung_mask: bool = False
    preview: bool = False
    report: bool = False
    dicom: bool = False
    lungmask_weights: Path | None = None
    verify: bool = False

    @property
    def written(self) -> Written:
        """What is written of a case."""
        from ..container.algorithm import Written

        return Written(self.map_type, self.lung_mask, self.preview, self.report, self.dicom)

    def folder_of(self, entity: str) -> Path:
        """The output folder of one case."""
        return self.output / CASES_FOLDER / entity


@dataclass(frozen=True)
class PackedVolume:
    """A volume whose voxels (z, y, x on the file's grid) another process can map without a copy."""

    voxels: np.ndarray
    geometry: ImageGeometry
    name: str
    warnings: tuple[str, ...]
    slice_thickness_mm: float | None

    @classmethod
    def of(cls, volume: Volume) -> PackedVolume:
        """Pack a volume; its voxels are copied."""
        voxels = sitk.GetArrayFromImage(volume.image)
        return cls(voxels, volume.geometry, volume.name, volume.warnings, volume.slice_thickness_mm)

    def unpacked(self) -> Volume:
        """The volume as it was read."""
        image = self.geometry.apply(sitk.GetImageFromArray(self.voxels))
        return Volume(image, self.name, self.warnings, self.slice_thickness_mm)


@dataclass(frozen=True)
class PackedCase:
    """What was read of a case, to be sent to the process that scores it, or why it could not be read."""

    ct: PackedVolume | None = None
    lung_mask: PackedVolume | None = None
    stat: str = ""
    problem: str = ""
    is_input: bool = True

    def unpacked(self) -> CaseVolumes | str:
        """The volumes, or the problem."""
        if self.ct is None:
            return self.problem
        return CaseVolumes(self.ct.unpacked(), self.lung_mask.unpacked() if self.lung_mask else None, self.stat)


def read_packed(case: CohortCase, settings: Settings) -> PackedCase:
    """Read the files of a case; find its lungs where it has no mask, unless a network does that beside the scoring.

    Memory that runs out is raised: another attempt may find more.
    """
    try:
        volumes = read_case(case.container_case)
        if volumes.lung_mask is None and settings.lungmask_weights is None:
            from ..lungs.segmentation import segment_lungs  # it imports scipy

            volumes = replace(volumes, lung_mask=segment_lungs(volumes.ct))
    except InputError as error:
        return PackedCase(problem=str(error))
    except MemoryError:
        raise
    except Exception as error:
        return PackedCase(problem=printable(f"{case.entity}: {unexpected(error)}"), is_input=False)
    lung_mask = PackedVolume.of(volumes.lung_mask) if volumes.lung_mask else None
    return PackedCase(PackedVolume.of(volumes.ct), lung_mask, volumes.stat)


@dataclass(frozen=True)
class Identity:
    """What a case is scored with: it tells whether an earlier result still stands.

    Attributes:
        provenance: of results with a given lung mask.
        options: of the run, as `recorded_options` has them.
    """

    provenance: Provenance
    options: Mapping[str, str]

    def of(self, source: LungMaskSource) -> Provenance:
        """The provenance of a result whose lung mask comes from `source`."""
        return replace(self.provenance, lung_mask_source=source)


@dataclass(frozen=True)
class ScoredCase:
    """What came of a case: its result, and what was noted of it if it was scored.

    Attributes:
        kept: why the case was not scored again and its earlier result, which this is, was kept; else empty.
    """

    result: CaseResult
    record: Record | None
    seconds: float
    exit_code: int
    kept: str = ""


class CaseScorer:
    """A network that scores one case after another, each into its own folder."""

    def __init__(self, settings: Settings, threads: int) -> None:
        """Load the network.

        Raises:
            InputError: the bundle or the device cannot be used.
        """
        import torch

        from ..container.algorithm import recorded_options
        from ..container.results import provenance
        from ..subtyping import EmphysemaSubtyper
        from ..weights import locate_bundle

        torch.set_num_threads(threads)
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
        reuse_freed_memory()
        self._settings = settings
        bundle = locate_bundle(*bundle_places(settings.weights))
        self._subtyper = EmphysemaSubtyper.from_bundle(bundle, settings.device, settings.precision)
        options = recorded_options(settings.written, settings.lungmask_weights)
        self.identity = Identity(provenance(self._subtyper, "given"), options)
        self.notes = (*self._subtyper.notes, f"running on {self._subtyper.device} in {self._subtyper.precision}")

    def score(self, case: CohortCase, volumes: CaseVolumes | str) -> ScoredCase:
        """Score a case that was read, or list it with what stood in its way; write its folder as `process.py` does.

        Where the input of a case that was scored before cannot be looked at any more, its folder is left as it is.

        Raises:
            InputError: its folder cannot be written.
        """
        from ..container.algorithm import EmphysemaAlgorithm

        start = time.perf_counter()
        settings = self._settings
        folder = settings.folder_of(case.entity)
        if isinstance(volumes, str):
            earlier = finished_cases(folder).get(case.entity)
            problem = unseen(case) if earlier else None
            if earlier and problem:
                return ScoredCase(earlier.result, earlier.record, 0.0, 2, kept=str(problem))
        with contextlib.closing(_free_folder(folder)) as outputs:
            algorithm = EmphysemaAlgorithm(
                [case.container_case],
                AlreadyRead([volumes]),
                self._subtyper,
                outputs,
                settings.written,
                settings.lungmask_weights,
                verify=settings.verify,
            )
            algorithm.process()
        (result,) = algorithm.results
        found = finished_cases(folder).get(case.entity) if result.metrics is not None else None
        seconds = time.perf_counter() - start
        return ScoredCase(result, found.record if found else None, seconds, algorithm.exit_code)

    def score_or_list(self, case: CohortCase, volumes: CaseVolumes | str) -> ScoredCase:
        """As `score`, but a folder that cannot be written is an error of this case, so that its process goes on."""
        try:
            return self.score(case, volumes)
        except MemoryError:
            raise
        except InputError as error:
            return ScoredCase(failed_result(str(error), case.entity), None, 0.0, 2)
        except Exception as error:
            message = printable(f"{case.entity}: {unexpected(error)}")
            return ScoredCase(failed_result(message, case.entity), None, 0.0, 1)


class PackedScorer(CaseScorer):
    """The same for cases that another process has read."""

    def score_packed(self, case: CohortCase, packed: PackedCase) -> ScoredCase:
        """As `score_or_list`; what the reader failed at unexpectedly is not the input's fault."""
        scored = self.score_or_list(case, packed.unpacked())
        return scored if packed.is_input else replace(scored, exit_code=1)


def _free_folder(folder: Path) -> OutputFolder:
    """The output folder of a case, once nobody else writes there."""
    end = time.monotonic() + FOLDER_FREE_SECONDS
    while True:
        try:
            return OutputFolder(folder)
        except FolderInUseError:
            if time.monotonic() > end:
                raise
            time.sleep(1)


def is_finished(case: CohortCase, entry: Entry | None, identity: Identity, settings: Settings) -> bool:
    """Whether an earlier result stands: the same bundle, options and input, and all that was written is there.

    Raises:
        InputError: the case was scored, and its input cannot be looked at: whether it has changed is not known.
    """
    if entry is None or entry.result.metrics is None or entry.record is None:
        return False
    files = case.container_case
    try:
        stat = stat_fingerprint(files.files)
        content = partial(content_fingerprint, files.files) if settings.verify else None
        found = FinishedCase(entry.result, entry.record)
        options = options_of_case(identity.options, files.lobes)
        reason = reason_to_repeat(found, identity.of(files.lung_mask_source), options, stat, content)
    except OSError as error:
        raise _kept(case, error) from error
    problem = unseen(case) if stat != entry.record.stat else None
    if problem:
        raise problem
    folder = settings.folder_of(case.entity)
    if not reason and not all((folder / name).is_file() for name in entry.record.files):
        reason = "files that were written are missing"
    if reason:
        logger.info("%s: scored again: %s", printable(case.entity), reason)
    return not reason


def unseen(case: CohortCase) -> InputError | None:
    """What says that the input of a case cannot be looked at, as where a share is not mounted; None if it can.

    The folder of a series is then missing or empty, or holds links that lead nowhere; or the voxels of a header are missing.
    """
    try:
        for path in case.container_case.files:
            inside = list(path.iterdir()) if path.is_dir() else [path]
            if not inside:
                raise FileNotFoundError(errno.ENOENT, "an empty folder", str(path))
            if path.suffix.lower() == ".mhd" and files_behind(path) == [path] and not _holds_voxels(path):
                raise FileNotFoundError(errno.ENOENT, "its voxels are missing", str(path))
            for file in inside:
                file.stat()
    except OSError as error:
        return _kept(case, error)
    return None


def _holds_voxels(header: Path) -> bool:
    """Whether the voxels are in the file of a header itself."""
    try:
        return data_file_of(header) == header
    except InputError:
        return False


def _kept(case: CohortCase, error: OSError) -> InputError:
    """Why the result of a case is kept, although nobody can tell whether it still stands."""
    found = f"it cannot be looked at ({error.strerror}); the earlier result of {case.entity} is kept"
    return InputError(error.filename or case.ct, found, "the input of the earlier result")
