"""Tiles: parts of a scan that are trained on in place of the whole.

A step on a tile costs as much less as the tile is smaller, and a batch of tiles holds as many patients for the same work.
A percentage of the lung belongs to a whole scan, so that tiles need voxel maps of the truth, to learn from or to take scores of
their own from. The exception is a scan whose slices are all the same: there, a slab (some slices, each whole) has the
percentage of the scan. So has a plane: one of the slices, as the network sees it far from the ends of the scan (see `planes`).
"""

from __future__ import annotations

import zlib

import numpy as np

from .augmentation import AffineMap, Tile
from .cache import PreparedCase

Triple = tuple[int, int, int]

MULTIPLE = 16
"""Sizes of tiles are multiples of this: an eighth of it, the backbone's resolution, is whole, and so are skipped features."""

PLANE = 1
"""Slices of a slab that is a plane."""

KIND_WEIGHTS = (1.0, 1.0, 2.0)
"""How often a tile is drawn around lung, centrilobular and paraseptal emphysema: the last is the harder to learn."""

_TILE_STREAM, _SLAB_STREAM = 1, 2


def check_tile_shape(shape: Triple, input_shape: Triple) -> None:
    """Check a size that was asked for, z y x voxels of an input of `input_shape`.

    Raises:
        ValueError: it is no multiple of `MULTIPLE`, or larger than the network's input.
    """
    if any(size <= 0 or size % MULTIPLE or size > whole for size, whole in zip(shape, input_shape, strict=True)):
        found, most = (" ".join(map(str, sizes)) for sizes in (shape, input_shape))
        raise ValueError(f"a tile is {found} voxels, expected multiples of {MULTIPLE} up to {most}")


def draw_tile(
    shape: Triple,
    case: PreparedCase,
    affine: AffineMap,
    *,
    seed: int,
    epoch: int,
    entity: str,
    occurrence: int,
    anywhere: bool = False,
) -> Tile:
    """Draw a tile around a voxel of the lung or of one of the subtypes where the case has it, as likely as `KIND_WEIGHTS` says.

    Lesions are few: tiles from anywhere in the lung would mostly show none. The voxel may lie anywhere in its tile, since a
    network that is padded with zeros knows where a tile ends, and would learn to look for lesions in its middle. What is drawn
    follows from the arguments alone.

    Args:
        shape: of the tile.
        case: before augmentation.
        affine: what the augmentation does: where in the case each voxel of the augmented input comes from.
        seed: of the run.
        epoch: from 0.
        entity: the case.
        occurrence: how often the case has come up in this epoch already.
        anywhere: whether it is drawn around a voxel of the lung always, whatever the voxel shows.
    """
    generator = np.random.default_rng((seed, epoch, occurrence, zlib.crc32(entity.encode()), _TILE_STREAM))
    kinds = list(zip(KIND_WEIGHTS, case.tile_centres, strict=True))
    kinds = [(weight, found) for weight, found in (kinds[:1] if anywhere else kinds) if len(found)]
    whole_shape = case.image.shape
    voxel = np.array(whole_shape) / 2
    if kinds:
        weights = np.array([weight for weight, _ in kinds])
        places = kinds[generator.choice(len(kinds), p=weights / weights.sum())][1]
        voxel = np.linalg.solve(affine.matrix, places[generator.integers(len(places))] - affine.translation)
    starts = []
    for place, size, whole in zip(voxel, shape, whole_shape, strict=True):
        starts.append(2 * int(np.clip(place - generator.uniform(0, size), 0, whole - size) / 2))
    return Tile((starts[0], starts[1], starts[2]), shape)


def draw_slab(depth: int, input_shape: Triple, *, seed: int, epoch: int, entity: str, occurrence: int) -> Tile:
    """Draw `depth` neighbouring slices, whole, of an input of `input_shape`; what is drawn follows from the arguments alone.

    Args:
        depth: slices of the slab, an even number.
        input_shape: of the network, z y x voxels.
        seed: of the run.
        epoch: from 0.
        entity: the case.
        occurrence: how often the case has come up in this epoch already.
    """
    generator = np.random.default_rng((seed, epoch, occurrence, zlib.crc32(entity.encode()), _SLAB_STREAM))
    start = 2 * int(generator.integers((input_shape[0] - depth) // 2 + 1))
    return Tile((start, 0, 0), (depth, *input_shape[1:]))
