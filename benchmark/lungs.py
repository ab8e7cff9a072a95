"""Compare the lungs that are found in CTs without a mask with the masks that they have.

Usage: python benchmark/lungs.py CASE...

CASE is a folder as process.py --input takes it, with masks on the CTs' grids. Those of `python -m model.simulation` hold one
case and its truth of paraseptal emphysema: then its share of the lung is printed, and how much of it is inside of what was
found.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmark.command import script_parser
from model.cohort.layout import truth_path
from model.command_line import exit_code
from model.container.grand_challenge import find_cases
from model.errors import InputError
from model.fleischner import PARASEPTAL
from model.imaging.readers import read_volume
from model.lungs.segmentation import segment_lungs

COLUMNS = ("CT", "Dice", "missed, ml", "extra, ml", "paraseptal, % of the lung", "inside, %", "seconds")


def mask_of(path: Path) -> npt.NDArray[np.bool_]:
    """Where a mask is above 0; z, y, x in the file's order."""
    return np.asarray(sitk.GetArrayFromImage(read_volume(path).image) > 0)


def compare(ct: Path, mask: Path, truth: Path) -> tuple[str, ...]:
    """One row of the table."""
    volume = read_volume(ct)
    start = time.perf_counter()
    lungs = segment_lungs(volume).image
    seconds = time.perf_counter() - start
    found, given = sitk.GetArrayFromImage(lungs) > 0, mask_of(mask)
    if found.shape != given.shape:
        raise InputError(mask, f"its size is {given.shape} (z, y, x)", f"that of the CT, {found.shape}")
    voxel_ml = volume.geometry.voxel_ml
    both, missed, extra = (np.count_nonzero(part) for part in (found & given, given & ~found, found & ~given))
    cells = [ct.stem, f"{2 * both / (2 * both + missed + extra):.4f}", f"{missed * voxel_ml:.0f}", f"{extra * voxel_ml:.0f}"]
    if truth.is_file():
        emphysema = mask_of(truth)
        extent = np.count_nonzero(emphysema) / int(np.count_nonzero(given))
        inside = np.count_nonzero(emphysema & found) / max(int(np.count_nonzero(emphysema)), 1)
        cells += [f"{100 * extent:.1f}", f"{100 * inside:.2f}"]
    else:
        cells += ["", ""]
    return (*cells, f"{seconds:.1f}")


def run(folders: Sequence[Path]) -> None:
    """Print one row a case.

    Raises:
        InputError: a folder has no case, or several and one truth; or a file cannot be read.
    """
    cases = []
    for folder in folders:
        found, truth = find_cases(folder), truth_path(folder, PARASEPTAL.name)
        if len(found) > 1 and truth.is_file():
            raise InputError(folder, f"{len(found)} cases beside one {truth.name}", "one case in a folder with truth")
        cases += [(*case.files, truth) for case in found]
    for number, files in enumerate(cases):
        row = compare(*files)
        if number == 0:
            print(f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}")
        print(f"| {' | '.join(row)} |", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = script_parser(__file__, __doc__)
    parser.add_argument("cases", type=Path, nargs="+", metavar="CASE")
    options = parser.parse_args(arguments)
    return exit_code(lambda: run(options.cases))


if __name__ == "__main__":
    sys.exit(main())
