from __future__ import annotations

import numpy as np
import pytest

from model.evaluation.pairing import Pairs
from model.evaluation.percentages import intraclass_correlation, measure_percentages
from model.fleischner import CENTRILOBULAR

REFERENCE = [0.0, 2.1, 6.2, 14.9, 33.0]
PREDICTED = [0.4, 3.0, 4.8, 17.2, 25.1]


def pairs_of(reference: list[float], predicted: list[float]) -> Pairs:
    entities = tuple(map(str, range(len(reference))))
    scores = np.zeros(len(reference), np.int64)
    return Pairs(CENTRILOBULAR, entities, scores, scores, np.array(reference), np.array(predicted))


def test_intraclass_correlation_is_that_of_shrout_and_fleiss() -> None:
    """Six targets and four judges, Psychological Bulletin 1979, Table 2; their ICC(2,1) is .29."""
    ratings = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]], float)
    assert intraclass_correlation(ratings) == pytest.approx(0.289764, abs=1e-6)  # six digits by the package pingouin


def test_figures_of_a_few_cases_are_those_worked_out_by_hand() -> None:
    figures = measure_percentages(pairs_of(REFERENCE, PREDICTED))
    assert figures is not None
    assert figures.n == 5
    assert figures.mean_absolute_error_points == pytest.approx((0.4 + 0.9 + 1.4 + 2.3 + 7.9) / 5)
    assert figures.bias_points == pytest.approx((0.4 + 0.9 - 1.4 + 2.3 - 7.9) / 5)
    assert figures.intraclass_correlation == pytest.approx(0.951396, abs=1e-6)  # by the package pingouin, ICC(A,1)
    squares = [(difference + 1.14) ** 2 for difference in (0.4, 0.9, -1.4, 2.3, -7.9)]
    half = 1.96 * (sum(squares) / 4) ** 0.5
    assert figures.limits_of_agreement_points == pytest.approx((-1.14 - half, -1.14 + half))


def test_a_constant_shift_lowers_the_intraclass_correlation() -> None:
    figures = measure_percentages(pairs_of([1.0, 2.0, 3.0], [11.0, 12.0, 13.0]))
    assert figures is not None
    assert figures.limits_of_agreement_points == pytest.approx((10, 10))
    assert figures.intraclass_correlation == pytest.approx(1 / 51)  # variance of cases 1, of the shift 50


def test_cases_without_a_percentage_on_both_sides_are_left_out() -> None:
    figures = measure_percentages(pairs_of([*REFERENCE, float("nan"), 7.0], [*PREDICTED, 9.0, float("nan")]))
    assert figures == measure_percentages(pairs_of(REFERENCE, PREDICTED))
    assert measure_percentages(pairs_of([float("nan")], [3.0])) is None


def test_what_is_not_defined_is_none() -> None:
    one = measure_percentages(pairs_of([3.0], [4.0]))
    assert one is not None
    assert (one.n, one.mean_absolute_error_points, one.intraclass_correlation, one.limits_of_agreement_points) == (
        1,
        1,
        None,
        None,
    )
    exchanged = measure_percentages(pairs_of([10.1, 20.3], [20.3, 10.1]))
    assert exchanged is not None
    assert exchanged.mean_absolute_error_points == pytest.approx(10.2)
    assert exchanged.intraclass_correlation is None
    equal = measure_percentages(pairs_of([0.0, 0.0], [0.0, 0.0]))
    assert equal is not None
    assert equal.intraclass_correlation is None
