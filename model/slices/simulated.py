"""Slices of simulated scans, in a folder a class, with the patient of each: what stands in where no labelled slices may be had.

A simulated patient has one subtype (or none) and gives several slices, as patients do in a hospital's collection.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..cohort.processes import process_pool
from ..errors import InputError, reason
from ..simulation import CaseParameters, NoRoomError, SimulatedCase, draw_parameters, simulate
from ..whole_files import check_free, check_replaceable, whole_folder
from . import CLASSES
from .calibration import AIR_HU
from .dataset import PATIENTS_FILE
from .images import LUNG_WINDOW

CENTRILOBULAR_SCORES = (3, 4, 5)
PARASEPTAL_SCORE = 2
PANLOBULAR_PERCENT = (15.0, 45.0)

SMALLEST_SHARE = {"CLE": 5.0, "PLE": 10.0, "PSE": 4.0, "NT": 0.0}
"""Percent of the lung in a slice that its class takes at least: less would be a normal slice of a sick patient."""

SMALLEST_LUNG_AREA = 0.3
"""As a share of the largest in the scan: slices through the tips of the lungs show little."""


AIR_MARGIN = 0.12
"""Of air around the simulated scan, in shares of its longer side."""

AIR_NOISE_HU = 15.0


@dataclass(frozen=True)
class SimulatedSlice:
    """One slice to write.

    Attributes:
        name: of its file.
        patient: an identifier that all slices of one simulated patient share.
        label: one of `CLASSES`.
        level: its number in the scan, from 1 at the base.
        percentage: of the lung in this slice that is emphysema of its class.
        picture: rows x columns, grey, square pixels.
    """

    name: str
    patient: str
    label: str
    level: int
    percentage: float
    picture: npt.NDArray[np.uint8]


def make_slices(images: int, seed: int, output: Path, slices_per_patient: int = 8, workers: int = 1) -> Iterator[str]:
    """Make `images` slices, as evenly of the four classes as can be, into `output`; yields each one's name.

    The same arguments give the same files, whatever the number of workers. The folder appears whole, with the last slice.

    Raises:
        InputError: `output` cannot be written or already holds something; or as `slices_of_patient`.
    """
    check_free(output)
    check_replaceable(output)
    return _whole(images, seed, output.resolve(), slices_per_patient, workers)


def _whole(images: int, seed: int, output: Path, slices_per_patient: int, workers: int) -> Iterator[str]:
    try:
        with whole_folder(output) as partial:
            yield from _written(images, seed, partial, slices_per_patient, workers)
    except OSError as error:
        raise InputError(output, f"cannot be written ({reason(error)})", "a folder with room for the slices") from error


def _written(images: int, seed: int, output: Path, slices_per_patient: int, workers: int) -> Iterator[str]:
    rows = []
    for label in CLASSES:
        (output / label).mkdir()
    with process_pool(workers) as pool:
        for index, label in enumerate(CLASSES):
            wanted = images // len(CLASSES) + (index < images % len(CLASSES))
            number = 0
            while wanted > 0:  # a patient may have fewer slices that show the class
                patients = range(number, number + -(-wanted // slices_per_patient))
                number = patients.stop
                arguments = ([seed] * len(patients), [label] * len(patients), patients, [slices_per_patient] * len(patients))
                for found in pool.map(slices_of_patient, *arguments):
                    for one in found[:wanted]:
                        Image.fromarray(one.picture).save(output / label / one.name)
                        rows.append((f"{label}/{one.name}", one.patient, label, one.level, f"{one.percentage:.2f}"))
                        yield one.name
                    wanted -= len(found[:wanted])
    with (output / PATIENTS_FILE).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("file", "patient", "class", "slice", "percentage"))
        writer.writerows(rows)


def slices_of_patient(seed: int, label: str, number: int, count: int) -> list[SimulatedSlice]:
    """Simulate patient `number` of a class, and choose at most `count` slices that show it, from base to apex.

    Raises:
        InputError: its lungs have no room for the emphysema that was drawn.
    """
    sequence = np.random.SeedSequence(seed, spawn_key=(CLASSES.index(label), number))
    rng = np.random.default_rng(sequence)
    patient = f"simulated-{seed}-{label.lower()}-{number:03d}"
    try:
        case = simulate(_parameters(sequence, label, rng))
    except NoRoomError as error:
        raise InputError(patient, str(error), "another --seed") from error
    area, percentages = _in_each_slice(case, label)
    shown = np.flatnonzero((area >= SMALLEST_LUNG_AREA * area.max()) & (percentages >= SMALLEST_SHARE[label]))
    levels = np.sort(rng.choice(shown, min(count, len(shown)), replace=False))
    return [
        SimulatedSlice(
            name=f"{patient}-slice-{level + 1:03d}.png",
            patient=patient,
            label=label,
            level=int(level) + 1,
            percentage=float(percentages[level]),
            picture=_square_pixels(LUNG_WINDOW.grey(_in_air(case.hounsfield[level], seed)), case.spacing),
        )
        for level in levels
    ]


def _in_air(hounsfield: npt.NDArray[np.floating], seed: int) -> npt.NDArray[np.float32]:
    """A slice with air around it, by which its grey levels can be calibrated: a simulated scan ends at the patient's skin."""
    margin = round(AIR_MARGIN * max(hounsfield.shape))
    air = np.random.default_rng(seed).normal(AIR_HU, AIR_NOISE_HU, [size + 2 * margin for size in hounsfield.shape])
    air[margin:-margin, margin:-margin] = hounsfield
    return air.astype(np.float32)


def _parameters(sequence: np.random.SeedSequence, label: str, rng: np.random.Generator) -> CaseParameters:
    """A patient who has the class's subtype and no other."""
    drawn = draw_parameters(
        sequence,
        int(rng.choice(CENTRILOBULAR_SCORES)) if label == "CLE" else 0,
        PARASEPTAL_SCORE if label == "PSE" else 0,
        panlobular=float(rng.uniform(*PANLOBULAR_PERCENT)) if label == "PLE" else 0.0,
        look="first",
    )
    disease = drawn.disease  # a score of 0 may still be a trace of disease
    if label != "CLE":
        disease = replace(disease, centrilobular=replace(disease.centrilobular, percentage=0.0))
    if label != "PSE":
        disease = replace(disease, paraseptal=replace(disease.paraseptal, percentage=0.0, bullae=0))
    return replace(drawn, disease=disease)


def _in_each_slice(case: SimulatedCase, label: str) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The lung's area (voxels), and the percentage of it that is of the class."""
    area = np.count_nonzero(case.lungs, axis=(1, 2)).astype(float)
    truth = {"CLE": case.centrilobular, "PLE": case.panlobular, "PSE": case.paraseptal}.get(label)
    if truth is None:
        return area, np.zeros_like(area)
    return area, 100 * np.count_nonzero(truth, axis=(1, 2)) / area.clip(1)


def _square_pixels(grey: npt.NDArray[np.uint8], spacing: tuple[float, float, float]) -> npt.NDArray[np.uint8]:
    _, row_mm, column_mm = spacing
    finest = min(row_mm, column_mm)
    rows, columns = grey.shape
    size = (round(columns * column_mm / finest), round(rows * row_mm / finest))
    return np.asarray(Image.fromarray(grey).resize(size, Image.Resampling.BILINEAR))
