"""The training losses of Xie et al. (Sci Rep 2023), one pure function an equation, and the class weights that go with them.

Every loss returns one number a case (B); sums over voxels are means over the voxels of that case, so that a loss does not
depend on the size of the maps and no term drowns another (the paper prints a sum in equation 3). Means over a batch come
last. Losses are computed in the type of their arguments: hand them float32. Percentages are fractions of the lung, 0 to 1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from ..fleischner import Subtype

EPSILON = 1e-6
"""Smallest argument of a logarithm or of a fractional power, and smallest denominator."""

LEADING_FLOOR = 1e-3
"""Added to both fractions before they are compared."""


def percentage_intervals(subtype: Subtype, *, absent_is_zero: bool = False) -> Tensor:
    """The interval (r_l, r_u) of every score, from Table 1: K x 2 fractions of the lung, float32.

    Args:
        subtype: centrilobular or paraseptal.
        absent_is_zero: whether score 0 means exactly 0, instead of 0 to 1 percent.
    """
    intervals = torch.tensor([(grade.lower / 100, grade.upper / 100) for grade in subtype.grades])
    if absent_is_zero:
        intervals[0] = 0
    return intervals


def interval_loss(fraction: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Equation 1: 0 inside the interval; outside, the squared distance to its middle less that of its ends.

    K = (0.5 (r_l - r_u))^2 and L_INT = max(0, (p - 0.5 (r_l + r_u))^2 - K).

    Args:
        fraction: p, fractions of the lung; B.
        lower: r_l; B.
        upper: r_u; B.

    Returns:
        B losses, 0 to 1.
    """
    half_width = (0.5 * (lower - upper)) ** 2
    return ((fraction - 0.5 * (lower + upper)) ** 2 - half_width).clamp(min=0)


def power_law(fraction: Tensor, scale: float, exponent: float) -> Tensor:
    """scale * p^exponent: with an exponent below 1 it spreads the low grades out. With 1 and 1 it changes nothing.

    Below `EPSILON` the slope of the power is without bounds, so that p is raised to at least that, except for p = 0 itself,
    which stays 0 (a target).
    """
    if (scale, exponent) == (1.0, 1.0):
        return fraction
    raised = scale * fraction.clamp(min=EPSILON) ** exponent
    return torch.where(fraction > 0, raised, torch.zeros_like(raised))


def leading_loss(leader: Tensor, other: Tensor) -> Tensor:
    """0 where the predominant subtype's percentage is at least twice the other's; else the logarithm of what is missing.

    max(0, log((p_other + f) / (p_leader + f)) + log 2), with f = `LEADING_FLOOR`: what is absent of both says little. For
    scans of which a reader said which type is predominant; the paper has no such labels.

    Args:
        leader: fractions of the lung of the predominant subtype; B.
        other: of the other one; B.

    Returns:
        B losses, from 0.
    """
    return (((other + LEADING_FLOOR) / (leader + LEADING_FLOOR)).log() + math.log(2)).clamp(min=0)


def overlap_loss(centrilobular: Tensor, paraseptal: Tensor, region: Tensor | None = None) -> Tensor:
    """Equation 2: the soft Dice coefficient between the two maps, 2 sum(p_C p_S) / (sum(p_C) + sum(p_S)).

    Args:
        centrilobular: p_C, B x 1 x Z x Y x X, 0 to 1.
        paraseptal: p_S, likewise.
        region: B x 1 x Z x Y x X, 1 where voxels count and 0 elsewhere; None: everywhere, as printed.

    Returns:
        B losses, 0 (no overlap, or both maps empty) to 1.
    """
    if region is not None:
        centrilobular, paraseptal = centrilobular * region, paraseptal * region
    axes = (1, 2, 3, 4)
    shared = (centrilobular * paraseptal).sum(axes)
    return 2 * shared / (centrilobular.sum(axes) + paraseptal.sum(axes)).clamp(min=EPSILON)


def segmentation_loss(
    centrilobular: Tensor,
    paraseptal: Tensor,
    target: Tensor,
    smoothness: float,
    *,
    lung: Tensor | None = None,
    foreground: float = 0.5,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Equation 3: cross-entropy between the union of the two maps and the low-attenuation areas, mean over the map's voxels.

    p = min(max(0, p_C + p_S), 1) and L_SEG = mean(-s log(p t + (1 - p) (1 - t))). The target is 0 outside the lung, so that
    maps are taught to be silent there. The logarithm's argument is raised to at least `EPSILON` (a loss of 13.8 s). Where
    p_C + p_S exceeds 1 the clamp lets no gradient through, as printed.

    The paper calls s a smoothness factor and cites label smoothing for it; as printed, s scales the loss and smooths nothing.
    Label smoothing moves the target instead: t' = (1 - e) t + e / 2 and L_SEG = mean(-s (t' log p + (1 - t') log(1 - p))).

    Args:
        centrilobular: p_C, B x 1 x Z x Y x X, 0 to 1.
        paraseptal: p_S, likewise.
        target: t, B x 1 x Z x Y x X, 1 where the CT lies below -950 HU inside the lung and 0 elsewhere, on the maps' grid.
        smoothness: s.
        lung: B x 1 x Z x Y x X, 1 where s holds; elsewhere it is 1. None: s holds everywhere, as printed.
        foreground: a; the mean over voxels is weighted by a where t is 1, and by 1 - a elsewhere. 0.5: the plain mean.
        label_smoothing: e, 0 to below 1.

    Returns:
        B losses, from 0.
    """
    axes = (1, 2, 3, 4)
    union = (centrilobular + paraseptal).clamp(0, 1)
    if label_smoothing:
        soft = (1 - label_smoothing) * target + 0.5 * label_smoothing
        likelihood = soft * union.clamp(min=EPSILON).log() + (1 - soft) * (1 - union).clamp(min=EPSILON).log()
    else:
        likelihood = (union * target + (1 - union) * (1 - target)).clamp(min=EPSILON).log()
    likelihood = likelihood * (smoothness if lung is None else 1 + (smoothness - 1) * lung)
    if foreground == 0.5:
        return -likelihood.mean(axes)
    weights = (1 - foreground) + (2 * foreground - 1) * target
    return -(weights * likelihood).sum(axes) / weights.sum(axes)


def voxel_cross_entropy(logits: Tensor, truth: Tensor, region: Tensor) -> Tensor:
    """Binary cross-entropy between one dense map and its truth, mean over the voxels of `region` (for pretraining).

    Args:
        logits: B x 1 x Z x Y x X, before the sigmoid: safe at any value.
        truth: likewise; the fraction of the voxel that is emphysema, 0 to 1.
        region: likewise; 1 where voxels count.

    Returns:
        B losses, from 0.
    """
    entropy = functional.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    axes = (1, 2, 3, 4)
    return (entropy * region).sum(axes) / region.sum(axes).clamp(min=1)


def voxel_divergence(logits: Tensor, kept: Tensor, region: Tensor) -> Tensor:
    """How far one dense map is from another that shall be kept: Kullback-Leibler divergence, mean over the voxels of `region`.

    What a network knows already is kept so while it learns something else (Li and Hoiem, "Learning without Forgetting", 2016).

    Args:
        logits: B x 1 x Z x Y x X, before the sigmoid.
        kept: likewise; logits of the other.
        region: likewise; 1 where voxels count.

    Returns:
        B losses, from 0 (the maps are the same).
    """
    target = kept.sigmoid()
    return voxel_cross_entropy(logits, target, region) - voxel_cross_entropy(kept, target, region)


def voxel_dice_loss(activation: Tensor, truth: Tensor, region: Tensor, smooth: float = 100.0) -> Tensor:
    """1 less the soft Dice coefficient between one map and its truth inside `region` (for pretraining).

    Args:
        activation: B x 1 x Z x Y x X, 0 to 1.
        truth: likewise; the fraction of the voxel that is emphysema.
        region: likewise; 1 where voxels count.
        smooth: added to numerator and denominator, in voxels: a few stray voxels where nothing is cost little.

    Returns:
        B losses, 0 to 1.
    """
    axes = (1, 2, 3, 4)
    activation, truth = activation * region, truth * region
    return 1 - (2 * (activation * truth).sum(axes) + smooth) / (activation.sum(axes) + truth.sum(axes) + smooth)


def extent_loss(activation: Tensor, truth: Tensor, region: Tensor) -> Tensor:
    """How far the mean of one map inside `region` is from that of its truth (for pretraining): the error of its percentage.

    Args:
        activation: B x 1 x Z x Y x X, 0 to 1.
        truth: likewise; the fraction of the voxel that is emphysema.
        region: likewise; 1 where voxels count.

    Returns:
        B losses, 0 to 1.
    """
    return ((activation - truth) * region).sum((1, 2, 3, 4)).abs() / region.sum((1, 2, 3, 4)).clamp(min=1)


def weighted_cross_entropy(
    logits: Tensor, scores: Tensor, weights: Tensor, *, counted: Tensor | None = None, divided: bool = False
) -> Tensor:
    """Cross-entropy of pooled class logits times the weight of the true class ("classification training").

    Args:
        logits: B x K, dense logits averaged over the volume.
        scores: B, int64, 0 to K - 1.
        weights: K.
        counted: B, bool; cases that count, the others have a loss of 0. None: all of them.
        divided: whether losses are divided by the mean weight of the batch, as in torch's own weighted mean: their mean is then
            sum(w l) / sum(w), and with a batch of one the weights vanish.

    Returns:
        B losses, from 0.
    """
    factors = weights[scores] if counted is None else weights[scores] * counted
    if divided:
        factors = factors / factors.mean().clamp(min=EPSILON)
    return factors * functional.cross_entropy(logits, scores, reduction="none")


def inverse_frequency_weights(counts: Tensor) -> Tensor:
    """Class weights N / (K n_k), where K classes occur: 1 on average over the cases. A class that never occurs gets 0.

    Args:
        counts: n_k, cases of each class; K.
    """
    counts = counts.double()
    occurring = counts > 0
    weights = counts.sum() / (occurring.sum().clamp(min=1) * counts.clamp(min=1))
    return (weights * occurring).float()


def updated_class_weights(initial: Tensor, accuracy: Tensor, least_error: float = 0.05) -> Tensor:
    """Class weights for the next epoch: the initial ones times 1 - accuracy, on the initial mean.

    They start afresh from the initial weights each time: a running product would let a class that is hard for long, or easy
    once, run away.

    Args:
        initial: inverse class frequencies; K.
        accuracy: share of each class that the last epoch got right, 0 to 1; nan for a class without a case. K.
        least_error: what 1 - accuracy counts for at least, so that a class that was learnt is not forgotten.
    """
    error = (1 - accuracy.nan_to_num(0.0)).clamp(min=least_error)
    weights = initial * error
    return weights * initial.sum() / weights.sum().clamp(min=EPSILON)


def accumulated_class_weights(current: Tensor, accuracy: Tensor) -> Tensor:
    """Class weights for the next epoch as the published code has them: the current ones times 1 - accuracy, with the sum 1.

    Epochs add up: a class that was hard for long grows, and one that was right throughout an epoch has no weight ever after. If
    all were, the weights stay as they are.

    Args:
        current: weights of the epoch that has ended; K.
        accuracy: share of each class that it got right, 0 to 1; nan for a class without a case. K.
    """
    weights = current * (1 - accuracy.nan_to_num(0.0))
    total = weights.sum()
    return weights / total if total > EPSILON else current


def clipped_balanced_weights(counts: Tensor, low: float = 0.2, high: float = 0.8) -> Tensor:
    """Inverse class frequencies, normalised to sum 1, then clipped to `low` .. `high`: K. Classes without a case get `high`.

    Args:
        counts: cases of each class; K.
    """
    weights = inverse_frequency_weights(counts)
    weights = (weights / weights.sum()).clamp(low, high)
    return torch.where(counts > 0, weights, torch.full_like(weights, high))
