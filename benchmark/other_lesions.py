"""Measure a weight bundle on lesions that share nothing with the simulator that it may have learnt from.

Usage: python benchmark/other_lesions.py --lungs MASK [--weights BUNDLE] [--cases 24] [--seed 0] [--csv FILE]

MASK is a lung mask of a real patient. Its lungs are filled with homogeneous parenchyma and vessels. Centrilobular emphysema is
balls of 2 to 5 mm radius, further than 8 mm from the pleura. Paraseptal emphysema is balls of 4 to 14 mm radius around points
of the pleura, as far as they are in the lung. Balls are placed until a percentage is reached that is drawn evenly from each
Fleischner grade. The scanner is a Gaussian blur and noise. Nothing of `model.simulation` is used.

Printed for each subtype: mean absolute error and bias in percentage points, Spearman's rank correlation, and the same for
LAA-950 further and nearer than 8 mm from the pleura.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from scipy import ndimage
from scipy.stats import spearmanr
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmark.command import add_scans, percentage_of, script_parser, try_file, write_csv
from model.command_line import exit_code
from model.errors import InputError
from model.evaluation.baselines import rim_paraseptal
from model.fleischner import SUBTYPES, Subtype
from model.imaging.readers import read_volume
from model.imaging.scan import Scan
from model.subtyping import EmphysemaSubtyper
from model.weights import locate_bundle

SPACING = 1.2
"""Voxels of the scans, in mm, along all axes."""

LARGEST_PERCENTAGES = {"centrilobular": 40.0, "paraseptal": 15.0}
CENTRILOBULAR_RADIUS, PARASEPTAL_RADIUS = (2.0, 5.0), (4.0, 14.0)
CENTRILOBULAR_DEPTH = 8.0
DENSITY, LESION_DENSITY = (-890.0, -830.0), (-990.0, -950.0)
VESSEL_HU, SOFT_TISSUE_HU = -300.0, 40.0
BLUR, NOISE = (0.5, 1.2), (10.0, 30.0)
"""Of the scanner: standard deviations of the blur in mm, and of the noise in HU."""

_LARGE_LUNGS = f"lungs of an adult, of which at least {LARGEST_PERCENTAGES['centrilobular']:g} % lie deeper"

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Measured:
    """One scan and subtype: percentages of the lung."""

    subtype: str
    truth: float
    network: float
    densitometry: float


def read_lungs(path: Path) -> Bools:
    """The mask at `SPACING`, z, y, x, cropped to 15 mm around the lungs."""
    mask = sitk.DICOMOrient(read_volume(path).image, "LPS") > 0
    size = [max(round(n * step / SPACING), 1) for n, step in zip(mask.GetSize(), mask.GetSpacing(), strict=True)]
    same_frame = (mask.GetOrigin(), [SPACING] * 3, mask.GetDirection())
    lungs = sitk.GetArrayFromImage(sitk.Resample(mask, size, sitk.Transform(), sitk.sitkNearestNeighbor, *same_frame)) > 0
    if not lungs.any():
        raise InputError(path, "holds no lung", "labels above 0")
    margin = round(15 / SPACING)
    box = ndimage.find_objects(lungs.astype(np.uint8))[0]
    return np.pad(lungs[box], margin)


def depth_of(lungs: Bools, path: Path) -> Floats:
    """Distance to the pleura in mm.

    Raises:
        InputError: the lungs are too small for the largest percentage of centrilobular emphysema.
    """
    depth = ndimage.distance_transform_edt(lungs, sampling=SPACING).astype(np.float32)
    share = 100 * float(np.mean(depth[lungs] > CENTRILOBULAR_DEPTH))
    if share < LARGEST_PERCENTAGES["centrilobular"]:
        found = f"{share:.0f} % of the lungs lie deeper than {CENTRILOBULAR_DEPTH:g} mm"
        raise InputError(path, found, _LARGE_LUNGS)
    return depth


def smooth_noise(shape: tuple[int, ...], size_mm: float, rng: np.random.Generator) -> Floats:
    """Noise of standard deviation 1 that changes over about `size_mm`."""
    noise = ndimage.gaussian_filter(rng.standard_normal(shape, np.float32), size_mm / SPACING, truncate=3)
    return noise / noise.std()


def place_balls(
    centres: npt.NDArray[np.intp], radii: tuple[float, float], allowed: Bools, wanted: int, rng: np.random.Generator
) -> Bools:
    """Balls around centres drawn at random, as far as they are allowed, until so many voxels are in them.

    Raises:
        InputError: so many are not allowed.
    """
    most = np.count_nonzero(allowed) if len(centres) else 0
    if wanted > most:
        raise InputError("--lungs", f"{wanted} voxels of lesions do not fit where {most} are free", _LARGE_LUNGS)
    lesions = np.zeros_like(allowed)
    while wanted > 0 and np.count_nonzero(lesions) < wanted:
        centre, radius = centres[rng.integers(len(centres))], rng.uniform(*radii) / SPACING
        low = np.maximum(centre - int(radius) - 1, 0)
        box = tuple(slice(a, b) for a, b in zip(low, centre + int(radius) + 2, strict=True))
        places = np.indices(lesions[box].shape).T + low - centre
        lesions[box] |= ((places**2).sum(axis=-1) <= radius**2).T & allowed[box]
    return lesions


def draw_percentage(subtype: Subtype, rng: np.random.Generator) -> float:
    """A grade, each as likely, and a percentage evenly within it; 0 for the lowest grade."""
    grade = subtype.grades[rng.integers(len(subtype.grades))]
    return 0.0 if grade.score == 0 else float(rng.uniform(grade.lower, min(grade.upper, LARGEST_PERCENTAGES[subtype.name])))


def make_case(lungs: Bools, depth: Floats, rng: np.random.Generator) -> tuple[Scan, tuple[Bools, Bools]]:
    """A scan, and where its centrilobular and paraseptal emphysema is."""
    voxels = np.count_nonzero(lungs)
    amounts = [round(draw_percentage(subtype, rng) / 100 * voxels) for subtype in SUBTYPES]
    pleura = np.argwhere(lungs & (depth <= 1.5 * SPACING))
    deep = lungs & (depth > CENTRILOBULAR_DEPTH)
    paraseptal = place_balls(pleura, PARASEPTAL_RADIUS, lungs, amounts[1], rng)
    centrilobular = place_balls(np.argwhere(deep), CENTRILOBULAR_RADIUS, deep & ~paraseptal, amounts[0], rng)
    hounsfield = rng.uniform(*DENSITY) + 12 * smooth_noise(lungs.shape, 15, rng)
    # Vessels run where two smooth fields are 0.
    fields = [np.abs(smooth_noise(lungs.shape, 9, rng)) for _ in range(2)]
    hounsfield[(fields[0] < 0.06) & (fields[1] < 0.06)] = VESSEL_HU
    for lesions in (centrilobular, paraseptal):
        hounsfield[lesions] = rng.uniform(*LESION_DENSITY)
    hounsfield[~lungs] = SOFT_TISSUE_HU
    hounsfield = ndimage.gaussian_filter(hounsfield, rng.uniform(*BLUR) / SPACING)
    hounsfield += rng.uniform(*NOISE) * smooth_noise(lungs.shape, 0.8, rng)
    arrays = (hounsfield.round().clip(-1024, 3071).astype(np.int16), lungs.astype(np.uint8))
    images = [sitk.GetImageFromArray(array) for array in arrays]
    for image in images:
        image.SetSpacing([SPACING] * 3)
    return Scan.from_images(images[0], images[1]), (centrilobular, paraseptal)


def measure(subtyper: EmphysemaSubtyper, scan: Scan, truth: tuple[Bools, Bools]) -> list[Measured]:
    """Percentages of one scan: the truth's, the network's, and those of LAA-950 behind the rim and in it."""
    voxels = np.count_nonzero(scan.lung)
    rows = []
    for finding, lesions, rule in zip(subtyper.predict(scan).findings, truth, rim_paraseptal(scan), strict=True):
        shares = [100 * float(np.count_nonzero(part)) / float(voxels) for part in (lesions, rule)]
        rows.append(Measured(finding.subtype.name, shares[0], percentage_of(finding), shares[1]))
    return rows


def table(rows: list[Measured]) -> str:
    """Markdown: one row a subtype and rule."""
    lines = ["| subtype | by | mean absolute error | bias | rank correlation |", "| --- | --- | --- | --- | --- |"]
    for subtype in SUBTYPES:
        of = [row for row in rows if row.subtype == subtype.name]
        truth = np.array([row.truth for row in of])
        for name, key in (("network", "network"), ("LAA-950", "densitometry")):
            found = np.array([getattr(row, key) for row in of])
            error, rank = found - truth, spearmanr(truth, found).statistic
            lines.append(f"| {subtype.name} | {name} | {np.abs(error).mean():.1f} | {error.mean():+.1f} | {rank:.2f} |")
    return "\n".join(lines)


def run(options: argparse.Namespace) -> None:
    """Make, score and compare the scans; print the table, then write the file.

    Raises:
        InputError: a bundle, mask or file that cannot be used.
    """
    try_file(options.csv)
    lungs = read_lungs(options.lungs)
    depth = depth_of(lungs, options.lungs)
    subtyper = EmphysemaSubtyper.from_bundle(locate_bundle(options.weights))
    rows: list[Measured] = []
    for number in tqdm(range(options.cases), disable=None):
        scan, truth = make_case(lungs, depth, np.random.default_rng([options.seed, number]))
        rows += measure(subtyper, scan, truth)
    print(f"weights: {subtyper.metadata.name}; {options.cases} scans")
    print(table(rows))
    if options.csv:
        write_csv(options.csv, [column.name for column in fields(Measured)], map(astuple, rows))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = script_parser(__file__, __doc__)
    parser.add_argument("--lungs", type=Path, required=True, help="lung mask of a real patient")
    add_scans(parser, 0, "scan and subtype")
    options = parser.parse_args(arguments)
    return exit_code(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
