"""Agreement of percentages: how far from the reference, and whether by a shift."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .pairing import Pairs

LIMITS_OF_AGREEMENT = 1.96


@dataclass(frozen=True)
class PercentageAgreement:
    """Agreement of one subtype's percentages with the reference; a point is one percent of the lung.

    Attributes:
        n: cases for which both sides tell a percentage.
        mean_absolute_error_points: mean of |predicted - reference|.
        intraclass_correlation: see `intraclass_correlation`; None where it is not defined.
        bias_points: mean of predicted - reference.
        limits_of_agreement_points: bias -+ 1.96 standard deviations of the differences (Bland and Altman, Lancet 1986).
    """

    n: int
    mean_absolute_error_points: float
    intraclass_correlation: float | None
    bias_points: float
    limits_of_agreement_points: tuple[float, float] | None

    def as_document(self) -> dict[str, Any]:
        """For `metrics.json`."""
        return asdict(self)


def percentage_pairs(pairs: Pairs) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Reference and predicted percentages of the cases for which both sides tell one."""
    told = np.isfinite(pairs.reference_percentages) & np.isfinite(pairs.predicted_percentages)
    return pairs.reference_percentages[told], pairs.predicted_percentages[told]


def measure_percentages(pairs: Pairs) -> PercentageAgreement | None:
    """Measure the agreement of one subtype's percentages; None where no case has one on both sides."""
    reference, predicted = percentage_pairs(pairs)
    if not reference.size:
        return None
    difference = predicted - reference
    bias = float(difference.mean())
    limits = None
    if difference.size > 1:
        half = LIMITS_OF_AGREEMENT * float(difference.std(ddof=1))
        limits = (bias - half, bias + half)
    return PercentageAgreement(
        n=int(difference.size),
        mean_absolute_error_points=float(np.abs(difference).mean()),
        intraclass_correlation=intraclass_correlation(np.stack([reference, predicted], axis=1)),
        bias_points=bias,
        limits_of_agreement_points=limits,
    )


def intraclass_correlation(ratings: npt.NDArray[np.float64]) -> float | None:
    """Intraclass correlation of single ratings for absolute agreement, two-way random effects.

    ICC(2,1) of Shrout and Fleiss, Psychological Bulletin 1979; ICC(A,1) of McGraw and Wong 1996.

    Args:
        ratings: cases x raters.

    Returns:
        At most 1; None where it is not defined: fewer than two cases, no variance, or two cases whose ratings are exchanged.
    """
    cases, raters = ratings.shape
    if cases < 2 or np.ptp(ratings) == 0:
        return None
    grand, by_case, by_rater = ratings.mean(), ratings.mean(axis=1), ratings.mean(axis=0)
    residual = ratings - by_case[:, None] - by_rater + grand
    between_cases = raters * ((by_case - grand) ** 2).sum() / (cases - 1)
    between_raters = cases * ((by_rater - grand) ** 2).sum() / (raters - 1)
    error = (residual**2).sum() / ((cases - 1) * (raters - 1))
    total = between_cases + (raters - 1) * error + raters * (between_raters - error) / cases
    # With two raters, it is 0 for two cases whose ratings are exchanged; rounding may leave a trace.
    is_defined = total > 1e-12 * (between_cases + between_raters + error)
    return float((between_cases - error) / total) if is_defined else None
