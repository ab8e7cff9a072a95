"""Voxels about 2.5 mm apart, on which masks are measured."""

from __future__ import annotations

import numpy as np

from model.lungs.anatomy import coarse_steps


def test_steps_are_the_nearest_to_the_distance_and_at_least_one() -> None:
    assert coarse_steps((0.625, 0.7, 0.8)) == (4, 4, 3)
    assert coarse_steps((6.0, 2.5, 1.2)) == (1, 1, 2)
    assert coarse_steps((0.625, 0.7, 0.8), distance_mm=(5.0, 1.0, 1.0)) == (8, 1, 1)


def test_a_mask_between_those_voxels_is_not_lost() -> None:
    lung = np.zeros((9, 9, 9), np.bool_)
    lung[1, 2, 3] = True
    assert coarse_steps((1.0, 1.0, 1.0), lung) == (1, 1, 1)
    lung[2, 2, 4] = True
    assert coarse_steps((1.0, 1.0, 1.0), lung) == (2, 2, 2)
