"""Grids, and how a file's axes become the patient's."""

from __future__ import annotations

import numpy as np

from model.imaging.geometry import ImageGeometry, Orientation


def test_an_orientation_and_its_way_back_by_hand() -> None:
    """A sagittal file: x runs to the head, y to the back, z to the right."""
    direction = (0, 0, -1, 0, 1, 0, 1, 0, 0)
    orientation = Orientation.of(ImageGeometry((2, 3, 4), (1, 1, 1), (0, 0, 0), direction))
    assert orientation == Orientation(axes=(2, 1, 0), flips=(False, False, True))
    array = np.arange(24).reshape(4, 3, 2)
    assert np.array_equal(orientation.to_patient(array), array.transpose(2, 1, 0)[:, :, ::-1])
    assert np.array_equal(orientation.to_file(orientation.to_patient(array)), array)
