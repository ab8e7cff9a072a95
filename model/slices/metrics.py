"""Accuracy, precision and recall of slice classification, with 95 % intervals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from . import CLASSES

CONFIDENCE = 0.95
RESAMPLES = 2000
"""Draws of patients that give an interval."""

Counts = npt.NDArray[np.int64]
"""... x classes x classes: slices of each class (rows) by the answer (columns)."""


@dataclass(frozen=True)
class Rate:
    """A share of some slices, in percent, with its 95 % interval; None where there are no slices to take it of."""

    percent: float | None
    low: float | None
    high: float | None

    def __str__(self) -> str:
        return "none" if self.percent is None else f"{self.percent:.1f} ({self.low:.1f} to {self.high:.1f})"


@dataclass(frozen=True)
class CurvePoint:
    """What was measured after an epoch of training.

    Attributes:
        loss: its mean in training.
        validation_loss, validation_accuracy: cross-entropy and share of right answers, 0 to 1, on the slices set aside; of the
            paper's networks on those that say when to stop, None where there are none.
    """

    epoch: int
    loss: float
    validation_loss: float | None
    validation_accuracy: float | None


@dataclass(frozen=True)
class Performance:
    """What a network did on the slices set aside; all in percent.

    Attributes:
        accuracy: share of the slices whose class was found. Where patients are known, its interval is a bootstrap of
            patients: slices of one patient are alike, and tell less than as many patients would.
        precision, recall: means over the classes; of a class that was never answered, the precision counts as 0.
        class_precision, class_recall: of each class, with Wilson's intervals, which take slices for independent.
        confusion: slices of each class (rows) by the answer (columns), in the order of `CLASSES`.
    """

    accuracy: Rate
    precision: float
    recall: float
    class_precision: dict[str, Rate]
    class_recall: dict[str, Rate]
    confusion: list[list[int]]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def measure(
    truth: npt.NDArray[np.int64], answers: npt.NDArray[np.int64], patients: npt.NDArray[np.str_] | None = None
) -> Performance:
    """Compare answers with the truth: indices into `CLASSES` of the same slices; `patients` of each, where known."""
    count = len(CLASSES)
    confusion = _confusions(truth, answers, np.zeros_like(truth))[0]
    right = np.diag(confusion)
    precision = [wilson(int(right[k]), int(confusion[:, k].sum())) for k in range(count)]
    recall = [wilson(int(right[k]), int(confusion[k].sum())) for k in range(count)]
    known = [k for k in range(count) if confusion[k].any()]
    return Performance(
        accuracy=wilson(int(right.sum()), len(truth)) if patients is None else by_patient(accuracy, truth, answers, patients),
        precision=float(np.mean([precision[k].percent or 0.0 for k in known])),
        recall=100 * float(balanced_accuracy(confusion)),
        class_precision=dict(zip(CLASSES, precision, strict=True)),
        class_recall=dict(zip(CLASSES, recall, strict=True)),
        confusion=confusion.tolist(),
    )


def wilson(successes: int, trials: int) -> Rate:
    """A share with Wilson's score interval (J Am Stat Assoc 1927), which holds for few trials and for 0 and 100 %."""
    if trials == 0:
        return Rate(None, None, None)
    interval = stats.binomtest(successes, trials).proportion_ci(CONFIDENCE, "wilson")
    return Rate(100 * successes / trials, 100 * float(interval.low), 100 * float(interval.high))


def accuracy(confusion: Counts) -> npt.NDArray[np.float64]:
    """The share of right answers, 0 to 1, in each confusion matrix."""
    return np.asarray(confusion.trace(axis1=-2, axis2=-1) / confusion.sum(axis=(-2, -1)))


def balanced_accuracy(confusion: Counts) -> npt.NDArray[np.float64]:
    """The mean recall, 0 to 1, of the classes that have slices in each confusion matrix."""
    slices = confusion.sum(axis=-1)
    recalls = np.diagonal(confusion, axis1=-2, axis2=-1) / np.maximum(slices, 1)
    return np.asarray(recalls.sum(axis=-1) / np.count_nonzero(slices, axis=-1))


def by_patient(
    rate: Callable[[Counts], npt.NDArray[np.float64]],
    truth: npt.NDArray[np.int64],
    answers: npt.NDArray[np.int64],
    owners: npt.NDArray[np.str_] | npt.NDArray[np.int64],
) -> Rate:
    """A rate, with the percentile interval from drawing as many patients as there are, with replacement. Where all are
    right, or none, that interval has no width: it is Wilson's, of as many patients.

    Args:
        rate: `accuracy` or `balanced_accuracy`.
        truth, answers: indices into `CLASSES` of the same slices.
        owners: the patient of each slice; where patients are not known, a number of its own.
    """
    _, owner = np.unique(owners, return_inverse=True)
    confusions = _confusions(truth, answers, owner)
    count = len(confusions)
    drawn = np.random.default_rng(0).integers(count, size=(RESAMPLES, count))
    times = np.array([np.bincount(patients, minlength=count) for patients in drawn])
    rates = rate(np.tensordot(times, confusions, axes=1))
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(100 * rates, (tail, 100 - tail))
    found = 100 * float(rate(confusions.sum(axis=0)))
    if low == high and found in (0, 100):
        return wilson(count if found else 0, count)
    return Rate(found, float(low), float(high))


def _confusions(truth: npt.NDArray[np.int64], answers: npt.NDArray[np.int64], owner: npt.NDArray[np.int64]) -> Counts:
    """The confusion matrix of each owner, who are numbered from 0."""
    confusions = np.zeros((int(owner.max(initial=0)) + 1, len(CLASSES), len(CLASSES)), np.int64)
    np.add.at(confusions, (owner, truth, answers), 1)
    return confusions
