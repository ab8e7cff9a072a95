#!/usr/bin/env python3
"""Measure a weight bundle on labelled patches of real CT from COPDGene, sewn into lungs.

Usage: python benchmark/real_patches.py --patches patches.npz --lungs MASK [--weights BUNDLE] [--half second] [--picture FOLDER]

The patches are those of `benchmark/realism.py`: 31 x 31 pixels of HU from COPDGene, graded by a reader. A patch is too small to
be scored, so patches are sewn into the lungs of one slice, as `model.training.patches_cohort` does: lungs filled with one
class, and normal lungs with paraseptal patches along the pleura, and with normal patches there as a control. The slice is taken
40 times, 2.5 mm apart. Each of six volumes of a class is made of neighbours in the file, which may be of one patient.

Printed for each class: median and range of CLE %, PSE % and LAA-950; and how CLE % and LAA-950 rank the grades. Which half of
the patches a bundle was trained on is said in `weights/README.md`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.stats import spearmanr
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmark.command import script_parser
from benchmark.real_slices import Measured, measure, write_sheet
from model import SHIPPED_WEIGHTS
from model.command_line import exit_code
from model.errors import InputError
from model.imaging.scan import Scan
from model.subtyping import EmphysemaSubtyper
from model.training.patches_cohort import (
    FILLINGS,
    SPACING_MM,
    Chest,
    Kit,
    LungMask,
    Sewn,
    outline,
    read_class_patches,
    sew,
)
from model.training.slices_cohort import LabelledSlice, repeated
from model.weights import locate_bundle
from model.whole_files import try_folder

RIMS = ("normal", "paraseptal")
"""Classes that are laid along the pleura of lungs filled with normal patches."""
GRADES = FILLINGS[:4]
BLOCKS = 6


def volumes(patches: Mapping[str, npt.NDArray[np.int16]], chest: Chest) -> Iterator[tuple[str, int, Sewn]]:
    """Class, block and slice of each volume; a block of one class without patches for it has none."""
    blocks = {name: [Kit.of(block) for block in np.array_split(values, BLOCKS)] for name, values in patches.items()}
    for number in range(BLOCKS):
        rng = np.random.default_rng(number)
        for name in FILLINGS:
            if blocks[name][number].inner:
                yield name, number, sew(chest, blocks[name][number], None, rng)
        for name in RIMS:
            if blocks[name][number].pleural:
                yield f"{name}, laid along the pleura", number, sew(chest, blocks["normal"][number], blocks[name][number], rng)


def table(rows: Sequence[Measured]) -> Iterator[str]:
    """The report, line by line, as Markdown."""
    yield "| median (range), % of the lung | volumes | CLE | PSE | LAA-950 |\n| --- | --- | --- | --- | --- |"
    for label in dict.fromkeys(row.label for row in rows):
        of_class = [row for row in rows if row.label == label]
        values = np.array([(row.centrilobular, row.paraseptal, row.laa950) for row in of_class])
        cells = [f"{np.median(column):.1f} ({column.min():.1f} to {column.max():.1f})" for column in values.T]
        yield f"| {label.replace('_', ' ')} | {len(of_class)} | " + " | ".join(cells) + " |"
    graded = [row for row in rows if row.label in GRADES]
    grades = [GRADES.index(row.label) for row in graded]
    cle, laa = (
        spearmanr(grades, values).statistic for values in zip(*[(r.centrilobular, r.laa950) for r in graded], strict=True)
    )
    yield f"\nrank correlation with the grade, normal to severe: CLE {cle:.2f}, LAA-950 {laa:.2f}"


def run(options: argparse.Namespace) -> None:
    """Sew and score the volumes; print the report, then write the picture.

    Raises:
        InputError: a bundle, mask or file that cannot be used, or patches that fill no volume.
    """
    if options.picture:
        try_folder(options.picture)
    patches = read_class_patches(options.patches, options.half)
    chest = outline(LungMask.read(options.lungs))
    subtyper = EmphysemaSubtyper.from_bundle(locate_bundle(options.weights))
    rows, tiles = [], []
    for name, number, slice_ in tqdm(volumes(patches, chest), unit="volume", disable=None):
        entry = LabelledSlice(Path(str(number)), name, str(number))
        volume = repeated(slice_.hounsfield, slice_.lungs, SPACING_MM)
        measured, tile = measure(subtyper, Scan.from_images(*volume), entry)
        rows.append(measured)
        tiles += [tile] if number == 0 else []
    if not rows:
        raise InputError(options.patches, "no class has patches that fill a lung", "patches of lung")
    print(f"weights: {subtyper.metadata.name}; {options.half} half of the patches")
    print("\n".join(table(rows)))
    if options.picture and tiles:
        write_sheet(tiles, options.picture / "patches.png", columns=2)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = script_parser(__file__, __doc__)
    parser.add_argument("--patches", type=Path, required=True, help="patches.npz, N x 31 x 31 HU for each class")
    parser.add_argument("--lungs", type=Path, required=True, help="a lung mask, for its outline")
    parser.add_argument("--weights", type=Path, default=SHIPPED_WEIGHTS)
    parser.add_argument("--half", choices=("first", "second"), default="second", help="of each class; default: %(default)s")
    parser.add_argument("--picture", type=Path, help="folder for a picture of the first volume of each class, with its maps")
    options = parser.parse_args(arguments)
    return exit_code(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
