"""A comparison rule that is fitted: smoothed threshold, core and rim, and a line for each subtype.

    python -m model.evaluation.calibrated_rule MANIFEST --output rule.json

LAA-950 at its threshold is a weak rival where noise and kernel move the share of dark voxels. This rule smooths the CT, takes
what lies below a threshold, calls it paraseptal within some mm of the pleura and centrilobular elsewhere, and corrects both
percentages by a line. Threshold, smoothing and depth are searched, and the lines fitted, on scans of known percentages (a
simulated cohort, for validation only). `python -m model.evaluation.baselines --calibrated rule.json` scores cases with it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from ..cohort.manifest import Manifest, TrainingCase, read_manifest
from ..command_line import OneLineParser, exit_code, module_command
from ..errors import InputError
from ..fleischner import SUBTYPES
from ..imaging.scan import Scan
from ..lungs import anatomy
from ..whole_files import whole_file

SMOOTHING_MM = (0.0, 0.75, 1.5, 2.5)
THRESHOLDS_HU = (-970.0, -960.0, -950.0, -940.0, -930.0, -920.0, -910.0)
RIMS_MM = (3.0, 5.0, 8.0, 12.0)
"""What is searched."""

_FILLED_HU = -860.0
"""What voxels outside the lung count as while smoothing, so that the chest wall does not bleed into the rim."""

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Line:
    """Reported percentage = slope x measured percentage + offset, cut to 0..100."""

    slope: float
    offset: float

    def __call__(self, percentage: float) -> float:
        return float(np.clip(self.slope * percentage + self.offset, 0, 100))


@dataclass(frozen=True)
class CalibratedRule:
    """The rule's numbers.

    Attributes:
        smoothing_mm: standard deviation of the Gaussian, in mm; 0: none.
        threshold_hu: smoothed voxels below this are emphysema.
        rim_mm: depth under the lung's surface to which they are paraseptal.
        centrilobular, paraseptal: the lines.
        fitted_on: what the numbers were chosen on.
    """

    smoothing_mm: float
    threshold_hu: float
    rim_mm: float
    centrilobular: Line
    paraseptal: Line
    fitted_on: str

    def maps(self, scan: Scan) -> tuple[Mask, Mask]:
        """Voxels called centrilobular and paraseptal; z, y, x of the scan."""
        low, rim = _smoothed(scan, self.smoothing_mm) < self.threshold_hu, pleural_depth(scan) <= self.rim_mm
        return scan.lung & low & ~rim, scan.lung & low & rim

    def write(self, path: Path) -> None:
        """Write the rule as JSON."""
        with whole_file(path) as partial:
            partial.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> CalibratedRule:
        """Read a rule.

        Raises:
            InputError: the file is none.
        """
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            lines = {name: Line(**document.pop(name)) for name in ("centrilobular", "paraseptal")}
            return cls(**document, centrilobular=lines["centrilobular"], paraseptal=lines["paraseptal"])
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            expected = "a file of python -m model.evaluation.calibrated_rule"
            raise InputError(path, f"no calibrated rule ({error})", expected) from error


def pleural_depth(scan: Scan) -> npt.NDArray[np.float32]:
    """Distance of each voxel of the lung from the nearest voxel outside of it, in mm; z, y, x, 0 outside.

    What lies beyond the image counts as outside.
    """
    box = scan.lung_box()
    distances = np.zeros(scan.shape, np.float32)
    distances[box] = anatomy.depth(scan.lung[box], scan.spacing)
    return distances


def _smoothed(scan: Scan, smoothing_mm: float) -> npt.NDArray[np.float32]:
    """HU inside the lung, smoothed by a Gaussian that sees the lung alone (normalised convolution); z, y, x."""
    result = np.zeros(scan.shape, np.float32)
    box = scan.lung_box()
    values, lung = scan.hounsfield[box].astype(np.float32), scan.lung[box]
    if smoothing_mm > 0:
        sigma = [smoothing_mm / distance for distance in scan.spacing]
        weight = ndimage.gaussian_filter(lung.astype(np.float32), sigma, truncate=3)
        values = ndimage.gaussian_filter(np.where(lung, values - _FILLED_HU, 0), sigma, truncate=3)
        values = values / np.maximum(weight, 1e-3) + _FILLED_HU
    result[box] = values
    return result


def shares(scan: Scan) -> dict[tuple[float, float, float], tuple[float, float]]:
    """Percent of the lung in core and rim for every smoothing, threshold and depth that is searched."""
    inside = pleural_depth(scan)[scan.lung]
    found = {}
    for smoothing in SMOOTHING_MM:
        values = _smoothed(scan, smoothing)[scan.lung]
        for threshold, rim_mm in product(THRESHOLDS_HU, RIMS_MM):
            low, rim = values < threshold, inside <= rim_mm
            found[smoothing, threshold, rim_mm] = (100 * float((low & ~rim).mean()), 100 * float((low & rim).mean()))
    return found


def fit(cases: Sequence[TrainingCase], fitted_on: str) -> CalibratedRule:
    """Search the numbers whose lines have the least mean absolute error, summed over both subtypes.

    Raises:
        InputError: a case has no known percentages, or cannot be read.
    """
    truth, measured = [], []
    for case in cases:
        if case.percentages is None:
            raise InputError(case.entity, "its percentages are not known", "a cohort with both percentages")
        truth.append(case.percentages)
        measured.append(shares(Scan.read(case.ct, case.lung_mask)))
    best: tuple[float, CalibratedRule] | None = None
    wanted = np.array(truth)
    for numbers in measured[0]:
        columns = np.array([row[numbers] for row in measured])
        lines = [_line(columns[:, place], wanted[:, place]) for place in range(len(SUBTYPES))]
        predicted = np.array([[line(value) for line, value in zip(lines, row, strict=True)] for row in columns])
        error = float(np.abs(predicted - wanted).mean())
        if best is None or error < best[0]:
            best = error, CalibratedRule(*numbers, lines[0], lines[1], fitted_on)
    assert best is not None
    return best[1]


def fit_on_validation(manifest: Manifest) -> CalibratedRule:
    """Fit on the validation cases of a manifest.

    Raises:
        InputError: there are none, or as `fit`.
    """
    cases = manifest.of("validation")
    if not cases:
        raise InputError(manifest.path, "it has no validation cases", "some to fit the rule on")
    return fit(cases, f"{len(cases)} validation cases of {manifest.path.name}, sha256 {manifest.sha256}")


def _line(measured: npt.NDArray[np.float64], wanted: npt.NDArray[np.float64]) -> Line:
    """The least squares line; flat where the measured values do not vary."""
    if np.ptp(measured) == 0:
        return Line(0.0, float(wanted.mean()))
    slope, offset = np.polyfit(measured, wanted, 1)
    return Line(float(slope), float(offset))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = OneLineParser(prog=module_command("evaluation.calibrated_rule"), description="Fit the calibrated rule.")
    parser.add_argument("manifest", type=Path, help="manifest of scans with known percentages (its validation cases count)")
    parser.add_argument("--output", type=Path, required=True, help="the rule, a JSON file")
    options = parser.parse_args(arguments)
    return exit_code(lambda: _run(options.manifest, options.output), options.output)


def _run(manifest: Path, output: Path) -> None:
    rule = fit_on_validation(read_manifest(manifest))
    rule.write(output)
    print(f"{output}: smoothed by {rule.smoothing_mm:g} mm, below {rule.threshold_hu:g} HU, rim of {rule.rim_mm:g} mm")


if __name__ == "__main__":
    sys.exit(main())
