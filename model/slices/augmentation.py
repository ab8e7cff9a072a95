"""Changes to lung crops that a diagnosis must withstand: place, size and turn, calibration error, kernel, noise, hidden parts.

What is random is drawn first (`draw`), and applied by functions that draw nothing, so that each change can be replayed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from .inputs import WIDE_WINDOW

ROTATION_DEGREES = 20.0
SHIFT = 0.06
ZOOM = 0.15
STRETCH = 0.1
SHEAR = 0.1
"""Largest values, the last four in shares of the crop."""

SHIFT_HU = 25.0
SLOPE = 0.04
"""Standard deviations of the calibration error: an offset of all HU, and of the slope, about -1000 HU."""

GAMMA = 0.1
"""Largest deviation from 1 of the exponent of a grey scale from -1024 to 176 HU."""

SHARPNESS = (-0.8, 0.8)
"""Below 0: the share of a blurred slice mixed in; above: how much of the difference to it is added."""

NOISE_HU = 40.0
ERASED = (0.08, 0.3)
"""Height and width of what is hidden, in shares of the crop."""


@dataclass(frozen=True)
class Changes:
    """One draw for each of N crops.

    Attributes:
        places: N x 2 x 3, where a place of the new crop comes from in the old one, x and y from -1 to 1.
        offset, slope, gamma, sharpness, noise: N each; HU, factors, exponents, see `SHARPNESS`, standard deviation in HU.
        noise_seed: of the noise itself.
        erased: N x 4, from and to of rows and columns, 0 to 1; empty where nothing is hidden.
    """

    places: Tensor
    offset: Tensor
    slope: Tensor
    gamma: Tensor
    sharpness: Tensor
    noise: Tensor
    noise_seed: int
    erased: Tensor

    def to(self, device: str) -> Changes:
        """The same on another device; its noise differs there."""
        return Changes(
            places=self.places.to(device),
            offset=self.offset.to(device),
            slope=self.slope.to(device),
            gamma=self.gamma.to(device),
            sharpness=self.sharpness.to(device),
            noise=self.noise.to(device),
            noise_seed=self.noise_seed,
            erased=self.erased.to(device),
        )


def draw(count: int, rng: np.random.Generator) -> Changes:
    """Draw changes for `count` crops."""
    angle = np.radians(rng.uniform(-ROTATION_DEGREES, ROTATION_DEGREES, count))
    shear = rng.uniform(-SHEAR, SHEAR, count)
    zoom, stretch = rng.uniform(1 - ZOOM, 1 + ZOOM, count), rng.uniform(1 - STRETCH, 1 + STRETCH, count)
    flip = rng.choice([-1.0, 1.0], count)
    shift = 2 * rng.uniform(-SHIFT, SHIFT, (2, count))
    cosine, sine = np.cos(angle), np.sin(angle)
    rows = [
        [flip * zoom * stretch * cosine, zoom / stretch * (shear * cosine - sine), shift[0]],
        [flip * zoom * stretch * sine, zoom / stretch * (shear * sine + cosine), shift[1]],
    ]
    size = rng.uniform(*ERASED, (2, count)) * (rng.random(count) < 0.4)
    corner = rng.uniform(0, 1, (2, count)) * (1 - size)
    erased = np.stack([corner[0], corner[0] + size[0], corner[1], corner[1] + size[1]], axis=1)
    noisy, sharpened = rng.random(count) < 0.5, rng.random(count) < 0.6
    return Changes(
        places=_tensor(np.moveaxis(np.array(rows), 2, 0)),
        offset=_tensor(rng.normal(0, SHIFT_HU, count)),
        slope=_tensor(rng.normal(1, SLOPE, count)),
        gamma=_tensor(rng.uniform(1 - GAMMA, 1 + GAMMA, count)),
        sharpness=_tensor(rng.uniform(*SHARPNESS, count) * sharpened),
        noise=_tensor(rng.uniform(0, NOISE_HU, count) * noisy),
        noise_seed=int(rng.integers(2**31)),
        erased=_tensor(erased),
    )


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(values, np.float32))


def applied(hounsfield: Tensor, lungs: Tensor, changes: Changes) -> tuple[Tensor, Tensor]:
    """Change N crops.

    Args:
        hounsfield: N x rows x columns, HU.
        lungs: N x rows x columns, 0 to 1.

    Returns:
        both, changed.
    """
    pair = torch.stack([hounsfield, lungs], dim=1)
    grid = functional.affine_grid(changes.places, list(pair.shape), align_corners=False)
    pair = functional.grid_sample(pair, grid, padding_mode="border", align_corners=False)
    levels, mask = pair[:, 0], pair[:, 1]
    column = (slice(None), None, None)
    blurred = functional.avg_pool2d(levels[:, None], 3, 1, 1, count_include_pad=False)[:, 0]
    levels = levels + changes.sharpness[column] * (levels - blurred)
    generator = torch.Generator(levels.device).manual_seed(changes.noise_seed)
    size = (len(levels), levels.shape[1] // 2, levels.shape[2] // 2)
    coarse = torch.randn(size, generator=generator, device=levels.device)
    grain = functional.interpolate(coarse[:, None], levels.shape[1:], mode="bilinear", align_corners=False)[:, 0]
    levels = levels + changes.noise[column] * grain
    levels = -1000 + changes.slope[column] * (levels + 1000) + changes.offset[column]
    low, high = WIDE_WINDOW
    share = ((levels - low) / (high - low)).clamp(0, 1.2)
    levels = low + (high - low) * share ** changes.gamma[column]
    rows = torch.linspace(0, 1, levels.shape[1], device=levels.device)[None, :, None]
    columns = torch.linspace(0, 1, levels.shape[2], device=levels.device)[None, None, :]
    top, bottom, left, right = (edge[column] for edge in changes.erased.unbind(1))
    hidden = (rows > top) & (rows < bottom) & (columns > left) & (columns < right)
    return levels.masked_fill(hidden, -300.0), mask.masked_fill(hidden, 0.0)
