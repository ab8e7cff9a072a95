"""Temperature, reliability, and the probability below which there is no answer."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax

from model.slices.confidence import calibration_error, choose_threshold, fit_temperature, reliability


def test_the_temperature_that_was_put_in_is_found() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (20_000, 4))
    labels = np.array([rng.choice(4, p=shares) for shares in softmax(logits, axis=1)])
    assert fit_temperature(2.5 * logits, labels) == pytest.approx(2.5, rel=0.05)
    assert fit_temperature(logits, labels) == pytest.approx(1, rel=0.05)


def test_the_threshold_leaves_answers_that_are_right_and_never_more_than_a_quarter_without() -> None:
    highest = np.linspace(0.99, 0.5, 100)
    shares = np.stack([highest, 1 - highest, 0 * highest, 0 * highest], axis=1)
    labels = np.zeros(100, int)
    labels[80:] = 1  # the twenty least certain are wrong
    # 80 right answers and 4 wrong ones are 95.2 %; a fifth wrong one would make 94.1 %.
    assert choose_threshold(shares, labels) == pytest.approx(highest[83], abs=2e-3)
    answered = highest >= choose_threshold(shares, labels)
    assert np.mean(labels[answered] == 0) >= 0.95
    labels[:] = 1
    assert choose_threshold(shares, labels) == pytest.approx(highest[74], abs=2e-3)


def test_reliability_is_read_by_hand() -> None:
    shares = np.array([[0.95, 0.05, 0, 0], [0.91, 0.09, 0, 0], [0.55, 0.45, 0, 0], [1, 0, 0, 0]])
    bars = reliability(shares, np.array([0, 1, 0, 0]))
    assert [bar.count for bar in bars] == [0, 0, 0, 0, 0, 1, 0, 0, 0, 3]
    assert bars[9].accuracy == pytest.approx(2 / 3)
    assert bars[9].confidence == pytest.approx(2.86 / 3)
    assert calibration_error(bars) == pytest.approx((0.45 + (2.86 - 2)) / 4)
