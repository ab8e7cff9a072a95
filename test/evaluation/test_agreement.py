from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from model.evaluation.agreement import (
    Bootstrap,
    accuracies,
    agreement_word,
    kappa_standard_error,
    linear_weighted_kappas,
    measure_agreement,
    measure_difference,
)
from model.evaluation.pairing import Pairs
from model.fleischner import CENTRILOBULAR, PARASEPTAL, Subtype
from test.evaluation.paper import CLASSIFICATION_PSE, HUMPHRIES_CLE, REGRESSION_CLE, REGRESSION_PSE, Matrix
from test.evaluation.paper import pairs as paper_pairs

FEW = Bootstrap(seed=1, resamples=400)


def pairs_of(subtype: Subtype, reference: list[int], predicted: list[int]) -> Pairs:
    nothing = np.full(len(reference), np.nan)
    entities = tuple(f"case-{place:05d}" for place in range(len(reference)))
    return Pairs(subtype, entities, np.array(reference, np.int64), np.array(predicted, np.int64), nothing, nothing)


def paper(subtype: Subtype, matrix: Matrix) -> Pairs:
    reference, predicted = zip(*paper_pairs(matrix), strict=True)
    return pairs_of(subtype, list(reference), list(predicted))


@pytest.mark.parametrize(
    ("matrix", "error"),
    [
        (CLASSIFICATION_PSE, 0.009279093709008777),
        (REGRESSION_CLE, 0.005618577908929738),
        (HUMPHRIES_CLE, 0.005529466472989703),
        (((11, 3, 1), (2, 9, 4), (0, 2, 8)), 0.09687080815474845),
    ],
)
def test_the_standard_error_of_kappa_is_that_of_statsmodels(matrix: Matrix, error: float) -> None:
    """Values of `statsmodels.stats.inter_rater.cohens_kappa(table, wt="linear").std_kappa`."""
    assert kappa_standard_error(np.array(matrix)) == pytest.approx(error, rel=1e-9)


def test_kappas_of_many_tables_are_those_of_scikit_learn() -> None:
    tables = np.random.default_rng(0).integers(0, 20, (30, 6, 6))
    for table, kappa in zip(tables, linear_weighted_kappas(tables), strict=True):
        rows, columns = np.indices(table.shape)
        labels = [np.repeat(axis.ravel(), table.ravel()) for axis in (rows, columns)]
        assert kappa == pytest.approx(cohen_kappa_score(*labels, labels=range(6), weights="linear"), abs=1e-12)


def test_figures_of_a_few_cases_are_those_worked_out_by_hand() -> None:
    """Six cases; mean distance 4/6; if the two sides were independent, 34/36."""
    figures = measure_agreement(pairs_of(PARASEPTAL, [0, 0, 0, 1, 2, 2], [0, 1, 2, 1, 2, 1]), FEW)
    assert figures.n == 6
    assert figures.confusion_matrix == ((1, 0, 0), (1, 1, 1), (1, 0, 1))
    assert figures.accuracy == pytest.approx(3 / 6)
    assert figures.off_by_one == pytest.approx(2 / 6)
    assert figures.off_by_more == pytest.approx(1 / 6)
    assert figures.critical_errors == pytest.approx(1 / 6)
    assert figures.linear_weighted_kappa == pytest.approx(1 - (4 / 6) / (34 / 36))
    absent = figures.per_grade[0]
    assert (absent.severity, absent.reference, absent.predicted) == ("absent", 3, 1)
    assert (absent.precision, absent.recall, absent.f_measure) == pytest.approx((1, 1 / 3, 1 / 2))
    assert figures.f_measure == pytest.approx((1 / 2 + 1 / 2 + 1 / 2) / 3)


def test_a_gap_in_the_grades_still_counts_as_distance() -> None:
    """Only grades 0 and 5 occur, with one neighbour: distances are those of the scale, not of the grades that occur."""
    figures = measure_agreement(pairs_of(CENTRILOBULAR, [0, 0, 5, 5], [0, 4, 5, 5]), FEW)
    # mean distance 4/4; if independent: half of the cases each at 0 and 5; predicted 0, 4, 5, 5
    assert figures.linear_weighted_kappa == pytest.approx(1 - 1 / (0.5 * (0 + 4 + 5 + 5) / 4 + 0.5 * (5 + 1 + 0 + 0) / 4))
    assert figures.off_by_more == pytest.approx(1 / 4)
    assert figures.critical_errors == 0


def test_what_is_not_defined_is_none_and_not_a_number() -> None:
    figures = measure_agreement(pairs_of(CENTRILOBULAR, [2, 2, 2], [2, 2, 2]), FEW)
    assert figures.accuracy == 1
    assert figures.f_measure == 1
    assert figures.linear_weighted_kappa is None
    assert figures.linear_weighted_kappa_ci95 is None
    assert figures.linear_weighted_kappa_bootstrap_ci95 is None
    assert figures.agreement is None
    assert figures.per_grade[0].precision is None
    assert figures.per_grade[0].recall is None
    assert figures.per_grade[2].f_measure == 1
    # the one sample of the two cases is twice the same case
    rare = measure_agreement(pairs_of(CENTRILOBULAR, [0, 2], [0, 2]), Bootstrap(seed=3, resamples=1))
    assert (rare.linear_weighted_kappa, rare.linear_weighted_kappa_bootstrap_ci95) == (1, None)


def test_the_large_sample_interval_lies_within_the_range_of_kappa_and_is_none_without_a_standard_error() -> None:
    figures = measure_agreement(pairs_of(PARASEPTAL, [0] * 8 + [1] * 8 + [2] * 7, [0] * 8 + [1] * 7 + [2] * 8), FEW)
    assert figures.linear_weighted_kappa is not None
    error = kappa_standard_error(np.array(figures.confusion_matrix))
    assert figures.linear_weighted_kappa + 1.96 * error > 1
    low = figures.linear_weighted_kappa - 1.96 * error
    assert figures.linear_weighted_kappa_ci95 == pytest.approx((low, 1), abs=1e-4)
    perfect = measure_agreement(pairs_of(CENTRILOBULAR, [0, 1, 2], [0, 1, 2]), FEW)
    assert (perfect.linear_weighted_kappa, perfect.linear_weighted_kappa_ci95) == (1, (1, 1))
    apart = measure_agreement(pairs_of(CENTRILOBULAR, [3, 3, 3], [2, 2, 2]), FEW)
    assert (apart.linear_weighted_kappa, apart.linear_weighted_kappa_ci95) == (0, None)
    for count in range(3, 60):  # the variance is the difference of two equal numbers, which are rounded
        reference = [0, 1, 2] * count
        constant = measure_agreement(pairs_of(PARASEPTAL, [*reference, 0, 0, 1], [1] * (len(reference) + 3)), FEW)
        assert constant.linear_weighted_kappa == pytest.approx(0, abs=1e-12)
        assert constant.linear_weighted_kappa_ci95 is None


def test_a_grade_that_is_never_predicted_counts_as_zero_in_the_f_measure() -> None:
    figures = measure_agreement(pairs_of(PARASEPTAL, [0, 1], [0, 0]), FEW)
    assert figures.per_grade[1].precision is None
    assert figures.per_grade[1].f_measure == 0
    assert figures.f_measure == pytest.approx((2 / 3 + 0) / 2)


@pytest.mark.parametrize(
    ("kappa", "word"),
    [(-0.3, "slight"), (0.2, "slight"), (0.201, "fair"), (0.4, "fair"), (0.6, "moderate"), (0.8, "good"), (0.81, "excellent")],
)
def test_agreement_in_words_is_cut_where_the_paper_cuts_it(kappa: float, word: str) -> None:
    assert agreement_word(kappa) == word


def test_the_bootstrap_interval_is_that_of_the_large_sample_formula() -> None:
    figures = measure_agreement(paper(CENTRILOBULAR, REGRESSION_CLE), Bootstrap(seed=3, resamples=5000))
    assert figures.linear_weighted_kappa_ci95 is not None
    assert figures.linear_weighted_kappa_bootstrap_ci95 == pytest.approx(figures.linear_weighted_kappa_ci95, abs=0.001)
    half = 1.96 * math.sqrt(figures.accuracy * (1 - figures.accuracy) / 7143)
    assert figures.accuracy_bootstrap_ci95 == pytest.approx((figures.accuracy - half, figures.accuracy + half), abs=0.001)


def test_a_seed_gives_the_same_interval_again_and_another_seed_another() -> None:
    pairs = paper(PARASEPTAL, ((11, 3, 1), (2, 9, 4), (0, 2, 8)))
    again = [measure_agreement(pairs, Bootstrap(seed, 300)).linear_weighted_kappa_bootstrap_ci95 for seed in (5, 5, 6)]
    assert again[0] == again[1]
    assert again[0] != again[2]


def test_resampled_tables_hold_as_many_cases_and_none_that_was_not_seen() -> None:
    counts = np.array([[3, 0], [1, 6]])
    tables = Bootstrap(seed=0, resamples=500).tables(counts)
    assert tables.shape == (500, 2, 2)
    assert set(tables.sum(axis=(1, 2))) == {10}
    assert not tables[:, 0, 1].any()
    assert accuracies(tables).mean() == pytest.approx(0.9, abs=0.02)


def test_the_difference_of_a_result_to_itself_is_zero_without_doubt() -> None:
    pairs = paper(PARASEPTAL, REGRESSION_PSE)
    difference = measure_difference(pairs, pairs, FEW)
    assert difference is not None
    assert difference.accuracy == 0
    assert difference.accuracy_ci95 == (0, 0)
    assert difference.linear_weighted_kappa == pytest.approx(0, abs=1e-12)
    assert difference.linear_weighted_kappa_ci95 == pytest.approx((0, 0), abs=1e-12)


def test_the_difference_is_that_of_the_figures_and_its_interval_is_paired() -> None:
    """Classification and regression with equal visual scores case by case; results sorted alike are far from independent."""
    ours, theirs = paper(PARASEPTAL, REGRESSION_PSE), paper(PARASEPTAL, CLASSIFICATION_PSE)
    difference = measure_difference(ours, theirs, Bootstrap(seed=0, resamples=2000))
    assert difference is not None
    assert difference.n == 7143
    assert difference.accuracy == pytest.approx(0.6462 - 0.5912, abs=0.0002)
    assert difference.linear_weighted_kappa == pytest.approx(0.5207 - 0.4203, abs=0.0002)
    # Paired: the accuracy differs where exactly one of the two is right.
    ours_right, theirs_right = (pairs.predicted == pairs.reference for pairs in (ours, theirs))
    gain = ours_right.astype(float) - theirs_right
    half = 1.96 * float(gain.std()) / math.sqrt(7143)
    assert difference.accuracy_ci95 == pytest.approx((gain.mean() - half, gain.mean() + half), abs=0.0006)


def test_a_difference_is_taken_on_the_cases_that_both_have() -> None:
    ours, theirs = pairs_of(PARASEPTAL, [0, 1, 2, 1], [0, 1, 2, 0]), pairs_of(PARASEPTAL, [0, 1, 2], [0, 0, 0])
    difference = measure_difference(ours, theirs, FEW)
    assert difference is not None
    assert difference.n == 3
    assert difference.accuracy == pytest.approx(1 - 1 / 3)
    assert measure_difference(ours, pairs_of(PARASEPTAL, [], []), FEW) is None
