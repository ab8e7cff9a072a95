"""Validation pictures in the manner of the paper's Figure 3: three axial slices; the network's input, then each map over it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor
from torch.nn import functional

from ..fleischner import SUBTYPES
from ..rendering import COLOURS, most_affected_levels, overlay

_GAP = 4


def figure(image: Tensor, activations: Tensor, lung: Tensor, levels: Sequence[int] | None = None) -> npt.NDArray[np.uint8]:
    """Draw one case.

    Args:
        image: Z x Y x X, the network's input by any profile, or a plane (Z is 1); shown from its darkest to its brightest.
        activations: 2 x Z/2 x Y/2 x X/2, centrilobular and paraseptal, 0 to 1; of a plane, one slice.
        lung: Z/2 x Y/2 x X/2, bool; likewise.
        levels: the slices of the maps that are shown; None: at most three, where there is most emphysema.

    Returns:
        RGB pixels, y x 3. Columns are slices, the one nearest to the head first; the patient's right is on the left.
    """
    darkest, brightest = float(image.min()), float(image.max())
    grey = (image.float() - darkest) * (255 / max(brightest - darkest, 1e-6))
    maps = [np.asarray(part.float().cpu().numpy()) for part in activations]
    rows, columns = image.shape[1:]
    levels = levels or most_affected_levels(maps, lung.cpu().numpy())
    picture = np.zeros((3 * (rows + _GAP) - _GAP, len(levels) * (columns + _GAP) - _GAP, 3), np.uint8)
    for column, level in enumerate(levels):
        pixels = np.repeat(grey[2 * level].round().cpu().numpy().astype(np.uint8)[..., None], 3, axis=2)
        planes = activations[None, :, level].float()
        planes = functional.interpolate(planes, (rows, columns), mode="bilinear", align_corners=True)[0].cpu()
        tiles = [pixels]
        for subtype, plane in zip(SUBTYPES, planes, strict=True):
            tiles.append(overlay(pixels, plane.numpy(), COLOURS[subtype.name]))
        for row, tile in enumerate(tiles):
            top, left = row * (rows + _GAP), column * (columns + _GAP)
            picture[top : top + rows, left : left + columns] = tile
    return picture


def png(pixels: npt.NDArray[np.uint8]) -> Image.Image:
    """RGB pixels as a picture that can be saved."""
    return Image.fromarray(pixels)
