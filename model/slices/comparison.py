"""All architectures on both splits, in the manner of the paper's Table I."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from scipy.special import softmax

from ..errors import InputError, encodable
from . import CLASSES, LUNG_ARCHITECTURES, PART_NAMES, TITLES, ArchitectureName
from .confidence import ReliabilityBin, calibration_error, reliability
from .cross_validation import Fold, answers, texture_base
from .dataset import Slices, SplitName
from .metrics import CurvePoint, Performance, measure
from .parts import KeptParts, parts_of
from .report import curves_figure, png, reliability_figure, write_report_files
from .settings import Settings

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
        performance: on all slices set aside.
        reliability: of their probabilities, as they are.
        curves: learning curve of each network that was trained, one a fold.
        epochs: of each of them.
    """

    architecture: ArchitectureName
    split: SplitName
    performance: Performance
    epochs: tuple[int, ...]
    reliability: list[ReliabilityBin] = field(default_factory=list)
    curves: tuple[list[CurvePoint], ...] = ()


def check_base(architecture: ArchitectureName, weights: Path | str | None) -> None:
    """Check, before anything is trained, that an architecture takes base weights of this kind, and that there is a file.

    Args:
        weights: a file, or `imagenet`; None: there is nothing to check.

    Raises:
        InputError: the architecture has no base, or the file is not there.
    """
    if weights is None:
        return
    if architecture not in _BASE_FILE_PREFIXES:
        takers = ", ".join(_BASE_FILE_PREFIXES)
        raise InputError("--base-weights", f"{architecture} has no base that they could go into", f"one of {takers}, or none")
    if weights == IMAGENET and architecture in LUNG_ARCHITECTURES:
        found = f"there is no download of the base of {architecture}"
        raise InputError(f"--base-weights {IMAGENET}", found, "a file of its own, or other architectures")
    if weights != IMAGENET and not Path(weights).is_file():
        raise InputError(weights, "no such file", f"base weights of {architecture}")


def try_base(architecture: ArchitectureName, weights: Path | str | None) -> None:
    """Load base weights once, so that hours of training do not end at a file that cannot be used.

    Raises:
        InputError: they cannot be had, or are of another architecture.
    """
    if weights is None:
        return
    if architecture == "texture":
        texture_base(Path(weights))
    else:
        from .networks import build_network  # Keras takes seconds to import

        build_network(architecture, weights)  # type: ignore[arg-type]


def base_file(folder: Path | str | None, architecture: ArchitectureName) -> Path | str | None:
    """The file of an architecture's base weights in a folder of such files; None for networks without one, and for no folder.

    Raises:
        InputError: there is not exactly one.
    """
    if folder is None or architecture not in _BASE_FILE_PREFIXES:
        return None
    if folder == IMAGENET:
        return IMAGENET
    prefix = _BASE_FILE_PREFIXES[architecture]
    found = sorted([*Path(folder).glob(f"{prefix}*.h5"), *Path(folder).glob(f"{prefix}*.pth")])
    if len(found) != 1:
        raise InputError(folder, f"{len(found)} files {prefix}* in it", "one for each architecture that has a base")
    return found[0]


def compare(
    slices: Slices,
    architectures: Sequence[ArchitectureName],
    settings: Settings,
    base_weights: Mapping[ArchitectureName, Path | str | None],
    folds: int = 5,
    kept: KeptParts | None = None,
    only: Sequence[str] = PART_NAMES,
) -> Iterator[Trial]:
    """Train every architecture on every split there is, and say how it did on what was set aside.

    Args:
        base_weights: of each architecture, None where it is trained from scratch.
        kept: networks that were trained before, which are not trained again; what is trained now is added.
        only: names of the parts to train now. A kind of split of which a part is missing then is left out.
    """
    parts = parts_of(slices, folds)
    for architecture in architectures:
        found = {part.name: None if kept is None else kept.read(architecture, part) for part in parts}
        missing = [part for part in parts if found[part.name] is None and part.name in only]
        if missing:
            splits = [(part.number, part.split) for part in missing]
            trained = answers(architecture, slices, splits, settings, base_weights[architecture])
            for part, fold in zip(missing, trained, strict=True):
                found[part.name] = fold
                if kept is not None:
                    kept.write(architecture, part, fold)
        for kind in dict.fromkeys(part.kind for part in parts):
            those = [found[part.name] for part in parts if part.kind == kind]
            whole = [fold for fold in those if fold is not None]
            if len(whole) == len(those):
                yield _trial(architecture, kind, slices, whole)


def _trial(architecture: ArchitectureName, kind: SplitName, slices: Slices, folds: Sequence[Fold]) -> Trial:
    aside = np.concatenate([fold.split.test for fold in folds])
    logits = np.concatenate([fold.logits for fold in folds])
    labels = slices.labels[aside]
    patients = None if slices.patients is None else slices.patients[aside]
    return Trial(
        architecture,
        kind,
        measure(labels, logits.argmax(axis=1), patients),
        tuple(fold.epochs for fold in folds),
        reliability(softmax(logits, axis=1), labels),
        tuple(fold.curve for fold in folds),
    )


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


def confusion_table(trials: Sequence[Trial]) -> str:
    """Slices of each class by what they were called, in Markdown."""
    lines = ["| architecture | split by | class | " + " | ".join(f"called {label}" for label in CLASSES) + " |"]
    lines.append("| --- " * (3 + len(CLASSES)) + "|")
    for trial in trials:
        for label, row in zip(CLASSES, trial.performance.confusion, strict=True):
            lines.append(f"| {TITLES[trial.architecture]} | {trial.split} | {label} | {' | '.join(map(str, row))} |")
    return "\n".join(lines)


def reliability_table(trials: Sequence[Trial]) -> str:
    """How far probabilities can be taken at their word, in Markdown: expected calibration error in points."""
    lines = ["| architecture | split by | expected calibration error |", "| --- | --- | --- |"]
    for trial in trials:
        error = 100 * calibration_error(trial.reliability)
        lines.append(f"| {TITLES[trial.architecture]} | {trial.split} | {error:.1f} |")
    return "\n".join(lines)


def write_comparison(folder: Path, text: str, trials: Sequence[Trial], origin: Mapping[str, object]) -> None:
    """Write a comparison as Markdown and JSON, with the reliability diagram and the learning curves of each trial.

    Args:
        text: the tables.
        origin: what led to the trials, for the JSON file.

    Raises:
        InputError: a file cannot be written.
    """
    rows = []
    files: dict[str, bytes] = {}
    for trial in trials:
        row = {"architecture": trial.architecture, "split": trial.split, "epochs": trial.epochs, **trial.performance.as_json()}
        curves = [{"curve": [asdict(point) for point in curve]} for curve in trial.curves]
        name = f"{trial.architecture}-{trial.split}"
        files[f"reliability-{name}.png"] = png(reliability_figure(trial.reliability))
        if any(trial.curves):
            files[f"learning-curves-{name}.png"] = png(curves_figure(curves))
        rows.append({**row, "reliability": [asdict(bar) for bar in trial.reliability], "curves": curves})
    files["comparison.json"] = f"{json.dumps({**origin, 'trials': rows}, indent=2)}\n".encode()
    files["comparison.md"] = encodable(text).encode()
    write_report_files(folder, files)
