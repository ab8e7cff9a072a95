"""How sure an answer may be: temperature, reliability, and the probability below which there is no answer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

BINS = 10
RIGHT_SHARE = 0.95
"""Of the slices that get a class, this share is right on the validation slices."""
MOST_UNCERTAIN = 0.25
"""At most this share of the validation slices gets none, even if fewer are right then."""


def fit_temperature(logits: npt.NDArray[np.float64], labels: npt.NDArray[np.int64]) -> float:
    """The number that logits are divided by, for the least cross-entropy (Guo et al., ICML 2017).

    Args:
        logits: N x 4, of slices that the network was not trained on.
        labels: N class indices.
    """

    def loss(logarithm: float) -> float:
        scaled = log_softmax(logits / np.exp(logarithm), axis=1)
        return -float(scaled[np.arange(len(labels)), labels].mean())

    return float(np.exp(minimize_scalar(loss, bounds=(-2.0, 2.0), method="bounded").x))


def choose_threshold(probabilities: npt.NDArray[np.float64], labels: npt.NDArray[np.int64]) -> float:
    """The lowest probability from which on 95 % of the answers are right, but at most one that leaves 25 % without answer.

    Args:
        probabilities: N x 4, of slices that the network was not trained on.
    """
    order = np.argsort(-probabilities.max(axis=1))
    highest = probabilities.max(axis=1)[order]
    right = (probabilities.argmax(axis=1) == labels)[order]
    shares = np.cumsum(right) / np.arange(1, len(right) + 1)
    enough = np.flatnonzero(shares >= RIGHT_SHARE)
    answered = max(int(enough[-1]) + 1 if enough.size else 0, int(np.ceil((1 - MOST_UNCERTAIN) * len(right))))
    return float(highest[min(answered, len(right)) - 1])


@dataclass(frozen=True)
class ReliabilityBin:
    """Slices whose highest probability lies in one range.

    Attributes:
        low, high: the range.
        count: of slices.
        confidence: mean of their highest probabilities; 0 where there are none.
        accuracy: share of them that is right; 0 where there are none.
    """

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


def reliability(
    probabilities: npt.NDArray[np.float64], labels: npt.NDArray[np.int64], bins: int = BINS
) -> list[ReliabilityBin]:
    """The reliability diagram's bars, of equal width from 0 to 1."""
    highest = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    index = np.minimum((highest * bins).astype(int), bins - 1)
    result = []
    for number in range(bins):
        chosen = index == number
        count = int(chosen.sum())
        confidence, accuracy = (float(highest[chosen].mean()), float(right[chosen].mean())) if count else (0.0, 0.0)
        result.append(ReliabilityBin(number / bins, (number + 1) / bins, count, confidence, accuracy))
    return result


def calibration_error(bars: list[ReliabilityBin]) -> float:
    """Expected calibration error: the mean distance of confidence and accuracy, weighted by the bins' counts."""
    total = sum(bar.count for bar in bars)
    return sum(bar.count * abs(bar.confidence - bar.accuracy) for bar in bars) / max(total, 1)
