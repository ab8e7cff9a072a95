"""Accuracy, precision, recall and their intervals against hand calculations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmark import real_slices
from model.slices import CLASSES
from model.slices.metrics import Rate, accuracy, balanced_accuracy, by_patient, measure, wilson
from model.slices.report import summed_up
from test.slices.test_slice_dataset import cohort


def test_precision_and_recall_are_those_of_a_hand_calculation() -> None:
    truth = np.array([0, 0, 0, 0, 1, 1, 2, 2, 3, 3])
    answers = np.array([0, 0, 0, 1, 1, 1, 2, 3, 3, 3])
    result = measure(truth, answers)
    assert result.confusion == [[3, 1, 0, 0], [0, 2, 0, 0], [0, 0, 1, 1], [0, 0, 0, 2]]
    assert result.accuracy.percent == pytest.approx(80)
    recall = {"CLE": 75, "PLE": 100, "PSE": 50, "NT": 100}
    precision = {"CLE": 100, "PLE": 200 / 3, "PSE": 100, "NT": 200 / 3}
    assert {label: rate.percent for label, rate in result.class_recall.items()} == pytest.approx(recall)
    assert {label: rate.percent for label, rate in result.class_precision.items()} == pytest.approx(precision)
    assert result.recall == pytest.approx(np.mean(list(recall.values())))
    assert result.precision == pytest.approx(np.mean(list(precision.values())))


def test_wilsons_interval_is_that_of_the_formula() -> None:
    """(p + z2 / 2n +- z sqrt(p q / n + z2 / 4n2)) / (1 + z2 / n) for 8 of 10: 49.02 to 94.33."""
    rate = wilson(8, 10)
    assert (rate.percent, rate.low, rate.high) == pytest.approx((80, 49.02, 94.33), abs=0.01)
    assert wilson(10, 10).high == pytest.approx(100)
    assert wilson(10, 10).low == pytest.approx(72.25, abs=0.01)


def test_a_class_that_was_never_answered_has_no_precision_and_counts_as_0() -> None:
    result = measure(np.array([0, 1, 2, 3]), np.array([0, 0, 0, 0]))
    assert result.class_precision["PSE"] == Rate(None, None, None)
    assert result.precision == pytest.approx(25 / 4)
    assert result.recall == pytest.approx(25)
    assert result.accuracy.percent == pytest.approx(25)


def test_accuracies_of_several_confusion_matrices_are_those_of_hand_calculations() -> None:
    whole = [[3, 1, 0, 0], [0, 2, 0, 0], [0, 0, 1, 1], [0, 0, 0, 2]]
    without_two_classes = [[3, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0]]
    assert accuracy(np.array([whole, without_two_classes])) == pytest.approx([8 / 10, 4 / 6])
    assert balanced_accuracy(np.array([whole, without_two_classes])) == pytest.approx([3.25 / 4, 1.25 / 2])


def width(rate: Rate) -> float:
    assert rate.low is not None
    assert rate.high is not None
    return rate.high - rate.low


def test_slices_of_one_patient_make_the_interval_no_narrower() -> None:
    """Ten patients, each right or wrong as a whole: a hundred slices know as much as ten."""
    truth, answers = np.zeros(100, int), np.repeat(np.arange(10) >= 7, 10).astype(int)
    clustered = by_patient(accuracy, truth, answers, np.repeat(np.arange(10), 10))
    independent = by_patient(accuracy, truth, answers, np.arange(100))
    assert clustered.percent == independent.percent == pytest.approx(70)
    # The standard error of 0.7 is 14.5 for ten and 4.6 for a hundred.
    assert width(clustered) == pytest.approx(2 * 1.96 * 14.5, rel=0.15)
    assert width(independent) == pytest.approx(2 * 1.96 * 4.6, rel=0.15)


def test_where_all_answers_are_right_the_interval_is_that_of_as_many_patients() -> None:
    truth, owners = np.zeros(40, int), np.repeat(np.arange(20), 2)
    assert by_patient(accuracy, truth, truth, owners) == wilson(20, 20)
    assert by_patient(accuracy, truth, truth + 1, owners) == wilson(0, 20)


def test_both_intervals_of_an_evaluation_are_those_of_patients() -> None:
    """25 patients a class, four slices each. All slices of 10 CLE and of 5 PLE patients are wrong: recalls 0.6, 0.8, 1, 1.

    Standard errors in points: of the balanced accuracy 100 sqrt((0.6 x 0.4 + 0.8 x 0.2) / 25) / 4 = 3.16; of the accuracy,
    0.85 of 100 patients, 3.57. Where patients are not known, each slice counts as one: 1.58 and 1.79.
    """
    slices = cohort(patients=25, slices_each=4)
    answers = slices.labels.copy()
    answers[: 10 * 4] = 3
    answers[25 * 4 : (25 + 5) * 4] = 3
    probabilities = np.eye(len(CLASSES))[answers]
    known, unknown = (summed_up(probabilities, each, 0.5) for each in (slices, replace(slices, patients=None)))
    assert known.balanced.percent == unknown.balanced.percent == known.performance.recall == pytest.approx(85)
    assert width(known.balanced) == pytest.approx(2 * 1.96 * 3.16, rel=0.08)
    assert width(known.performance.accuracy) == pytest.approx(2 * 1.96 * 3.57, rel=0.08)
    assert width(unknown.balanced) == pytest.approx(2 * 1.96 * 1.58, rel=0.08)
    assert width(unknown.performance.accuracy) == pytest.approx(2 * 1.96 * 1.79, rel=0.08)


@pytest.mark.filterwarnings("error")
def test_a_draw_without_a_class_counts_the_others() -> None:
    """Of two patients, each of a class of its own, one right: draws have a balanced accuracy of 0, 50 or 100 %."""
    truth, answers = np.array([0, 3]), np.array([0, 0])
    assert by_patient(balanced_accuracy, truth, answers, np.array(["A", "B"])) == Rate(50, 0, 100)


def test_the_benchmark_on_real_slices_leaves_out_tasks_of_classes_that_it_has_none_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(real_slices, "RESAMPLES", 20)
    rows = [
        real_slices.Measured(
            f"{label}-{number}", label, f"{label}-{number}", 3.0 * (label == "CLE") + number / 9, 0.5, 1.0, 0.2
        )
        for label in ("CLE", "NT")
        for number in range(4)
    ]
    lines = list(real_slices.table(rows))
    assert lines[0] == "8 slices of 8 patients: 4 CLE, 0 PLE, 0 PSE, 4 NT"
    assert [line.partition(" | ")[0] for line in lines if line.startswith(("| CLE", "| PLE", "| PSE", "| NT"))] == [
        "| CLE against normal",
        "| CLE",
        "| NT",
    ]
