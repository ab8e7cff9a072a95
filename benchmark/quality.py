"""Whether warnings of image quality tell the scans whose percentages are wrong: simulated scans, as they are and shifted.

Usage: python benchmark/quality.py COHORT [--weights BUNDLE] [--validation 8] [--real FOLDER ...]

The first cases of a simulated cohort give the validated range, unless the bundle has one. The others are scored as they are and
in five shifts: sharpened, noisier, both, smoothed, and in slices of 8 mm. A scan is wrong where the percentage of either
subtype is more than 3 points from the truth. Of real scans, in folders as `process.py` takes them, the measures are printed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmark.command import script_parser
from model import SHIPPED_WEIGHTS
from model.cohort.layout import TRUTH_FOLDER, ct_path, lung_mask_path, truth_paths
from model.command_line import exit_code, whole_number
from model.container.grand_challenge import find_cases
from model.container.results import Quality
from model.errors import InputError
from model.imaging.scan import Scan
from model.lungs.quality import ImageQuality, Range, quality_warnings
from model.subtyping import EmphysemaSubtyper
from model.training.validated_range import validated_range
from model.weights import locate_bundle

WRONG_POINTS = 3.0
NOISE_HU, SHARPENING, SLICES_MM = 60.0, 2.5, 8.0


def in_plane(hounsfield: np.ndarray, sigma: float) -> np.ndarray:
    """Each axial slice blurred; sigma in voxels."""
    return np.asarray(ndimage.gaussian_filter(hounsfield.astype(np.float32), (0, sigma, sigma)))


def rounded(scan: Scan, hounsfield: np.ndarray) -> Scan:
    """The scan with other voxels, in whole HU from -1024 on, as a scanner stores them."""
    return replace(scan, hounsfield=np.clip(np.rint(hounsfield), -1024, 3071).astype(np.int16))


def sharpened(scan: Scan) -> Scan:
    """Unsharp masking in axial slices."""
    return rounded(scan, scan.hounsfield + SHARPENING * (scan.hounsfield - in_plane(scan.hounsfield, 0.8)))


def noisier(scan: Scan, noise_hu: float = NOISE_HU) -> Scan:
    """With noise that has the grain of a smooth kernel."""
    noise = in_plane(np.random.default_rng(0).standard_normal(scan.shape, np.float32), 0.7)
    return rounded(scan, scan.hounsfield + noise_hu * noise / noise.std())


def smoothed(scan: Scan) -> Scan:
    """Blurred in axial slices by two voxels."""
    return rounded(scan, in_plane(scan.hounsfield, 2.0))


def thicker(scan: Scan) -> Scan:
    """In slices of 8 mm that touch."""
    count = max(round(SLICES_MM / scan.spacing[0]), 1)
    mean = ndimage.uniform_filter1d(scan.hounsfield.astype(np.float32), count, axis=0)[count // 2 :: count]
    coarse = replace(scan, lung=scan.lung[count // 2 :: count], spacing=(count * scan.spacing[0], *scan.spacing[1:]))
    return rounded(coarse, mean)


SHIFTS: dict[str, Callable[[Scan], Scan]] = {
    "as simulated": lambda scan: scan,
    "sharpened": sharpened,
    "noise of 60 HU added": noisier,
    "sharpened, after noise of 20 HU": lambda scan: sharpened(noisier(scan, 20.0)),
    "smoothed": smoothed,
    "slices of 8 mm": thicker,
}


def read(case: Path) -> tuple[Scan, tuple[float, ...]]:
    """A simulated scan, and each subtype's percentage of the lung, by its truth."""
    scan = Scan.read(ct_path(case, case.name), lung_mask_path(case, case.name))
    truth = [sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for path in truth_paths(case.parent, case.name)]
    lung = scan.orientation.to_file(scan.lung)
    return scan, tuple(100 * float((part[lung] > 0).mean()) for part in truth)


def shown(quality: ImageQuality) -> str:
    return Quality.of(quality).text


def run(options: argparse.Namespace) -> None:
    """Print the range, a line for each real scan and each shifted one, and the table.

    Raises:
        InputError: a bundle, cohort or scan that cannot be used, or nothing is left to measure.
    """
    cases = sorted(path.parent for path in options.cohort.glob(f"*/{TRUTH_FOLDER}"))
    scored = cases[options.validation :][: options.cases]
    if not scored:
        found = f"{len(cases)} scans with truth, of which the first {options.validation} are for the range"
        raise InputError(options.cohort, found, "more of `python -m model.simulation`")
    subtyper = EmphysemaSubtyper.from_bundle(locate_bundle(options.weights))
    if subtyper.metadata.network.head == "classification":
        raise InputError("--weights", "a classification network", "a regression network: percentages are compared")
    known: dict[str, Range] | None = subtyper.metadata.validated_range
    if not known:
        if not options.validation:
            raise InputError("--validation", "0, and the bundle has no validated range", "at least 1")
        known = validated_range([Quality.of(ImageQuality.of(read(case)[0])) for case in cases[: options.validation]])
    print(f"range: {known}", flush=True)
    for folder in options.real:
        for case in find_cases(folder):
            scan = Scan.read(*case.files)
            quality = ImageQuality.of(scan)
            print(f"{folder.name}: {shown(quality)}; {len(quality_warnings(quality, known))} warnings", flush=True)
    counts = {name: np.zeros((2, 2), int) for name in SHIFTS}
    for place in scored:
        scan, truth = read(place)
        for name, shift in SHIFTS.items():
            result = subtyper.predict(shift(scan))
            errors = [abs((found.percentage or 0) - true) for found, true in zip(result.findings, truth, strict=True)]
            warned = bool(quality_warnings(result.quality, known))
            counts[name][int(max(errors) > WRONG_POINTS), int(warned)] += 1
            off = ", ".join(f"{error:.1f}" for error in errors)
            print(f"{place.name} {name}: {shown(result.quality)}; off by {off}; warned: {warned}", flush=True)
    print("| | scans | wrong | of these warned of | right | of these warned of |\n| --- | --- | --- | --- | --- | --- |")
    for name, table in [*counts.items(), ("all", sum(counts.values()))]:
        right, wrong = np.asarray(table)
        print(f"| {name} | {right.sum() + wrong.sum()} | {wrong.sum()} | {wrong[1]} | {right.sum()} | {right[1]} |")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = script_parser(__file__, __doc__)
    parser.add_argument("cohort", type=Path)
    parser.add_argument("--weights", type=Path, default=SHIPPED_WEIGHTS)
    parser.add_argument("--validation", type=whole_number(0), default=8)
    parser.add_argument("--cases", type=whole_number(1), help="at most so many after those of the validation")
    parser.add_argument("--real", type=Path, nargs="*", default=[])
    options = parser.parse_args(arguments)
    return exit_code(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
