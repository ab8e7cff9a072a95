"""A scored case as the page shows it: one that was uploaded and scored here, or one of a finished output folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from .. import fleischner
from ..container.grand_challenge import RESULTS_FILE, Case, find_cases, map_path
from ..container.results import CaseResult, case_result, read_results
from ..errors import InputError
from ..imaging.geometry import ImageGeometry, Orientation
from ..imaging.readers import read_volume
from ..imaging.scan import Scan
from ..lungs.segmentation import segment_lungs
from ..rendering import preview
from ..stages import Stage, timed
from ..subtyping import EmphysemaSubtyper
from .uploads import Upload, private_folder, read_upload

ENTITY = "scan"
"""What an uploaded scan is called in results: never by its file's name."""

SUBTYPES = tuple(subtype.name for subtype in fleischner.SUBTYPES)


@dataclass(frozen=True)
class ViewedCase:
    """What there is to see of a case.

    Attributes:
        result: as in `results.json`, with metrics.
        hounsfield: z, y, x in the patient's frame; HU; None where the CT is not there.
        maps: activation map of each subtype, on the same grid; uint8 or float 0 to 1.
        spacing: z, y, x; mm.
        map_files: the maps as .mha files.
        overview: a PNG file of the most affected slices; None for a finished case, which may have one of its own.
    """

    result: CaseResult
    hounsfield: np.ndarray | None
    maps: dict[str, np.ndarray]
    spacing: tuple[float, float, float]
    map_files: dict[str, bytes]
    overview: bytes | None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels z, y, x."""
        z, y, x = next(iter(self.maps.values())).shape
        return z, y, x


def score_uploads(
    subtyper: EmphysemaSubtyper,
    ct_files: Sequence[Upload],
    mask_files: Sequence[Upload],
    lungmask_weights: Path | None = None,
) -> ViewedCase:
    """Score an uploaded CT; its lungs are found where no mask came with it.

    Raises:
        InputError: an upload cannot be used; its text names no file of the user's.
    """
    with timed(Stage.READ):
        ct = read_upload(ct_files, "CT")
        scan = Scan.of(ct, read_upload(mask_files, "lung-mask")) if mask_files else None
    if scan is None:
        with timed(Stage.LUNGS):
            scan = Scan.of(ct, segment_lungs(ct, lungmask_weights))
    subtyping = subtyper.predict(scan)
    with timed(Stage.REPORT):
        result = case_result(ENTITY, scan, subtyping, subtyper, "given" if mask_files else "automatic")
        maps = {finding.subtype.name: finding.activation_map for finding in subtyping.findings}
        files = {subtype: _mha(scan.to_file_grid(activation)) for subtype, activation in maps.items()}
        overview = preview(scan, subtyping, ENTITY, subtyper.metadata.trained_on)
    return ViewedCase(result, scan.hounsfield, maps, scan.spacing, files, overview)


def _mha(image: sitk.Image) -> bytes:
    with private_folder() as folder:
        sitk.WriteImage(image, str(folder / "map.mha"), useCompression=True)
        return (folder / "map.mha").read_bytes()


def finished_cases(output: Path) -> dict[str, CaseResult]:
    """The results of the cases of an output folder that were scored, by entity.

    Raises:
        InputError: it holds none, or they cannot be read.
    """
    path = output / RESULTS_FILE
    expected = "a finished output folder of process.py"
    if not path.is_file():
        raise InputError(output, f"no {RESULTS_FILE} in it", expected)
    scored = {result.entity: result for result in read_results(path) if result.entity and result.metrics}
    if not scored:
        raise InputError(path, "no case in it was scored", expected)
    return scored


def open_finished(output: Path, result: CaseResult, inputs: Path | None) -> ViewedCase:
    """Open a case of a finished output folder, with its CT where `inputs`, the folder that was scored, still holds it.

    Raises:
        InputError: a map is missing or cannot be read, or the CT lies on another grid.
    """
    entity = str(result.entity)
    maps, files = {}, {}
    for subtype in SUBTYPES:
        path = map_path(output, subtype, entity)
        maps[subtype], files[subtype] = read_volume(path).image, path.read_bytes()
    geometry = ImageGeometry.of(maps[SUBTYPES[0]])
    hounsfield = _ct_of(entity, inputs, geometry)
    orientation = Orientation.of(geometry)
    arrays = {subtype: orientation.to_patient(sitk.GetArrayFromImage(image)) for subtype, image in maps.items()}
    return ViewedCase(result, hounsfield, arrays, orientation.spacing(geometry), files, None)


def _ct_of(entity: str, inputs: Path | None, geometry: ImageGeometry) -> np.ndarray | None:
    if inputs is None or not inputs.is_dir():
        return None
    case: Case | None = next((case for case in find_cases(inputs, segment_lungs=True) if case.entity == entity), None)
    if case is None:
        return None
    ct = read_volume(case.ct)
    if not ct.geometry.same_grid(geometry):
        raise InputError(case.ct, "it lies on another grid than the maps of its name", "the CT that was scored")
    return Orientation.of(ct.geometry).to_patient(sitk.GetArrayFromImage(ct.image))
