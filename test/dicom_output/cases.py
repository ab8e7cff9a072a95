"""A DICOM series, and DICOM objects derived from it with maps of random values: no network is needed."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from model.dicom_output.derived import DerivedObjects
from model.dicom_output.software import Software
from model.dicom_output.source import SourceSeries
from model.fleischner import CENTRILOBULAR, PARASEPTAL, Subtype
from model.imaging.readers import read_volume
from model.imaging.scan import Scan
from model.lungs import densitometry
from model.lungs.quality import ImageQuality
from model.lungs.regions import Regions
from model.subtyping import Finding, Subtyping
from test.imaging.series import SCANNER_TAGS, write_dicom_series
from test.phantom import Phantom, make_phantom

SOFTWARE = Software("dark-detector", "ab" * 32, "paper", "nothing")
WARNING = "the lung mask is odd"
KINDS = ("activation_maps", "lungs", "report")

# About the x, then the z axis: no axis of the grid is one of the patient's.
OBLIQUE = np.array([[0.9848, -0.1710, 0.0302], [0.1736, 0.9698, -0.1710], [0.0, 0.1736, 0.9848]])


@dataclasses.dataclass(frozen=True)
class DerivedCase:
    """A scan that was read from a series, its result, and the files of what was derived."""

    series: Path
    scan: Scan
    subtyping: Subtyping
    files: dict[str, Path]

    def map_image(self, subtype: str) -> sitk.Image:
        """The activation map of a subtype on the grid of the CT."""
        return self.scan.to_file_grid(getattr(self.subtyping, subtype).activation_map)


def derived_case(
    folder: Path,
    orientation: str = "LPS",
    rotation: npt.NDArray[np.float64] | None = None,
    tags: Callable[[int], dict[str, str]] = lambda _: SCANNER_TAGS,
    lobes: bool = False,
) -> DerivedCase:
    phantom = make_phantom((28, 40, 50), (9.0, 6.5, 6.5))
    if lobes:
        phantom = dataclasses.replace(phantom, lungs=_with_lobes(phantom))
    ct, mask = phantom.images(orientation, rotation)
    series = write_dicom_series(ct, folder / "series", tags=tags)
    scan = Scan.of(read_volume(series), read_volume(_written(mask, folder / "mask.mha")), lobes=lobes)
    regions = Regions.of(scan)
    random = np.random.default_rng(5)
    subtyping = Subtyping(
        _finding(CENTRILOBULAR, 3, 14.2, scan, regions, random),
        _finding(PARASEPTAL, 1, 3.1, scan, regions, random),
        regions,
        ImageQuality.of(scan),
    )
    source = SourceSeries.read(series, scan.geometry)
    derived = DerivedObjects.of(source, scan, subtyping, densitometry.measure(scan, regions), SOFTWARE, (WARNING,))
    files = {kind: folder / f"{kind}.dcm" for kind in KINDS}
    for kind, path in files.items():
        derived.write(kind, path)
    return DerivedCase(series, scan, subtyping, files)


def _written(image: sitk.Image, path: Path) -> Path:
    sitk.WriteImage(image, str(path))
    return path


def _with_lobes(phantom: Phantom) -> npt.NDArray[np.uint8]:
    """Upper and lower lobes; the right lung has no middle lobe."""
    lobes = np.where(phantom.lungs == 1, 3, np.where(phantom.lungs == 2, 1, 0)).astype(np.uint8)
    lobes[:14][lobes[:14] > 0] += 1
    return lobes


def _finding(
    subtype: Subtype, score: int, percentage: float, scan: Scan, regions: Regions, random: np.random.Generator
) -> Finding:
    """Random activation in the middle slices of the lungs, so that frames at both ends are empty."""
    levels = random.integers(0, 256, scan.shape, dtype=np.uint8) * scan.lung
    levels[:6] = levels[-9 - score :] = 0
    shares: dict[str, float | None] = {name: percentage + number for number, name in enumerate(regions.members)}
    return Finding(subtype, score, percentage, shares, None, levels)


def dcmqi(tool: str, *arguments: str | Path) -> None:
    """Run a program of dcmqi, which is installed beside Python."""
    command = [Path(sys.executable).parent / tool, *arguments]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
