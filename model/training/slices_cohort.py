"""The command `python -m model.training.slices_cohort`: volumes to train on, of single CT slices with a class.

    python -m model.training.slices_cohort DIR OUTPUT [--share 0.5] [--seed 0] [--train-patients FILE] [--workers 1]

DIR holds pictures in the folders NT, CLE, PSE and PLE, and `patients.csv`. Each picture becomes a CT of the same slice many
times, in HU by the air around the patient and the soft tissue in it, a lung mask, and a row of OUTPUT/manifest.csv. A class
says which type of emphysema leads in a slice, and nothing of its extent. So it becomes bounds of the percentages:

- NT: at most 1 % of either subtype;
- CLE: at least 1 % centrilobular, which is predominant; paraseptal unknown;
- PSE: at least 1 % paraseptal, which is predominant; centrilobular unknown;
  (`--absent` and `--present` set these two bounds: a margin between them separates the classes better.)
- PLE: nothing. The Fleischner system grades panlobular destruction in smokers as the top of the centrilobular scale, but a
  reader who says "panlobular" may mean neither; the simulator's cohorts count it as neither. Left out, unless
  `--panlobular-is-centrilobular` makes it at least 5 % centrilobular, without a predominant subtype. `train.py
  --simulate-panlobular` counts it as centrilobular, too.
"""

from __future__ import annotations

import argparse
import csv
import random
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from tqdm import tqdm

from ..cohort.manifest import (
    BOUND_COLUMNS,
    LEADING_COLUMN,
    MANIFEST_FILE,
    PATIENT_COLUMN,
    UNIFORM_COLUMN,
    Split,
    read_manifest,
)
from ..cohort.processes import process_pool
from ..command_line import OneLineParser, exit_code, module_command, whole_number
from ..errors import InputError, reason
from ..fleischner import CENTRILOBULAR, PARASEPTAL
from ..imaging import writing
from ..lungs.anatomy import largest_part
from ..slices.calibration import find_lungs
from ..slices.dataset import PATIENTS_FILE
from ..slices.images import PICTURE_SUFFIXES, as_hounsfield, read_slice
from ..whole_files import check_free, make_folder, whole_file

BODY_WIDTH_MM = 350.0
"""How wide a patient is taken to be where the picture does not say how large its pixels are."""

SLICES, SLICE_DISTANCE_MM = 40, 2.5
SPAN_MM = (SLICES - 1) * SLICE_DISTANCE_MM
"""From the first to the last slice, however many there are: the network's input is the same, and so is the volume."""

ABSENT, PRESENT, PANLOBULAR = 1.0, 1.0, 5.0
"""Percentages of the lung: at most, where a class says that a subtype is absent; at least, where it says that it is present."""

Bounds = Mapping[str, tuple[tuple[str, str], tuple[str, str]]]
"""What a class says: the cells of the lower and upper bound, centrilobular and paraseptal."""

LEADING = {"CLE": CENTRILOBULAR.name, "PSE": PARASEPTAL.name}

_BODY_HU = -300.0
_EXPECTED = f"a folder with {PATIENTS_FILE} (columns file, class, patient) and the pictures that it lists"
_COMPRESSION = 1


def class_bounds(absent: float = ABSENT, present: float = PRESENT, *, panlobular: bool = False) -> Bounds:
    """The bounds of NT, CLE and PSE, and of PLE if `panlobular`."""
    none, some, unknown = ("0", f"{absent:g}"), (f"{present:g}", ""), ("", "")
    bounds = {"NT": (none, none), "CLE": (some, unknown), "PSE": (unknown, some)}
    return {**bounds, "PLE": ((f"{PANLOBULAR:g}", ""), unknown)} if panlobular else bounds


@dataclass(frozen=True)
class LabelledSlice:
    """A picture, and what is known of it."""

    path: Path
    label: str
    patient: str

    @property
    def entity(self) -> str:
        """Its name in the manifest."""
        return f"{self.label}-{self.path.stem}"


def listed_slices(folder: Path, labels: Sequence[str]) -> list[LabelledSlice]:
    """The pictures of some classes that `patients.csv` lists.

    Raises:
        InputError: there is no such list, it names files that are not there, or it has no slice of a class.
    """
    listed = folder / PATIENTS_FILE
    try:
        with listed.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            missing = {"file", "class", "patient"}.difference(reader.fieldnames or ())
            if missing:
                raise InputError(listed, f"missing columns: {', '.join(sorted(missing))}", _EXPECTED)
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(listed, f"it cannot be read ({reason(error)})", _EXPECTED) from error
    short = [number for number, row in enumerate(rows, start=2) if None in (row["file"], row["class"], row["patient"])]
    if short:
        raise InputError(listed, f"row {short[0]} is too short", _EXPECTED)
    slices = [
        LabelledSlice(folder / row["file"], row["class"], row["patient"].strip()) for row in rows if row["class"] in labels
    ]
    lost = [
        entry.path.name for entry in slices if not entry.path.is_file() or entry.path.suffix.lower() not in PICTURE_SUFFIXES
    ]
    if lost:
        raise InputError(folder, f"{len(lost)} listed pictures are not there, such as {lost[0]}", _EXPECTED)
    none = [label for label in labels if label not in {entry.label for entry in slices}]
    if none:
        raise InputError(listed, f"no slices of class {', '.join(none)}", _EXPECTED)
    return sorted(slices, key=lambda entry: (entry.label, entry.path.name))


def split_by_patient(slices: Sequence[LabelledSlice], share: float, seed: int) -> set[str]:
    """Draw the patients to train on: `share` of those of each class; a patient of several classes counts in the first."""
    generator = random.Random(seed)
    classes: dict[str, list[str]] = {}
    seen: set[str] = set()
    for entry in slices:
        if entry.patient not in seen:
            seen.add(entry.patient)
            classes.setdefault(entry.label, []).append(entry.patient)
    chosen: set[str] = set()
    for patients in classes.values():
        generator.shuffle(patients)
        chosen.update(patients[: round(share * len(patients))])
    return chosen


def pixel_size_mm(hounsfield: npt.NDArray[np.float32]) -> float:
    """Width of a pixel (mm), if the patient is `BODY_WIDTH_MM` wide; for an axial slice in HU, rows x columns."""
    columns = np.flatnonzero(largest_part(hounsfield > _BODY_HU).any(axis=0))
    return BODY_WIDTH_MM / float(columns[-1] - columns[0] + 1)


def make_volume(picture: Path, slices: int = SLICES) -> tuple[sitk.Image, sitk.Image]:
    """CT (int16, HU) and lung mask (uint8) of a picture that is taken `slices` times.

    Raises:
        InputError: the picture cannot be read or calibrated, or shows no lungs.
    """
    hounsfield = as_hounsfield(read_slice(picture))
    size = pixel_size_mm(hounsfield)
    lungs = find_lungs(hounsfield, size)
    return repeated(hounsfield, lungs, size, slices)


def repeated(
    hounsfield: npt.NDArray[np.float32], lungs: npt.NDArray[np.bool_], size: float, slices: int = SLICES
) -> tuple[sitk.Image, sitk.Image]:
    """CT (int16, HU) and lung mask (uint8) of one slice (Y x X, pixels of `size` mm) that is taken `slices` times."""
    return _repeated(np.rint(hounsfield.clip(-1024, 3071)).astype(np.int16), size, slices), repeated_mask(lungs, size, slices)


def repeated_mask(mask: npt.NDArray[np.bool_], size: float, slices: int = SLICES) -> sitk.Image:
    """The same of a mask alone (uint8)."""
    return _repeated(mask.astype(np.uint8), size, slices)


def _repeated(plane: npt.NDArray[np.integer], size: float, slices: int) -> sitk.Image:
    image = sitk.GetImageFromArray(np.repeat(plane[None], slices, axis=0))
    image.SetSpacing((size, size, SPAN_MM / (slices - 1)))
    return image


def volume_files(entity: str) -> tuple[str, str]:
    """Names of the CT and the lung mask of a volume."""
    return f"{entity}_ct.mha", f"{entity}_lungs.mha"


def write_volume(images: tuple[sitk.Image, sitk.Image], output: Path, entity: str) -> None:
    """Write the CT and the lung mask of a volume."""
    for name, image in zip(volume_files(entity), images, strict=True):
        write_image(image, output / name)


def write_image(image: sitk.Image, path: Path) -> None:
    """Write one image of a volume, compressed."""
    with whole_file(path) as partial_path:
        writing.write_image(image, partial_path, path, level=_COMPRESSION)


def _write(entry: LabelledSlice, output: Path, slices: int) -> str | None:
    """Write the volume of a picture; what is wrong with it comes back as text."""
    try:
        write_volume(make_volume(entry.path, slices), output, entry.entity)
    except InputError as error:
        return f"{entry.entity}: {error}"
    return None


def _written(entries: Sequence[LabelledSlice], output: Path, slices: int, workers: int) -> Iterator[str | None]:
    task = partial(_write, output=output, slices=slices)
    if workers < 2:
        yield from map(task, entries)
        return
    with process_pool(workers) as pool:
        yield from pool.map(task, entries)


def write_manifest(entries: Sequence[LabelledSlice], train: set[str], output: Path, bounds: Bounds) -> Path:
    """Write the manifest of volumes that `_written` wrote; `train` are the patients to train on."""
    columns = (*BOUND_COLUMNS[CENTRILOBULAR.name], *BOUND_COLUMNS[PARASEPTAL.name])
    path = output / MANIFEST_FILE
    with whole_file(path) as partial_path, partial_path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        header = ("entity", "ct", "lung_mask", *columns, LEADING_COLUMN, UNIFORM_COLUMN, "split", "class", PATIENT_COLUMN)
        writer.writerow(header)
        for entry in entries:
            split: Split = "train" if entry.patient in train else "validation"
            cells = (cell for pair in bounds[entry.label] for cell in pair)
            leading = LEADING.get(entry.label, "")
            writer.writerow(
                (entry.entity, *volume_files(entry.entity), *cells, leading, "yes", split, entry.label, entry.patient)
            )
    return path


def patients_in(path: Path) -> set[str]:
    """The patients that a text file lists, one a line.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return {line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()}
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(path, f"it cannot be read ({reason(error)})", "a text file with a patient in each line") from error


def main(arguments: list[str] | None = None) -> int:
    parser = OneLineParser(prog=module_command("training.slices_cohort"), description="Volumes to train on, of single slices.")
    parser.add_argument("folder", type=Path, metavar="DIR", help=_EXPECTED)
    parser.add_argument("output", type=Path, help="a new or empty folder")
    parser.add_argument("--share", type=float, default=0.5, help="of the patients to train on, default: %(default)s")
    parser.add_argument("--seed", type=whole_number(0), default=0, help="of the split by patient")
    parser.add_argument(
        "--train-patients", type=Path, metavar="FILE", help="the patients to train on, one a line, in place of a draw"
    )
    parser.add_argument(
        "--slices",
        type=int,
        default=SLICES,
        help="times that a picture is repeated over the same length; 2 are enough to train on, and small; default: %(default)s",
    )
    parser.add_argument("--panlobular-is-centrilobular", action="store_true", help="take PLE as at least 5 %% centrilobular")
    for name, default, what in (("absent", ABSENT, "most"), ("present", PRESENT, "least")):
        parser.add_argument(
            f"--{name}",
            type=float,
            default=default,
            metavar="PERCENT",
            help=f"a subtype that a class says is {name} has at {what} so many percent of the lung; default: %(default)s",
        )
    parser.add_argument("--workers", type=whole_number(1), default=1, help="processes, default: %(default)s")
    options = parser.parse_args(arguments)
    if not 0 < options.share < 1:
        parser.error(f"--share is {options.share:g}, expected a number between 0 and 1")
    if options.slices < 2:
        parser.error(f"--slices is {options.slices}, expected 2 or more")
    for name, value in (("--absent", options.absent), ("--present", options.present)):
        if not 0 <= value <= 100:
            parser.error(f"{name} is {value:g}, expected percent of the lung, 0 to 100")
    return exit_code(lambda: _run(options), options.output)


def _run(options: argparse.Namespace) -> None:
    bounds = class_bounds(options.absent, options.present, panlobular=options.panlobular_is_centrilobular)
    slices = listed_slices(options.folder, list(bounds))
    check_free(options.output)
    if options.train_patients is None:
        train = split_by_patient(slices, options.share, options.seed)
    else:
        train = patients_in(options.train_patients)
        unknown = sorted(train - {entry.patient for entry in slices})
        if unknown:
            lost = f"{len(unknown)} patients that have no slice, such as {unknown[0]}"
            raise InputError(options.train_patients, lost, f"patients of {PATIENTS_FILE}, one a line")
    make_folder(options.output)
    results = _written(slices, options.output, options.slices, options.workers)
    found = list(tqdm(results, total=len(slices), desc="writing", unit="slice", disable=None))
    usable = [entry for entry, problem in zip(slices, found, strict=True) if problem is None]
    problems = [problem for problem in found if problem is not None]
    manifest = read_manifest(write_manifest(usable, train, options.output, bounds))
    for problem in problems:
        print(f"left out: {problem}")
    counts = Counter((case.split, entry.label) for case, entry in zip(manifest.cases, usable, strict=True))
    print(f"{manifest.path}: " + ", ".join(f"{count} {label} {split}" for (split, label), count in sorted(counts.items())))


if __name__ == "__main__":
    sys.exit(main())
