"""A scored case as the page shows it: one that was uploaded and scored here, or one of a finished output folder."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from .. import fleischner
from ..container.grand_challenge import (
    PREVIEW_FOLDER,
    REPORT_FOLDER,
    RESULTS_FILE,
    Case,
    find_cases,
    lung_mask_path,
    map_path,
    preview_path,
    report_path,
)
from ..container.report import report_page
from ..container.results import CaseResult, case_result, read_results
from ..errors import InputError
from ..imaging.geometry import ImageGeometry, Orientation
from ..imaging.memory import available_memory
from ..imaging.readers import read_volume
from ..imaging.scan import Scan, hounsfield_shown
from ..imaging.writing import write_image
from ..lungs import densitometry
from ..lungs.segmentation import segment_lungs
from ..rendering import View, most_affected_slice, preview, three_planes
from ..stages import Stage, timed
from ..subtyping import EmphysemaSubtyper
from .charts import SMALLEST_SLICE
from .uploads import DAMAGED_ZIP, Upload, private_folder, read_upload
from .volumes import levels, start_mm

ENTITY = "scan"
"""What an uploaded scan is called in results: never by its file's name."""

HISTOGRAM_HU = (-1050, -400)
HISTOGRAM_BIN_HU = 10

SUBTYPES = tuple(subtype.name for subtype in fleischner.SUBTYPES)


@dataclass(frozen=True)
class CaseFiles:
    """Files of a case to download, as process.py writes them; None where a finished output does not hold one.

    Attributes:
        maps: of each subtype; .mha.
        lung_mask: the lungs that were scored; .mha.
        overview: slices of the most affected levels; .png.
        report_pdf, report_html: the printable report.
    """

    maps: dict[str, bytes]
    lung_mask: bytes | None = None
    overview: bytes | None = None
    report_pdf: bytes | None = None
    report_html: bytes | None = None


@dataclass(frozen=True)
class ViewedCase:
    """What there is to see of a case.

    Attributes:
        result: as in `results.json`, with metrics.
        hounsfield: z, y, x in the patient's frame; HU; None where the CT is not there.
        lung: on the same grid; None where the mask is not there, or lies on another grid.
        maps: activation map of each subtype, on the same grid; uint8 or float 0 to 1.
        spacing: z, y, x; mm.
        files: to download.
    """

    result: CaseResult
    hounsfield: np.ndarray | None
    lung: npt.NDArray[np.bool_] | None
    maps: dict[str, np.ndarray]
    spacing: tuple[float, float, float]
    files: CaseFiles

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels z, y, x."""
        z, y, x = next(iter(self.maps.values())).shape
        return z, y, x

    @property
    def size_bytes(self) -> int:
        """Memory that the case takes, volumes for the browser and files included."""
        arrays = [self.hounsfield, self.lung, *self.maps.values()]
        files = self.files
        contents = [*files.maps.values(), files.lung_mask, files.overview, files.report_pdf, files.report_html]
        for level in self.browser_volumes:
            contents += level.values()
        return sum(array.nbytes for array in arrays if array is not None) + sum(len(content or b"") for content in contents)

    @cached_property
    def most_affected_level(self) -> int:
        """The axial slice with the most activation, from 0 at the base: see `model.rendering.most_affected_slice`."""
        return most_affected_slice(list(self.maps.values()), self.lung, "axial")

    @cached_property
    def browser_volumes(self) -> tuple[dict[str, bytes], ...]:
        """What the browser shows in linked planes: see `model.viewing.volumes.levels`."""
        return tuple(levels(self))

    @cached_property
    def start_mm(self) -> tuple[float, float, float]:
        """Where the cross-hair of the linked planes lies at first: see `model.viewing.volumes.start_mm`."""
        return start_mm(self)

    def prepare_planes(self) -> None:
        """Make what the linked planes need now, so that the page is not kept waiting between the answer and its picture."""
        _ = self.browser_volumes, self.start_mm

    @cached_property
    def percent_by_height(self) -> dict[str, npt.NDArray[np.float64]]:
        """Mean activation of each subtype inside the lung, in percent, of each axial slice; NaN where the lung is
        smaller than `SMALLEST_SLICE`.

        Empty without a lung mask.
        """
        if self.lung is None:
            return {}
        voxels = self.lung.sum(axis=(1, 2), dtype=np.float64)
        voxels[voxels < max(SMALLEST_SLICE * voxels.max(), 1)] = np.nan
        return {
            subtype: 100 * activation.sum(axis=(1, 2), dtype=np.float64) / voxels / (255 if activation.dtype == np.uint8 else 1)
            for subtype, activation in self.maps.items()
        }

    @cached_property
    def histogram(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]] | None:
        """Lower bounds of HU bins, and the percent of the lung's voxels in each; None without CT or mask.

        The first and last bins also hold what lies beyond.
        """
        if self.hounsfield is None or self.lung is None:
            return None
        low, high = HISTOGRAM_HU
        counts = np.zeros((high - low) // HISTOGRAM_BIN_HU)
        for level, inside in zip(self.hounsfield, self.lung, strict=True):
            bins = (level[inside].clip(low, high - 1).astype(np.int64) - low) // HISTOGRAM_BIN_HU
            counts += np.bincount(bins, minlength=len(counts))
        return np.arange(low, high, HISTOGRAM_BIN_HU, dtype=np.float64), 100 * counts / counts.sum()


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
        density = densitometry.measure(scan, subtyping.regions)
        result = case_result(ENTITY, scan, subtyping, density, subtyper, "given" if mask_files else "automatic")
        run = result.provenance
        assert run is not None, "the case was scored"
        maps = {finding.subtype.name: finding.activation_map for finding in subtyping.findings}
        pdf, html = report_page(result, three_planes(View.of(scan, subtyping)))
        files = CaseFiles(
            {subtype: _mha(scan.to_file_grid(activation)) for subtype, activation in maps.items()},
            _mha(scan.to_file_grid(scan.lung)),
            preview(scan, subtyping, ENTITY, run.trained_on, run.validation),
            pdf,
            html.encode(),
        )
        case = ViewedCase(result, scan.hounsfield, scan.lung, maps, scan.spacing, files)
        case.prepare_planes()
    return case


def example_files(folder: Path) -> tuple[list[Upload], list[Upload]] | None:
    """CT and lung mask of the example case, as if they had been uploaded; None where the folder does not hold it."""
    if not folder.is_dir():
        return None
    case = find_cases(folder)[0]
    ct, mask = ([Upload(path.name, path.read_bytes())] for path in case.files)
    return ct, mask


def smoothed(ct: Upload) -> Upload:
    """A copy of a CT as a smoother kernel would show it: convolved with a Gaussian of 1 mm."""
    image = read_upload([ct], "CT").image
    return Upload("smoothed.mha", _mha(sitk.Cast(sitk.SmoothingRecursiveGaussian(image, 1.0), sitk.sitkInt16)))


def _mha(image: sitk.Image) -> bytes:
    with private_folder() as folder:
        path = folder / "map.mha"
        write_image(image, path, Path(path.name))
        return path.read_bytes()


def finished_cases(output: Path) -> dict[str, CaseResult]:
    """The scored ones of `finished_run`."""
    return finished_run(output)[0]


def finished_run(output: Path) -> tuple[dict[str, CaseResult], list[str]]:
    """The results of the cases of an output folder that were scored, by entity; and name and reason of the others, a line each.

    Raises:
        InputError: it holds none, or they cannot be read.
    """
    path = output / RESULTS_FILE
    expected = "a finished output folder of process.py"
    if not path.is_file():
        raise InputError(output, f"no {RESULTS_FILE} in it", expected)
    results = read_results(path)
    scored = {result.entity: result for result in results if result.entity and result.metrics}
    if not scored:
        raise InputError(path, "no case in it was scored", expected)
    return scored, [
        f"{result.entity or 'the run'}: {'; '.join(result.error_messages)}" for result in results if not result.metrics
    ]


@contextmanager
def unpacked_output(archive: Upload) -> Iterator[Path]:
    """The folder in an uploaded .zip that holds `results.json`, for the length of the block, in a private folder.

    Only `results.json`, images, previews and reports are unpacked.

    Raises:
        InputError: it is no .zip of a finished output, or too large for the memory.
    """
    expected = "a .zip of what process.py wrote: results.json and images"
    with private_folder() as folder:
        try:
            with zipfile.ZipFile(io.BytesIO(archive.content)) as opened:
                files = {PurePosixPath(member.filename): member for member in opened.infolist() if not member.is_dir()}
                tops = sorted((path.parent for path in files if path.name == RESULTS_FILE), key=lambda top: len(top.parts))
                if not tops:
                    raise InputError("upload", f"no {RESULTS_FILE} in the .zip", expected)
                if sum(len(top.parts) == len(tops[0].parts) for top in tops) > 1:
                    raise InputError("upload", f"several {RESULTS_FILE} in the .zip", "one output folder")
                wanted = {path.relative_to(tops[0]): member for path, member in files.items() if _is_wanted(path, tops[0])}
                size, free = sum(member.file_size for member in wanted.values()), available_memory()
                if size > free // 2:
                    found = f"the .zip unpacks to {size / 2**30:.1f} GiB"
                    raise InputError("upload", found, f"at most half of the {free / 2**30:.1f} GiB of memory that are free")
                for path, member in wanted.items():
                    if ".." in path.parts or path.is_absolute():
                        raise InputError("upload", "a file in the .zip lies outside of it", expected)
                    (folder / path).parent.mkdir(parents=True, exist_ok=True)
                    with opened.open(member) as stream:
                        (folder / path).write_bytes(stream.read(member.file_size))
        except DAMAGED_ZIP as error:
            raise InputError("upload", f"the .zip cannot be unpacked ({type(error).__name__})", expected) from error
        yield folder


def _is_wanted(path: PurePosixPath, top: PurePosixPath) -> bool:
    if path.suffix == ".mha":
        return path.is_relative_to(top / "images")
    if path.suffix in (".png", ".pdf", ".html"):
        return path.parent in (top / PREVIEW_FOLDER, top / REPORT_FOLDER)
    return path == top / RESULTS_FILE


def open_finished(output: Path, result: CaseResult, inputs: Path | None) -> ViewedCase:
    """Open a case of a finished output folder, with its CT where `inputs`, the folder that was scored, still holds it.

    Raises:
        InputError: a map is missing or cannot be read, the CT lies on another grid, or the name of the case is no file name.
    """
    entity = str(result.entity)
    if PurePosixPath(entity).name != entity or "\\" in entity or "\0" in entity:
        raise InputError(RESULTS_FILE, f"a case named {entity!r}", "the name of a file")
    paths = {subtype: map_path(output, subtype, entity) for subtype in SUBTYPES}
    maps = {subtype: read_volume(path).image for subtype, path in paths.items()}
    geometry = ImageGeometry.of(maps[SUBTYPES[0]])
    orientation = Orientation.of(geometry)
    hounsfield, lung = _scan_of(entity, inputs, geometry)
    scored = lung_mask_path(output, entity)
    if scored.is_file():
        lung = _mask_on(scored, geometry)
    arrays = {subtype: orientation.to_patient(sitk.GetArrayFromImage(image)) for subtype, image in maps.items()}
    files = CaseFiles(
        {subtype: path.read_bytes() for subtype, path in paths.items()},
        _content(scored),
        _content(preview_path(output, entity)),
        _content(report_path(output, entity, ".pdf")),
        _content(report_path(output, entity, ".html")),
    )
    case = ViewedCase(result, hounsfield, lung, arrays, orientation.spacing(geometry), files)
    case.prepare_planes()
    return case


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _mask_on(path: Path, geometry: ImageGeometry) -> npt.NDArray[np.bool_] | None:
    """A lung mask in the patient's frame; None where it lies on another grid."""
    mask = read_volume(path)
    if not mask.geometry.same_grid(geometry):
        return None
    lung: npt.NDArray[np.bool_] = Orientation.of(geometry).to_patient(sitk.GetArrayFromImage(mask.image) > 0)
    return lung


def _scan_of(
    entity: str, inputs: Path | None, geometry: ImageGeometry
) -> tuple[np.ndarray | None, npt.NDArray[np.bool_] | None]:
    """CT and lung mask that were scored, as far as they are still there and lie on the grid of the maps."""
    if inputs is None or not inputs.is_dir():
        return None, None
    case: Case | None = next((case for case in find_cases(inputs, segment_lungs=True) if case.entity == entity), None)
    if case is None:
        return None, None
    ct = read_volume(case.ct)
    if not ct.geometry.same_grid(geometry):
        raise InputError(case.ct, "it lies on another grid than the maps of its name", "the CT that was scored")
    lung = _mask_on(case.lung_mask, geometry) if case.lung_mask is not None else None
    hounsfield = hounsfield_shown(sitk.GetArrayFromImage(ct.image))
    return Orientation.of(geometry).to_patient(hounsfield), lung
