"""All four architectures on both splits, in the manner of the paper's Table I."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import InputError
from . import CLASSES, ArchitectureName
from .dataset import Slices, Split, SplitName, split_by_image, split_by_patient
from .metrics import Performance, measure
from .networks import IMAGENET, SliceNetwork
from .training import Settings, predict, train

TITLES = {
    "inception_v3": "InceptionV3",
    "resnet50": "ResNet50",
    "efficientnet": "EfficientNet",
    "simple_cnn": "Simple CNN",
}

PAPER_TABLE = {
    "inception_v3": (98.98, 98.88, 98.88),
    "simple_cnn": (85.55, 85.39, 84.44),
    "efficientnet": (14.44, 14.44, 14.44),
    "resnet50": (84.44, 85.22, 83.33),
}
"""Table I of the paper: accuracy, precision and recall in percent, on about 90 slices, split by image."""

_BASE_FILE_PREFIXES = {"inception_v3": "inception_v3", "resnet50": "resnet50", "efficientnet": "efficientnetb0"}
"""How the files begin that `keras.applications` publishes."""


@dataclass(frozen=True)
class Trial:
    """One network, trained on one split."""

    architecture: ArchitectureName
    split: SplitName
    performance: Performance


def splits_of(slices: Slices) -> dict[SplitName, Split]:
    """Both splits, or only that by image where the patients are not known.

    Raises:
        InputError: a class has too few slices or patients to be split.
    """
    try:
        splits: dict[SplitName, Split] = {"image": split_by_image(slices)}
        if slices.patients is not None:
            splits["patient"] = split_by_patient(slices)
    except ValueError as error:
        raise InputError("--data", f"cannot be split ({error})", "at least 5 slices, and 5 patients, of each class") from error
    return splits


def base_file(folder: Path | str | None, architecture: ArchitectureName) -> Path | str | None:
    """The file of an architecture's base weights in a folder of such files; None for the simple network, and for no folder.

    Raises:
        InputError: there is not exactly one.
    """
    if folder is None or architecture == "simple_cnn":
        return None
    if folder == IMAGENET:
        return folder
    prefix = _BASE_FILE_PREFIXES[architecture]
    found = sorted(Path(folder).glob(f"{prefix}*.h5"))
    if len(found) != 1:
        raise InputError(folder, f"{len(found)} files {prefix}*.h5 in it", "one for each architecture but the simple one")
    return found[0]


def assess(network: SliceNetwork, slices: Slices, split: Split) -> Performance:
    """How a network does on the slices set aside."""
    answers = predict(network, slices.pictures[split.test]).argmax(axis=1)
    patients = None if slices.patients is None else slices.patients[split.test]
    return measure(slices.labels[split.test], np.asarray(answers), patients)


def compare(
    slices: Slices, architectures: Sequence[ArchitectureName], settings: Settings, base_weights: Path | str | None = None
) -> Iterator[Trial]:
    """Train every architecture on every split there is, and say how it did on what was set aside."""
    files = {architecture: base_file(base_weights, architecture) for architecture in architectures}
    splits = splits_of(slices)
    for architecture in architectures:
        for name, split in splits.items():
            network = train(architecture, slices, split, settings, files[architecture], verbose=False)
            yield Trial(architecture, name, assess(network, slices, split))


def table(trials: Sequence[Trial]) -> str:
    """The trials as Table I has them, in Markdown, the paper's own figures beside; percent, intervals of 95 %."""
    lines = [
        "| architecture | split by | accuracy | precision | recall | the paper: accuracy, precision, recall |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for trial in trials:
        result = trial.performance
        paper = (
            ", ".join(f"{value:.2f}" for value in PAPER_TABLE[trial.architecture]) if trial.split == "image" else "not reported"
        )
        lines.append(
            f"| {TITLES[trial.architecture]} | {trial.split} | {result.accuracy} "
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
