"""A chest slice drawn by hand, in HU."""

from __future__ import annotations

import numpy as np


def ellipse(centre: tuple[float, float], radii: tuple[float, float], size: int = 320) -> np.ndarray:
    y, x = np.ogrid[:size, :size]
    return ((y - centre[0]) / radii[0]) ** 2 + ((x - centre[1]) / radii[1]) ** 2 <= 1


LUNGS = ellipse((155, 105), (65, 40)) | ellipse((155, 215), (65, 40))
TRACHEA = ellipse((140, 160), (8, 8))
HOLE = ellipse((155, 70), (12, 6))
"""A subpleural hole at the right lung's edge."""


def chest(fat: float = 10.0, noise: float = 15.0) -> np.ndarray:
    """HU of a chest: skin fat of a thickness in pixels, muscle, two lungs with vessels, a trachea, a spine and a table."""
    rng = np.random.default_rng(0)
    hounsfield = np.full((320, 320), -1000.0)
    hounsfield[ellipse((160, 160), (95, 132))] = -100
    hounsfield[ellipse((160, 160), (95 - fat, 132 - fat))] = 45
    hounsfield[ellipse((215, 160), (14, 14))] = 500
    hounsfield[LUNGS] = -860
    for row, column in rng.uniform((100, 70), (210, 250), (80, 2)):
        hounsfield[ellipse((row, column), (2, 2)) & LUNGS] = 30
    hounsfield[HOLE] = -990
    hounsfield[TRACHEA] = -1000
    hounsfield[275:279, 20:300] = 200
    return hounsfield + rng.normal(0, noise, hounsfield.shape)
