"""All architectures on both splits, in the manner of the paper's Table I."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import InputError
from . import CLASSES, LUNG_ARCHITECTURES, ArchitectureName
from .cross_validation import answers
from .dataset import Slices, Split, SplitName, folds_by_patient, split_by_image
from .metrics import Performance, measure
from .settings import Settings

TITLES = {
    "inception_v3": "InceptionV3",
    "resnet50": "ResNet50",
    "efficientnet": "EfficientNet",
    "simple_cnn": "Simple CNN",
    "residual": "small residual network (ours)",
    "texture": "texture network (ours)",
}

IMAGENET = "imagenet"
"""Given in place of base weights: download them."""

PAPER_TABLE = {
    "inception_v3": (98.98, 98.88, 98.88),
    "simple_cnn": (85.55, 85.39, 84.44),
    "efficientnet": (14.44, 14.44, 14.44),
    "resnet50": (84.44, 85.22, 83.33),
}
"""Table I of the paper: accuracy, precision and recall in percent, on about 90 slices, split by image.

The table has slips of its own: 98.98 % is no share of 90 slices (89 of them are 98.89 %), and the abstract exchanges the
abbreviations of panlobular and paraseptal emphysema.
"""

_BASE_FILE_PREFIXES = {
    "inception_v3": "inception_v3",
    "resnet50": "resnet50",
    "efficientnet": "efficientnetb0",
    "texture": "efficientnet-lite0",
}
"""How the files begin that are published, for all but the last by `keras.applications`."""


@dataclass(frozen=True)
class Trial:
    """One architecture on one kind of split.

    Attributes:
        epochs: of each network that was trained, one a fold.
    """

    architecture: ArchitectureName
    split: SplitName
    performance: Performance
    epochs: tuple[int, ...]


def splits_of(slices: Slices, folds: int) -> dict[SplitName, list[Split]]:
    """The paper's one split by image, and `folds` by patient where the patients are known.

    Raises:
        InputError: a class has too few slices or patients to be split.
    """
    try:
        splits: dict[SplitName, list[Split]] = {"image": [split_by_image(slices)]}
        if slices.patients is not None:
            splits["patient"] = folds_by_patient(slices)[:folds]
    except ValueError as error:
        raise InputError("--data", f"cannot be split ({error})", "at least 5 slices, and 5 patients, of each class") from error
    return splits


def base_file(folder: Path | str | None, architecture: ArchitectureName) -> Path | str | None:
    """The file of an architecture's base weights in a folder of such files; None for networks without one, and for no folder.

    Raises:
        InputError: there is not exactly one.
    """
    if folder is None or architecture not in _BASE_FILE_PREFIXES:
        return None
    if folder == IMAGENET:
        return folder
    prefix = _BASE_FILE_PREFIXES[architecture]
    found = sorted([*Path(folder).glob(f"{prefix}*.h5"), *Path(folder).glob(f"{prefix}*.pth")])
    if len(found) != 1:
        raise InputError(folder, f"{len(found)} files {prefix}* in it", "one for each architecture that has a base")
    return found[0]


def compare(
    slices: Slices,
    architectures: Sequence[ArchitectureName],
    settings: Settings,
    base_weights: Path | str | None = None,
    folds: int = 5,
) -> Iterator[Trial]:
    """Train every architecture on every split there is, and say how it did on what was set aside."""
    files = {architecture: base_file(base_weights, architecture) for architecture in architectures}
    splits = splits_of(slices, folds)
    for architecture in architectures:
        for name, those in splits.items():
            trained = answers(architecture, slices, those, settings, files[architecture])
            aside = np.concatenate([fold.split.test for fold in trained])
            found = np.concatenate([fold.logits.argmax(axis=1) for fold in trained])
            patients = None if slices.patients is None else slices.patients[aside]
            performance = measure(slices.labels[aside], found, patients)
            yield Trial(architecture, name, performance, tuple(fold.epochs for fold in trained))


def table(trials: Sequence[Trial]) -> str:
    """The trials as Table I has them, in Markdown, the paper's own figures beside; percent, intervals of 95 %."""
    lines = [
        "| architecture | split by | epochs | accuracy | precision | recall | the paper: accuracy, precision, recall |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for trial in trials:
        result = trial.performance
        known = trial.split == "image" and trial.architecture not in LUNG_ARCHITECTURES
        paper = ", ".join(f"{value:.2f}" for value in PAPER_TABLE[trial.architecture]) if known else "not reported"
        epochs = ", ".join(map(str, trial.epochs)) if len(set(trial.epochs)) > 1 else f"{trial.epochs[0]}"
        split = f"{trial.split}, {len(trial.epochs)} folds" if len(trial.epochs) > 1 else trial.split
        lines.append(
            f"| {TITLES[trial.architecture]} | {split} | {epochs} | {result.accuracy} "
            f"| {result.precision:.1f} | {result.recall:.1f} | {paper} |"
        )
    return "\n".join(lines)


def class_table(trials: Sequence[Trial]) -> str:
    """Precision and recall of each class, in Markdown; percent, with intervals of 95 %."""
    cells = " | ".join(f"{label} {figure}" for label in CLASSES for figure in ("precision", "recall"))
    lines = [f"| architecture | split by | {cells} |", "| --- | --- |" + " --- |" * (2 * len(CLASSES))]
    for trial in trials:
        result = trial.performance
        rates = " | ".join(str(rates[label]) for label in CLASSES for rates in (result.class_precision, result.class_recall))
        lines.append(f"| {TITLES[trial.architecture]} | {trial.split} | {rates} |")
    return "\n".join(lines)
