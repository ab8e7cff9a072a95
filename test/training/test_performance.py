from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from model.fleischner import PARASEPTAL
from model.training.performance import agreement, measure
from model.training.pictures import figure


def test_agreement_by_hand() -> None:
    scores, truth = np.array([0, 1, 2, 2]), np.array([0, 1, 1, 2])
    # linear weights |i - j|: observed disagreement 1 / 4; expected by chance: predicted (1, 1, 2) and true (1, 2, 1) of 4:
    # sum over i, j of p_i t_j |i - j| = (1*2*1 + 1*1*2 + 1*1*1 + 1*1*1 + 2*1*2 + 2*2*1) / 16 = 14 / 16
    found = agreement(PARASEPTAL, scores, truth, np.array([0.5, 2.0, 6.0, 8.0]), np.array([0.5, 3.0, math.nan, 5.0]))
    assert found.accuracy == 0.75
    assert found.kappa == pytest.approx(1 - (1 / 4) / (14 / 16))
    assert found.percentage_error == pytest.approx(4 / 3)


def test_kappa_of_one_grade_alone_is_zero_and_not_nan() -> None:
    nothing = np.zeros(3, np.int64)
    found = agreement(PARASEPTAL, nothing, nothing, np.full(3, math.nan), np.full(3, math.nan))
    assert (found.accuracy, found.kappa, found.percentage_error) == (1.0, 0.0, None)


def test_cases_without_a_score_count_in_percentages_and_bounds_alone() -> None:
    scores, truth = np.array([2, 0, 0, 2]), np.array([2, -1, -1, -1])
    percentages = np.array([9.0, 0.2, 3.0, 6.0])
    # of three cases without a score, two have at least 1 %, one at most 1 %: it lies below both
    bounds = np.array([[math.nan, math.nan], [0, 1], [1, 100], [1, 100]])
    found = agreement(PARASEPTAL, scores, truth, percentages, np.full(4, math.nan), bounds)
    assert (found.accuracy, found.separation) == (1.0, 1.0)
    bounds[2] = 0, 1
    bounds[1] = 1, 100
    assert agreement(PARASEPTAL, scores, truth, percentages, np.full(4, math.nan), bounds).separation == 0.5
    unknown = np.full(4, -1)
    found = agreement(PARASEPTAL, scores, unknown, percentages, np.full(4, math.nan), np.full((4, 2), math.nan))
    assert (found.accuracy, found.kappa, found.separation) == (None, None, None)


def test_low_attenuation_alone_is_graded_by_table_1() -> None:
    scores = np.array([[0, 0], [3, 1], [5, 2]])
    performance = measure(scores, scores.astype(float), scores, np.full((3, 2), math.nan), np.array([0.5, 12.0, 40.0]))
    assert performance.kappa == 1.0
    assert [part.accuracy for part in performance.low_attenuation] == [1.0, 2 / 3]  # 12 % reads as substantial
    document = performance.as_document()
    assert document["laa950_alone"]["paraseptal"]["accuracy"] == 0.6667
    assert document["centrilobular"]["percentage_error"] is None


def test_the_figure_shows_the_input_above_each_map_in_its_colour() -> None:
    image, maps = torch.zeros(16, 20, 24), torch.zeros(2, 8, 10, 12)
    image[:, 10:] = 1.0
    maps[0, 6, 5:, :6] = 1.0
    lung = torch.ones(8, 10, 12, dtype=torch.bool)
    picture = figure(image, maps, lung)
    assert picture.shape == (68, 80, 3)
    rows, columns = [slice(top, top + 20) for top in (0, 24, 48)], [slice(left, left + 24) for left in (0, 28, 56)]
    tiles = [[picture[row, column].astype(int) for column in columns] for row in rows]
    coloured = [[bool((np.ptp(tile, axis=2) > 0).any()) for tile in row] for row in tiles]
    assert coloured[0] == [False] * 3
    assert sum(coloured[1]) == 1
    assert coloured[2] == [False] * 3
    red, _, blue = tiles[1][coloured[1].index(True)][15, 2]
    assert red > blue  # centrilobular is orange
