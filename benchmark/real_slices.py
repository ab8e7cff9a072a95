"""Measure a weight bundle on real CT slices of known class, each repeated until it is a volume.

Usage: python benchmark/real_slices.py --data DIR [--weights BUNDLE] [--patients LIST] [--csv FILE] [--sheet FOLDER]

DIR has a folder a class (CLE, PLE, PSE, NT) of pictures, and `patients.csv`. Grey is calibrated to HU (air around the
patient -1000 HU, soft tissue 45 HU), the lungs are found, and the picture becomes 40 equal slices, 2.5 mm apart. Printed are
areas under the ROC curve with 95 % intervals from 2000 bootstrap samples of patients: CLE % (CLE against normal), PSE % (PSE
against normal), the share of PSE in both (PSE against CLE), CLE % once more (PLE against normal), and the same tasks by LAA-950
and by LAA-950 within 8 mm of the pleura. Samples in which all patients are of one class are left out. With fewer than five
patients of a class there is no interval.

The contact sheet is for the eye alone: it shows the pictures, whose terms may forbid to pass them on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from scipy import ndimage
from sklearn.metrics import roc_auc_score

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmark.command import percentage_of, script_parser, try_file, write_csv
from model import SHIPPED_WEIGHTS
from model.command_line import exit_code, whole_number
from model.errors import InputError, printable
from model.evaluation.baselines import RIM_MM
from model.fleischner import SUBTYPES
from model.imaging.scan import Scan
from model.lungs.densitometry import LOW_ATTENUATION_HU
from model.rendering import COLOURS, grey_levels, overlay
from model.slices import CLASSES
from model.subtyping import EmphysemaSubtyper
from model.training.slices_cohort import LabelledSlice, listed_slices, make_volume, patients_in
from model.weights import locate_bundle
from model.whole_files import try_folder, whole_file

RESAMPLES = 2000
SEED = 0
FEWEST_PATIENTS = 5
"""Of either class of a task, for an interval: samples of fewer are too much alike."""


@dataclass(frozen=True)
class Measured:
    """One slice: its class and patient, and what was measured of it in percent of the lung."""

    name: str
    label: str
    patient: str
    centrilobular: float
    paraseptal: float
    laa950: float
    laa950_rim: float

    @property
    def paraseptal_share(self) -> float:
        """PSE % / (CLE % + PSE %), 0 to 1; 0.5 where both are 0."""
        return (self.paraseptal + 1e-4) / (self.centrilobular + self.paraseptal + 2e-4)

    @property
    def rim_share(self) -> float:
        """The same of LAA-950 in the rim and in all of the lung."""
        return (self.laa950_rim + 1e-4) / (self.laa950 + 2e-4)


TASKS = (
    ("CLE against normal", "CLE", "NT", "centrilobular", "laa950"),
    ("PSE against normal", "PSE", "NT", "paraseptal", "laa950_rim"),
    ("PSE against CLE", "PSE", "CLE", "paraseptal_share", "rim_share"),
    ("PLE against normal, by CLE %", "PLE", "NT", "centrilobular", "laa950"),
)
"""Name, positive and negative class, the network's figure, and what densitometry has for it."""


def measure(subtyper: EmphysemaSubtyper, scan: Scan, entry: LabelledSlice) -> tuple[Measured, Image.Image]:
    """Score one slice; also its picture with both maps beside the CT."""
    result = subtyper.predict(scan)
    level = scan.shape[0] // 2
    low = scan.lung[level] & (scan.hounsfield[level] < LOW_ATTENUATION_HU)
    rim = low & (plane_depth(scan, level) <= RIM_MM)
    lung = np.count_nonzero(scan.lung[level])
    percentages = [percentage_of(finding) for finding in result.findings]
    densitometry = [100 * int(np.count_nonzero(part)) / int(lung) for part in (low, rim)]
    measured = Measured(f"{entry.label}/{entry.path.name}", entry.label, entry.patient, *percentages, *densitometry)
    return measured, picture(scan, level, [finding.activation_map[level] for finding in result.findings], measured)


def plane_depth(scan: Scan, level: int) -> npt.NDArray[np.float64]:
    """Distance to the lung's edge within one slice, in mm: the volume goes on above and below."""
    return np.asarray(ndimage.distance_transform_edt(scan.lung[level], sampling=scan.spacing[1:]))


def picture(scan: Scan, level: int, maps: list[np.ndarray], measured: Measured) -> Image.Image:
    """CT beside CT with both maps, cropped to the lungs, with a caption."""
    _, rows, columns = scan.lung_box(5.0)
    grey = np.repeat(grey_levels(scan.hounsfield[level, rows, columns])[..., None], 3, axis=2)
    painted = grey
    for subtype, activation in zip(SUBTYPES, maps, strict=True):
        painted = overlay(painted, activation[rows, columns], COLOURS[subtype.name])
    size = (300, max(round(300 * grey.shape[0] / grey.shape[1]), 1))
    tile = Image.new("RGB", (604, size[1] + 16))
    for left, pixels in ((0, grey), (302, painted)):
        tile.paste(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR), (left, 16))
    caption = f"{measured.name}  CLE {measured.centrilobular:.1f}  PSE {measured.paraseptal:.1f}  LAA {measured.laa950:.1f}"
    ImageDraw.Draw(tile).text((2, 2), caption, "white")
    return tile


def auc_with_interval(rows: list[Measured], task: tuple[str, str, str, str, str], key: str) -> str:
    """AUC of one task, and its 95 % interval by drawing patients anew, if there are enough of them."""
    _, positive, negative, _, _ = task
    chosen = [row for row in rows if row.label in (positive, negative)]
    truth = np.array([row.label == positive for row in chosen])
    values = np.array([getattr(row, key) for row in chosen])
    patients = np.array([row.patient for row in chosen])
    area = float(roc_auc_score(truth, values))
    fewest = min(len(np.unique(patients[truth == side])) for side in (True, False))
    if fewest < FEWEST_PATIENTS:
        return f"{area:.3f} (no interval: {fewest} patient{'s' if fewest > 1 else ''} of a class)"
    groups = [np.flatnonzero(patients == patient) for patient in np.unique(patients)]
    generator = np.random.default_rng(SEED)
    drawn = []
    for _ in range(RESAMPLES):
        index = np.concatenate([groups[place] for place in generator.integers(len(groups), size=len(groups))])
        if truth[index].any() and not truth[index].all():
            drawn.append(roc_auc_score(truth[index], values[index]))
    low, high = np.percentile(drawn, [2.5, 97.5])
    if f"{low:.3f}" == f"{high:.3f}":
        return f"{area:.3f} (no interval: every sample has the same)"
    return f"{area:.3f} ({low:.3f} to {high:.3f})"


def table(rows: list[Measured]) -> Iterator[str]:
    """The report, line by line, as Markdown."""
    counts = ", ".join(f"{sum(row.label == label for row in rows)} {label}" for label in CLASSES)
    yield f"{len(rows)} slices of {len({row.patient for row in rows})} patients: {counts}"
    yield ""
    yield "| AUC (95 %) | network | LAA-950 |\n| --- | --- | --- |"
    known = {row.label for row in rows}
    for task in TASKS:
        if not known.issuperset(task[1:3]):
            continue
        cells = [auc_with_interval(rows, task, key) for key in task[3:]]
        yield f"| {task[0]} | {cells[0]} | {cells[1]} |"
    yield ""
    yield "| median (quartiles), % of the lung | CLE | PSE | LAA-950 |\n| --- | --- | --- | --- |"
    for label in [label for label in CLASSES if label in known]:
        of_class = [row for row in rows if row.label == label]
        quartiles = [
            np.percentile([getattr(row, key) for row in of_class], [50, 25, 75])
            for key in ("centrilobular", "paraseptal", "laa950")
        ]
        yield f"| {label} | " + " | ".join("{:.1f} ({:.1f} to {:.1f})".format(*values) for values in quartiles) + " |"


def write_sheet(pictures: Sequence[Image.Image], path: Path, columns: int = 3) -> None:
    """One PNG of pairs of pictures, so many in a row."""
    height = max(tile.height for tile in pictures)
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * 610, rows * (height + 4)))
    for place, tile in enumerate(pictures):
        sheet.paste(tile, (place % columns * 610, place // columns * (height + 4)))
    with whole_file(path) as partial:
        sheet.save(partial, format="PNG")


def chosen_slices(data: Path, patients: Path | None) -> list[LabelledSlice]:
    """The slices to measure; says which of the patients that a text file lists have none.

    Raises:
        InputError: the list of slices or of patients cannot be read, or no patient has a slice.
    """
    slices = listed_slices(data, CLASSES)
    if patients is None:
        return slices
    wanted = patients_in(patients)
    absent = sorted(wanted - {entry.patient for entry in slices})
    if len(absent) == len(wanted):
        raise InputError(patients, f"none of its {len(wanted)} patients has a slice in {data}", "patients of that folder")
    if absent:
        text = f"{patients}: {len(absent)} of {len(wanted)} patients have no slice: {', '.join(absent)}"
        print(printable(text), file=sys.stderr)
    return [entry for entry in slices if entry.patient in wanted]


def run(options: argparse.Namespace) -> None:
    """Score the slices; print the report, then write the files.

    Raises:
        InputError: a bundle, folder, list or file that cannot be used, or no slice can.
    """
    try_file(options.csv)
    if options.sheet:
        try_folder(options.sheet)
    slices = chosen_slices(options.data, options.patients)
    subtyper = EmphysemaSubtyper.from_bundle(locate_bundle(options.weights))
    rows: list[Measured] = []
    tiles: dict[str, list[Image.Image]] = {label: [] for label in CLASSES}
    for entry in slices:
        try:
            scan = Scan.from_images(*make_volume(entry.path))
        except InputError as error:
            print(error, file=sys.stderr)
            continue
        measured, tile = measure(subtyper, scan, entry)
        rows.append(measured)
        if options.sheet and len(tiles[entry.label]) < options.sheet_slices:
            tiles[entry.label].append(tile)
    if not rows:
        raise InputError(options.data, f"all {len(slices)} slices were refused", "CT slices with lungs")
    print(f"weights: {subtyper.metadata.name}; {len(slices) - len(rows)} slices refused")
    print("\n".join(table(rows)))
    if options.csv:
        header = ["file", "class", "patient", "centrilobular", "paraseptal", "laa950", "laa950_rim"]
        write_csv(options.csv, header, map(astuple, rows))
    if options.sheet:
        for label, pictures in tiles.items():
            if pictures:
                write_sheet(pictures, options.sheet / f"{label}.png")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = script_parser(__file__, __doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of classes, with patients.csv")
    parser.add_argument("--weights", type=Path, default=SHIPPED_WEIGHTS)
    parser.add_argument("--patients", type=Path, help="text file: only these patients, one a line")
    parser.add_argument("--csv", type=Path, help="write one row a slice")
    parser.add_argument("--sheet", type=Path, help="folder for contact sheets; never publish them")
    parser.add_argument("--sheet-slices", type=whole_number(1), default=24, help="a class, on a sheet, default: %(default)s")
    options = parser.parse_args(arguments)
    return exit_code(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
