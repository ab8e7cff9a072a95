"""The two ways of training that the paper compares, regression of percentages and classification of scores; and a third, from
voxel maps of the truth, for simulated scans.

A strategy knows the losses of its head and how scores are read off its dense logits; the loop knows neither. What a strategy
learns of the cohort (class weights) lies in buffers, so that it is part of every checkpoint.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from ..cohort.manifest import Scores
from ..fleischner import CENTRILOBULAR, PARASEPTAL, SUBTYPES
from ..network import DenseLogits, EmphysemaNetwork, HeadName, class_activation_map, class_probabilities, lung_mean
from ..preprocessing import ActivationMaps, NetworkInput, finish
from ..subtyping import PERCENTAGE_DECIMALS
from . import losses
from .dataset import UNKNOWN, Batch
from .recipes import Recipe


class Prediction(NamedTuple):
    """What a network says of B cases.

    Attributes:
        scores: B x 2, int64, centrilobular and paraseptal; on the CPU.
        percentages: B x 2, float64, percent of the lung; nan from a classification network; on the CPU.
    """

    scores: Tensor
    percentages: Tensor


def score_counts(scores: Sequence[Scores]) -> tuple[Tensor, Tensor]:
    """How often each score occurs, where it is known: 6 centrilobular and 3 paraseptal counts."""
    centrilobular, paraseptal = (
        torch.tensor([sum(row[place] == grade.score for row in scores) for grade in subtype.grades])
        for place, subtype in enumerate(SUBTYPES)
    )
    return centrilobular, paraseptal


class Strategy(nn.Module, ABC):
    """How one head is trained."""

    head: HeadName

    def initialise(self, network: EmphysemaNetwork) -> None:
        """Change the weights of a network that was never trained."""

    @abstractmethod
    def terms(self, logits: DenseLogits, batch: Batch) -> dict[str, Tensor]:
        """The weighted terms of the training loss by name; each B, float32. The loss is their sum."""

    def validation_terms(self, logits: DenseLogits, batch: Batch) -> dict[str, Tensor]:
        """As `terms`, but with what does not change from epoch to epoch, so that epochs can be compared."""
        return self.terms(logits, batch)

    @abstractmethod
    def activations(self, logits: DenseLogits, lung: Tensor) -> Tensor:
        """Activation maps, B x 2 x 64 x 112 x 144, 0 to 1: what is shown. `lung` is B x 1 x 64 x 112 x 144."""

    @abstractmethod
    def predictions(self, logits: DenseLogits, batch: Batch) -> Prediction:
        """Scores and percentages as inference reports them."""

    def training_scores(self, _: DenseLogits) -> Tensor | None:
        """Scores during training, B x 2, if `finish_epoch` wants to know how often they were right."""
        return None

    def finish_epoch(self, right: Sequence[Tensor], seen: Sequence[Tensor]) -> None:
        """Take note of an epoch of training: for each subtype, how many cases of each score were right, and were seen."""


class PercentageStrategy(Strategy):
    """What both ways of training the regression head share: percentages, and the interval loss L_INT of equation 1.

    The interval of a case is that of its score; without a score, that of its bounds. Where neither is known, a subtype has no
    interval loss. Where the predominant subtype is known, its percentage has to be at least twice the other's. Where the recipe
    weighs absence, a subtype that is absent is so from every voxel of the lung.

    Args:
        recipe: the options.
        counts: cases of each score in the training set, centrilobular and paraseptal.
    """

    head: HeadName = "regression"

    def __init__(self, recipe: Recipe, counts: tuple[Tensor, Tensor]) -> None:
        super().__init__()
        self.recipe = recipe
        for subtype, count in zip(SUBTYPES, counts, strict=True):
            intervals = losses.percentage_intervals(subtype, absent_is_zero=recipe.absent_is_zero)
            weights = losses.clipped_balanced_weights(count) if recipe.class_weighted_intervals else torch.ones(len(count))
            self.register_buffer(f"{subtype.name}_intervals", intervals)
            self.register_buffer(f"{subtype.name}_weights", weights)

    def initialise(self, network: EmphysemaNetwork) -> None:
        # Left to chance, the sum of both maps begins above 1 in many networks, where equation 3 passes no gradient.
        share = self.recipe.initial_activation
        if not share:
            return
        for part in (network.head.centrilobular, network.head.paraseptal):
            nn.init.constant_(cast(Tensor, part.bias), math.log(share / (1 - share)))

    def percentage_terms(self, logits: DenseLogits, maps: Sequence[Tensor], batch: Batch) -> dict[str, Tensor]:
        """The terms that need no more than scores, bounds, or the predominant subtype; `maps` as in `losses`."""
        intervals = {
            f"interval_{subtype.name}": self._interval_term(place, maps[place], batch) for place, subtype in enumerate(SUBTYPES)
        }
        return intervals | self._absent_terms(logits, batch) | self._leading_term(maps, batch)

    def _intervals(self, place: int, batch: Batch) -> Tensor:
        """The bounds of one subtype's fraction, B x 2: those of its score, else those that were given; nan where unknown."""
        scores = batch.scores[:, place]
        of_scores = self.get_buffer(f"{SUBTYPES[place].name}_intervals")[scores.clamp(min=0)]
        return torch.where((scores != UNKNOWN)[:, None], of_scores, batch.bounds[:, place])

    def _absent_terms(self, logits: DenseLogits, batch: Batch) -> dict[str, Tensor]:
        """A lung without a subtype has it in no voxel. Through the mean, voxels that are surely wrong learn little: there, the
        slope of the sigmoid is flat."""
        if not self.recipe.absent_weight:
            return {}
        terms = {}
        for place, subtype in enumerate(SUBTYPES):
            dense = logits[place]
            is_absent = self._intervals(place, batch)[:, 1] <= subtype.grades[0].upper / 100 + losses.EPSILON
            entropy = losses.voxel_cross_entropy(dense, torch.zeros_like(dense), batch.lung.to(dense.dtype))
            terms[f"absent_{subtype.name}"] = self.recipe.absent_weight * entropy * is_absent
        return terms

    def anchor_terms(self, logits: DenseLogits, anchor: DenseLogits, batch: Batch) -> dict[str, Tensor]:
        """The weighted terms, B each, that keep the maps of another network, `anchor`, in cases without truth maps of which it
        gets nothing wrong: its percentages are within all bounds, and the predominant subtype is."""
        fractions = torch.cat([lung_mean(part.sigmoid(), batch.lung) for part in anchor], dim=1)
        is_right = ~batch.has_truth
        for place in range(len(SUBTYPES)):
            lower, upper = self._intervals(place, batch).unbind(dim=1)
            is_right = is_right & ~(fractions[:, place] < lower) & ~(fractions[:, place] > upper)
        if batch.leading is not None:
            leads = batch.leading.clamp(min=0)[:, None]
            follows = fractions.gather(1, 1 - leads)[:, 0] > fractions.gather(1, leads)[:, 0]
            is_right = is_right & ~(follows & (batch.leading != UNKNOWN))
        region = batch.lung.to(fractions.dtype)
        return {
            f"anchor_{subtype.name}": self.recipe.anchor_weight
            * losses.voxel_divergence(logits[place], anchor[place], region)
            * is_right
            for place, subtype in enumerate(SUBTYPES)
        }

    def _interval_term(self, place: int, activation: Tensor, batch: Batch) -> Tensor:
        recipe, name, scores = self.recipe, SUBTYPES[place].name, batch.scores[:, place]
        is_scored, row = scores != UNKNOWN, scores.clamp(min=0)
        class_weights = self.get_buffer(f"{name}_weights")
        intervals = self._intervals(place, batch)
        is_known = ~intervals.isnan().any(dim=1)
        intervals = intervals.nan_to_num()
        fraction, lower, upper = (
            losses.power_law(value, recipe.percentage_scale, recipe.percentage_exponent)
            for value in (lung_mean(activation, batch.lung)[:, 0], intervals[:, 0], intervals[:, 1])
        )
        weights = recipe.interval_weight * torch.where(is_scored, class_weights[row], class_weights.mean()) * is_known
        if recipe.sum_intervals:  # the loop takes the mean over the batch
            weights = weights * len(weights)
        return weights * losses.interval_loss(fraction, lower, upper)

    def _leading_term(self, maps: Sequence[Tensor], batch: Batch) -> dict[str, Tensor]:
        if batch.leading is None:
            return {}
        fractions = torch.cat([lung_mean(activation, batch.lung) for activation in maps], dim=1)
        leads = batch.leading.clamp(min=0)[:, None]
        loss = losses.leading_loss(fractions.gather(1, leads)[:, 0], fractions.gather(1, 1 - leads)[:, 0])
        return {"leading": self.recipe.leading_weight * loss * (batch.leading != UNKNOWN)}

    def activations(self, logits: DenseLogits, lung: Tensor) -> Tensor:
        return torch.cat([part.sigmoid() for part in logits], dim=1) * lung

    def predictions(self, logits: DenseLogits, batch: Batch) -> Prediction:
        if batch.suspect is None:
            percentages = 100 * torch.cat([lung_mean(part.double().sigmoid(), batch.lung) for part in logits], dim=1).cpu()
        else:
            percentages = _percentages_where_suspect([part.sigmoid().cpu() for part in logits], batch)
        percentages = percentages.clamp(0, 100).round(decimals=PERCENTAGE_DECIMALS)
        scores = [[subtype.score(value) for subtype, value in zip(SUBTYPES, row, strict=True)] for row in percentages.tolist()]
        return Prediction(torch.tensor(scores), percentages)


class RegressionStrategy(PercentageStrategy):
    """L = L_INT + L_OL + L_SEG ("regression training"), each weighted as the recipe says."""

    def terms(self, logits: DenseLogits, batch: Batch) -> dict[str, Tensor]:
        maps = [part.sigmoid() for part in logits]
        return self.percentage_terms(logits, maps, batch) | self._map_terms(maps, batch)

    def _map_terms(self, maps: Sequence[Tensor], batch: Batch) -> dict[str, Tensor]:
        centrilobular, paraseptal = maps
        recipe = self.recipe
        target = batch.low_attenuation.to(centrilobular.dtype)
        if recipe.empty_target_if_absent:
            target = target * (batch.scores != 0).any(dim=1).to(target.dtype).view(-1, 1, 1, 1, 1)
        lung = batch.lung.to(centrilobular.dtype)
        region = lung if recipe.overlap_in_lung else None
        segmentation = losses.segmentation_loss(
            centrilobular,
            paraseptal,
            target,
            recipe.smoothness,
            lung=lung if recipe.smoothness_in_lung else None,
            foreground=recipe.segmentation_foreground,
            label_smoothing=recipe.label_smoothing,
        )
        overlap = recipe.overlap_weight * losses.overlap_loss(centrilobular, paraseptal, region)
        return {"overlap": overlap, "segmentation": segmentation}


class VoxelStrategy(PercentageStrategy):
    """Truth maps in place of L_INT, L_OL and L_SEG: cross-entropy, soft Dice and, weighted as the interval loss, the error of
    the mean, of each map inside the lung. A case without truth maps has the terms of its percentages alone."""

    def terms(self, logits: DenseLogits, batch: Batch) -> dict[str, Tensor]:
        maps = [part.sigmoid() for part in logits]
        with_truth = batch.has_truth.to(maps[0].dtype)
        voxels = {name: term * with_truth for name, term in self._voxel_terms(logits, maps, batch).items()}
        return voxels | {name: term * (1 - with_truth) for name, term in self.percentage_terms(logits, maps, batch).items()}

    def _voxel_terms(self, logits: DenseLogits, maps: Sequence[Tensor], batch: Batch) -> dict[str, Tensor]:
        assert batch.truth is not None, "the dataset was asked for truth maps"
        region = batch.lung.to(maps[0].dtype)
        terms = {}
        for place, subtype in enumerate(SUBTYPES):
            truth = batch.truth[:, place : place + 1]
            terms[f"cross_entropy_{subtype.name}"] = losses.voxel_cross_entropy(logits[place], truth, region)
            terms[f"dice_{subtype.name}"] = losses.voxel_dice_loss(maps[place], truth, region)
            extent = losses.extent_loss(maps[place], truth, region)
            terms[f"extent_{subtype.name}"] = self.recipe.interval_weight * extent
        return terms


def _percentages_where_suspect(maps: list[Tensor], batch: Batch) -> Tensor:
    """As inference does it for profiles with a suspect mask: the maps are brought to the input's grid first."""
    assert batch.suspect is not None
    assert batch.input_lung is not None
    everywhere = (slice(None),) * 3
    rows = []
    for case in range(len(batch.image)):
        labels, suspect = (mask[case, 0].cpu().numpy() for mask in (batch.input_lung, batch.suspect))
        prepared = NetworkInput(batch.image[case : case + 1], labels.astype(np.uint8), suspect, everywhere)
        finished: ActivationMaps = finish(maps[0][case : case + 1], maps[1][case : case + 1], prepared)
        inside = torch.from_numpy(finished.labels) > 0
        rows.append([100 * float(part[inside].double().mean()) for part in (finished.centrilobular, finished.paraseptal)])
    return torch.tensor(rows, dtype=torch.float64)


class ClassificationStrategy(Strategy):
    """Cross-entropy of each subtype's scores, weighted by class ("classification training").

    The weights start at the inverse frequency of each score in the training set and are updated after each epoch; on the
    validation set they stay as they started. A score that is not known counts nothing.

    Args:
        recipe: the options.
        counts: cases of each score in the training set, centrilobular and paraseptal.
    """

    head: HeadName = "classification"

    def __init__(self, recipe: Recipe, counts: tuple[Tensor, Tensor]) -> None:
        super().__init__()
        self.recipe = recipe
        initial = losses.clipped_balanced_weights if recipe.clipped_class_weights else losses.inverse_frequency_weights
        for subtype, count in zip(SUBTYPES, counts, strict=True):
            weights = initial(count)
            self.register_buffer(f"{subtype.name}_initial_weights", weights)
            self.register_buffer(f"{subtype.name}_weights", weights.clone())

    def terms(self, logits: DenseLogits, batch: Batch) -> dict[str, Tensor]:
        return self._cross_entropies(logits, batch, "weights")

    def validation_terms(self, logits: DenseLogits, batch: Batch) -> dict[str, Tensor]:
        return self._cross_entropies(logits, batch, "initial_weights")

    def _cross_entropies(self, logits: DenseLogits, batch: Batch, weights: str) -> dict[str, Tensor]:
        is_scored, rows = batch.scores != UNKNOWN, batch.scores.clamp(min=0)
        return {
            f"cross_entropy_{subtype.name}": losses.weighted_cross_entropy(
                logits[place].mean(dim=(2, 3, 4)),
                rows[:, place],
                self.get_buffer(f"{subtype.name}_{weights}"),
                counted=is_scored[:, place],
                divided=self.recipe.divide_class_weights,
            )
            for place, subtype in enumerate(SUBTYPES)
        }

    def activations(self, logits: DenseLogits, lung: Tensor) -> Tensor:
        return torch.cat([class_activation_map(part, lung) for part in logits], dim=1)

    def predictions(self, logits: DenseLogits, _: Batch) -> Prediction:
        scores = self.training_scores(logits).cpu()
        return Prediction(scores, torch.full(scores.shape, math.nan, dtype=torch.float64))

    def training_scores(self, logits: DenseLogits) -> Tensor:
        return torch.stack([class_probabilities(part).argmax(dim=1) for part in logits], dim=1)

    def finish_epoch(self, right: Sequence[Tensor], seen: Sequence[Tensor]) -> None:
        for subtype, hits, cases in zip((CENTRILOBULAR, PARASEPTAL), right, seen, strict=True):
            initial, current = (self.get_buffer(f"{subtype.name}_{name}") for name in ("initial_weights", "weights"))
            accuracy = (hits / cases).to(initial.device)
            if self.recipe.cumulative_class_weights:
                current.copy_(losses.accumulated_class_weights(current, accuracy))
            else:
                current.copy_(losses.updated_class_weights(initial, accuracy))
