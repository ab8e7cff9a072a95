"""Five folds by patient: every slice is answered by a network that has not seen its patient."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.special import softmax

from . import ArchitectureName, LungArchitecture
from .confidence import choose_threshold, fit_temperature
from .dataset import Slices, Split
from .lung_networks import LungNetwork
from .lung_training import LungSettings, both_ways, fit
from .metrics import CurvePoint, Performance, measure
from .settings import Settings
from .texture import TextureNetwork
from .texture_training import (
    FINE_TUNING,
    STANDARD_VIEWS,
    Features,
    TextureSettings,
    features_of,
    fine_tune,
    fit_heads,
    load_base,
    logits_of,
)


@dataclass(frozen=True)
class Fold:
    """What was trained on one split.

    Attributes:
        split: its slices.
        logits: of the slices set aside, N x 4.
        epochs: that were trained; 1 where there are none.
        curve: learning curve; empty where there is none.
    """

    split: Split
    logits: npt.NDArray[np.float64]
    epochs: int = 1
    curve: list[CurvePoint] = field(default_factory=list)


@dataclass(frozen=True)
class CrossValidated:
    """All folds, and what they say together.

    Attributes:
        probabilities: N x 4, each slice's from the fold that set it aside, at the temperature.
        temperature, uncertain_below: chosen on them.
        performance: of them.
    """

    folds: list[Fold]
    probabilities: npt.NDArray[np.float64]
    temperature: float
    uncertain_below: float
    performance: Performance

    def by_fold(self, slices: Slices) -> list[dict[str, object]]:
        """Of each fold its slices, how many were right, and its learning curve."""
        return [
            {
                "slices": len(fold.split.test),
                "right": int((fold.logits.argmax(axis=1) == slices.labels[fold.split.test]).sum()),
                "curve": [asdict(point) for point in fold.curve],
            }
            for fold in self.folds
        ]


def together(slices: Slices, folds: list[Fold]) -> CrossValidated:
    """What all folds say of all slices."""
    logits = np.zeros((len(slices.labels), folds[0].logits.shape[1]))
    for fold in folds:
        logits[fold.split.test] = fold.logits
    temperature = fit_temperature(logits, slices.labels)
    probabilities = softmax(logits / temperature, axis=1)
    performance = measure(slices.labels, logits.argmax(axis=1), slices.patients)
    return CrossValidated(folds, probabilities, temperature, choose_threshold(probabilities, slices.labels), performance)


def train_folds(
    architecture: LungArchitecture,
    slices: Slices,
    splits: Sequence[Split],
    settings: Settings,
    base_weights: Path | None = None,
    note: Callable[[str], None] = lambda _: None,
) -> tuple[list[Fold], list[LungNetwork]]:
    """Train a network in plain torch on each split.

    Returns:
        the folds, and the networks to ship: those of the folds; of the texture network whose blocks are frozen, one that is
        trained on all slices.
    """
    if _has_frozen_blocks(architecture, settings):
        everything = Split(np.arange(len(slices.labels)), np.empty(0, np.int64))
        *trained, shipped = _frozen_folds(slices, enumerate([*splits, everything]), settings, base_weights, note)
        return [fold for fold, _ in trained], [shipped[1]]
    folds, networks = [], []
    for fold, network in _whole_folds(architecture, slices, enumerate(splits), settings, base_weights, note):
        folds.append(fold)
        networks.append(network)
        note(f"fold {len(folds)}, {progress(fold.curve[-1])}")
    return folds, networks


def progress(point: CurvePoint) -> str:
    """A point of a learning curve for whoever waits."""
    text = f"epoch {point.epoch}: loss {point.loss:.3f}"
    if point.validation_loss is not None:
        text += f", {point.validation_loss:.3f} on the slices set aside"
    if point.validation_accuracy is not None:
        text += f", {100 * point.validation_accuracy:.1f} % of them right"
    return text


def _has_frozen_blocks(architecture: ArchitectureName, settings: Settings) -> bool:
    return architecture == "texture" and not settings.fine_tune


def _whole_folds(
    architecture: LungArchitecture,
    slices: Slices,
    splits: Iterable[tuple[int, Split]],
    settings: Settings,
    base_weights: Path | None,
    note: Callable[[str], None],
) -> Iterator[tuple[Fold, LungNetwork]]:
    """Train all of a network, not its heads alone."""
    chosen = replace(FINE_TUNING if architecture == "texture" else LungSettings(), seed=settings.seed, device=settings.device)
    if settings.epochs is not None:
        chosen = replace(chosen, epochs=settings.epochs)
    if architecture == "texture":
        base = texture_base(base_weights)
        views = _views(base, slices, STANDARD_VIEWS, settings, note)
    for number, split in splits:
        if architecture == "texture":
            fitted = fine_tune(base, views, slices, split, chosen, number)
        else:
            fitted = fit(slices, split, chosen, number)
        logits = both_ways(fitted.network, slices, split.test).numpy().astype(np.float64)
        yield Fold(split, logits, chosen.epochs, fitted.curve), fitted.network.cpu()


def texture_base(base_weights: Path | None) -> TextureNetwork:
    """A texture network without heads that have learnt, with base weights where there are some.

    Raises:
        InputError: the file holds something else.
    """
    network = TextureNetwork()
    if base_weights is not None:
        load_base(network, base_weights)
    return network


def _views(
    network: TextureNetwork, slices: Slices, views: Iterable[int], settings: Settings, note: Callable[[str], None]
) -> list[Features]:
    found = []
    for view in views:
        found.append(features_of(network, slices, view, settings.seed, settings.device))
        note(f"view {view + 1} of each slice")
    return found


def _frozen_folds(
    slices: Slices,
    splits: Iterable[tuple[int, Split]],
    settings: Settings,
    base_weights: Path | None,
    note: Callable[[str], None],
) -> Iterator[tuple[Fold, LungNetwork]]:
    """Train the texture network's heads alone."""
    chosen = TextureSettings(seed=settings.seed)
    network = texture_base(base_weights)
    views = _views(network, slices, range(chosen.views), settings, note)
    for _, split in splits:
        fitted = fit_heads(network, views, slices.labels, split.train, chosen)
        yield Fold(split, logits_of(fitted, views, split.test)), fitted


def answers(
    architecture: ArchitectureName,
    slices: Slices,
    splits: Sequence[tuple[int, Split]],
    settings: Settings,
    base_weights: Path | str | None = None,
) -> Iterator[Fold]:
    """Train any network on each split.

    Args:
        splits: which one of its kind each is, from 0, which goes into random numbers; and the split.
    """
    if architecture == "texture" or architecture == "residual":
        weights = None if base_weights is None else Path(base_weights)
        if _has_frozen_blocks(architecture, settings):
            folds = _frozen_folds(slices, splits, settings, weights, lambda _: None)
        else:
            folds = _whole_folds(architecture, slices, splits, settings, weights, lambda _: None)
        yield from (fold for fold, _ in folds)
    else:
        from .training import predict, train  # Keras takes seconds to import

        for _, split in splits:
            network, curve = train(architecture, slices, split, settings, base_weights, verbose=False)
            probabilities = predict(network, slices, split.test)
            yield Fold(split, np.log(probabilities.clip(1e-12)), len(curve), curve)
