"""Agreement of scores: the figures of the paper's Tables 2 to 4, and how sure they are."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import norm
from sklearn.metrics import accuracy_score, cohen_kappa_score, confusion_matrix, f1_score, precision_recall_fscore_support

from ..fleischner import Subtype
from .pairing import Pairs, Scores

LEAST_SPREAD = 1e-12
"""Up to this, the variance in `kappa_standard_error` is 0: rounding leaves as much of the difference of equal numbers."""

AGREEMENT_WORDS = ((0.20, "slight"), (0.40, "fair"), (0.60, "moderate"), (0.80, "good"), (math.inf, "excellent"))
"""Largest kappa that each word stands for (Kundel and Polansky, Radiology 2003)."""

RESAMPLES = 10_000
LEVEL = 0.95

Counts = npt.NDArray[np.int64]
Interval = tuple[float, float]


@dataclass(frozen=True)
class Bootstrap:
    """How confidence intervals are drawn: bootstrap of cases, percentile method; the same seed gives the same intervals."""

    seed: int = 0
    resamples: int = RESAMPLES

    def tables(self, counts: Counts) -> Counts:
        """Draw tables of counts as resampling the cases behind `counts` with replacement would give them.

        Args:
            counts: any shape; how many cases fall into each cell.

        Returns:
            `resamples` x the shape of `counts`.
        """
        generator = np.random.default_rng(self.seed)
        drawn = generator.multinomial(counts.sum(), counts.ravel() / counts.sum(), size=self.resamples)
        return drawn.reshape(self.resamples, *counts.shape)


@dataclass(frozen=True)
class GradeFigures:
    """How one grade is told from the others; figures are None where they are not defined.

    Attributes:
        reference, predicted: how many cases have it by the reference, by the predictions.
        precision, recall, f_measure: 0 to 1.
    """

    score: int
    severity: str
    reference: int
    predicted: int
    precision: float | None
    recall: float | None
    f_measure: float | None


@dataclass(frozen=True)
class Agreement:
    """Agreement of one subtype's scores with the reference; shares are fractions, 0 to 1.

    Attributes:
        n: cases.
        accuracy: share of scores that are right.
        f_measure: macro average over the grades that occur.
        linear_weighted_kappa: at most 1; None where it is not defined (every score of both sides is the same).
        linear_weighted_kappa_ci95: large-sample interval, cut at -1 and 1; None where the standard error is estimated as 0
            although the scores differ (one side has a single grade, or there are a handful of cases).
        agreement: kappa in a word, slight to excellent.
        accuracy_bootstrap_ci95, linear_weighted_kappa_bootstrap_ci95: intervals by resampling the cases; None where
            no sample has the figure.
        off_by_one, off_by_more: share of predictions one grade, and two grades or more, from the reference.
        critical_errors: share of cases with the lowest grade read as the top one, or the reverse.
        confusion_matrix: rows are predictions, columns the reference, as in the paper's Table 3.
        per_grade: mildest first.
    """

    n: int
    accuracy: float
    accuracy_bootstrap_ci95: Interval | None
    f_measure: float
    linear_weighted_kappa: float | None
    linear_weighted_kappa_ci95: Interval | None
    linear_weighted_kappa_bootstrap_ci95: Interval | None
    agreement: str | None
    off_by_one: float
    off_by_more: float
    critical_errors: float
    confusion_matrix: tuple[tuple[int, ...], ...]
    per_grade: tuple[GradeFigures, ...]

    def as_document(self) -> dict[str, Any]:
        """For `metrics.json`."""
        return asdict(self)


@dataclass(frozen=True)
class Difference:
    """Figures of one result minus those of another on the same cases, with paired bootstrap intervals.

    Attributes:
        n: cases that both have.
        accuracy: difference of accuracies, -1 to 1.
        linear_weighted_kappa: difference of kappas; None where one is not defined.
    """

    n: int
    accuracy: float
    accuracy_ci95: Interval | None
    linear_weighted_kappa: float | None
    linear_weighted_kappa_ci95: Interval | None

    def as_document(self) -> dict[str, Any]:
        """For `metrics.json`."""
        return asdict(self)


def measure_agreement(pairs: Pairs, bootstrap: Bootstrap) -> Agreement:
    """Measure the agreement of one subtype's pairs, of which there must be one at least."""
    reference, predicted, subtype = pairs.reference, pairs.predicted, pairs.subtype
    grades = [grade.score for grade in subtype.grades]
    table = confusion_matrix(reference, predicted, labels=grades).T
    resampled = bootstrap.tables(table)
    distance = np.abs(reference - predicted)
    kappa = kappa_ci = kappa_bootstrap_ci = None
    if np.ptp([reference, predicted]) > 0:
        kappa = float(cohen_kappa_score(reference, predicted, labels=grades, weights="linear"))
        half = norm.ppf((1 + LEVEL) / 2) * kappa_standard_error(table)
        if half > 0 or kappa == 1:
            kappa_ci = (max(kappa - half, -1.0), min(kappa + half, 1.0))
        kappa_bootstrap_ci = interval(linear_weighted_kappas(resampled))
    return Agreement(
        n=len(reference),
        accuracy=float(accuracy_score(reference, predicted)),
        accuracy_bootstrap_ci95=interval(accuracies(resampled)),
        f_measure=float(f1_score(reference, predicted, average="macro")),
        linear_weighted_kappa=kappa,
        linear_weighted_kappa_ci95=kappa_ci,
        linear_weighted_kappa_bootstrap_ci95=kappa_bootstrap_ci,
        agreement=None if kappa is None else agreement_word(kappa),
        off_by_one=float(np.mean(distance == 1)),
        off_by_more=float(np.mean(distance > 1)),
        critical_errors=float(np.mean(distance == grades[-1])),
        confusion_matrix=tuple(tuple(map(int, row)) for row in table),
        per_grade=_per_grade(reference, predicted, subtype),
    )


def measure_difference(pairs: Pairs, other: Pairs, bootstrap: Bootstrap) -> Difference | None:
    """Compare two results on the scans that both have (and the reference, which is the same in both); None without any."""
    theirs = dict(zip(other.entities, other.predicted, strict=True))
    shared = [place for place, entity in enumerate(pairs.entities) if entity in theirs]
    if not shared:
        return None
    grades = len(pairs.subtype.grades)
    table = np.zeros((grades, grades, grades), np.int64)  # by this result, by the other, by the reference
    others = [theirs[pairs.entities[place]] for place in shared]
    np.add.at(table, (pairs.predicted[shared], others, pairs.reference[shared]), 1)

    def difference(figure: Callable[[Counts], npt.NDArray[np.float64]], tables: Counts) -> npt.NDArray[np.float64]:
        return figure(tables.sum(axis=-2)) - figure(tables.sum(axis=-3))

    resampled = bootstrap.tables(table)
    kappa = float(difference(linear_weighted_kappas, table))
    defined = bool(np.isfinite(kappa))
    return Difference(
        n=len(shared),
        accuracy=float(difference(accuracies, table)),
        accuracy_ci95=interval(difference(accuracies, resampled)),
        linear_weighted_kappa=kappa if defined else None,
        linear_weighted_kappa_ci95=interval(difference(linear_weighted_kappas, resampled)) if defined else None,
    )


def agreement_word(kappa: float) -> str:
    """Kappa in a word: slight up to 0.20, fair to 0.40, moderate to 0.60, good to 0.80, excellent above."""
    return next(word for largest, word in AGREEMENT_WORDS if kappa <= largest)


def accuracies(tables: Counts) -> npt.NDArray[np.float64]:
    """Accuracy of each table of counts (... x K x K); 0 to 1."""
    return np.trace(tables, axis1=-2, axis2=-1) / tables.sum(axis=(-2, -1))


def linear_weighted_kappas(tables: Counts) -> npt.NDArray[np.float64]:
    """Linear weighted kappa of each table of counts (... x K x K); nan where it is not defined.

    With d = |i - j|: 1 - (mean of d over the cases) / (mean of d if both sides were independent); Cohen 1968.
    """
    shares = tables / tables.sum(axis=(-2, -1), keepdims=True)
    grade = np.arange(tables.shape[-1])
    distance = np.abs(grade[:, None] - grade)
    independent = shares.sum(axis=-1, keepdims=True) * shares.sum(axis=-2, keepdims=True)
    observed, expected = ((distance * part).sum(axis=(-2, -1)) for part in (shares, independent))
    with np.errstate(invalid="ignore"):
        return 1 - observed / expected


def kappa_standard_error(table: Counts) -> float:
    """Large-sample standard error of linear weighted kappa; Fleiss, Cohen and Everitt, Psychological Bulletin 1969.

    With shares p_ij of N cases, weights w_ij = 1 - |i - j| / (K - 1), agreement by chance p_e, and w_i and w_j the means of
    the weights of row i and of column j over the other side's shares:
    sqrt((sum p_ij (w_ij - (w_i + w_j) (1 - kappa))^2 - (kappa - p_e (1 - kappa))^2) / N) / (1 - p_e).

    Args:
        table: K x K counts for which kappa is defined.
    """
    cases = table.sum()
    shares = table / cases
    grade = np.arange(len(table))
    weights = 1 - np.abs(grade[:, None] - grade) / (len(table) - 1)
    rows, columns = shares.sum(axis=1), shares.sum(axis=0)
    chance = float(rows @ weights @ columns)
    kappa = (float((weights * shares).sum()) - chance) / (1 - chance)
    means = (weights @ columns)[:, None] + rows @ weights
    spread = float((shares * (weights - means * (1 - kappa)) ** 2).sum()) - (kappa - chance * (1 - kappa)) ** 2
    return float(np.sqrt(spread / cases) / (1 - chance)) if spread > LEAST_SPREAD else 0.0


def interval(values: npt.NDArray[np.float64]) -> Interval | None:
    """The middle 95 % of resampled values; those that are not defined are left out. None if none is."""
    if np.isnan(values).all():
        return None
    low, high = np.nanpercentile(values, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return float(low), float(high)


def _per_grade(reference: Scores, predicted: Scores, subtype: Subtype) -> tuple[GradeFigures, ...]:
    grades = [grade.score for grade in subtype.grades]
    figures = precision_recall_fscore_support(reference, predicted, labels=grades, zero_division=np.nan)[:3]
    return tuple(
        GradeFigures(
            grade.score,
            grade.severity,
            int(np.count_nonzero(reference == grade.score)),
            int(np.count_nonzero(predicted == grade.score)),
            *(float(values[grade.score]) if np.isfinite(values[grade.score]) else None for values in figures),
        )
        for grade in subtype.grades
    )
