"""Random changes to training scans, drawn first and applied afterwards, so that any of them can be replayed.

Image, lung, low-attenuation target and truth move together: one affine map from output to input positions, in voxels of the
network's input, serves them all. Anything random is in an `Augmentation`; applying one twice gives the same tensors.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

Triple = tuple[float, float, float]
Span = tuple[float, float]
"""Least and largest."""

SHARPENED_VOXELS = 0.8
"""Standard deviation of the Gaussian, along y and x, whose difference from the image sharpening lifts."""


@dataclass(frozen=True)
class AugmentationRanges:
    """What is drawn, and how often. Intensities are in units of the window, 850 HU wide: 0.01 is 8.5 HU.

    Attributes:
        flip_probability: of each axis, z, y, x. Only the mirrored chest could be one: gravity and the apex keep their side.
        rotation_probability: of a rotation.
        rotation_degrees: largest angle about each axis, z, y, x; turned in mm, so that nothing is sheared.
        crop_probability: of a crop, brought back to full size.
        crop_share: smallest share of each axis that a crop keeps.
        smoothing_probability: of Gaussian smoothing.
        smoothing_voxels: largest standard deviation along z, y, x, in voxels of the network's input; z is drawn
            separately, as slice thickness does not depend on the kernel.
        sharpening_probability: of sharper edges and noise within slices, where nothing is smoothed.
        sharpening: largest lift of what is finer than `SHARPENED_VOXELS`, in parts of itself.
        jitter_probability: of a changed contrast and intensity.
        contrast: largest relative change about the middle of the window.
        shift: largest change of intensity.
        noise_probability: of additive Gaussian noise.
        noise: largest standard deviation.
        any_flip_probability: of mirroring one or two of the axes, whichever.
        crop_centre: where the centre of a crop lies along each axis, as a share of it; what reaches beyond the border is cut
            off. None: wherever the crop fits.
        noise_least: smallest standard deviation of the noise.
        box_probability: of boxes in which the network's input is set to 0.
        boxes: fewest and most of them.
        box_centre: where their centres lie along each axis, as a share of it.
        box_size: their size along each axis, as a share of it.
    """

    flip_probability: Triple = (0.0, 0.0, 0.5)
    rotation_probability: float = 0.4
    rotation_degrees: Triple = (10.0, 5.0, 5.0)
    crop_probability: float = 0.4
    crop_share: float = 0.9
    smoothing_probability: float = 0.25
    smoothing_voxels: Triple = (1.2, 0.8, 0.8)
    sharpening_probability: float = 0.3
    sharpening: float = 1.0
    jitter_probability: float = 0.5
    contrast: float = 0.05
    shift: float = 0.015
    noise_probability: float = 0.4
    noise: float = 0.06
    any_flip_probability: float = 0.0
    crop_centre: Span | None = None
    noise_least: float = 0.0
    box_probability: float = 0.0
    boxes: tuple[int, int] = (1, 10)
    box_centre: Span = (0.2, 0.8)
    box_size: Span = (0.01, 0.06)


PAPER_RANGES = AugmentationRanges()
"""Every kind that the paper names, and sharpening, which it does not; it gives no amounts."""

RELEASED_RANGES = AugmentationRanges(
    flip_probability=(0.0, 0.0, 0.0),
    rotation_probability=0.0,
    crop_probability=0.5,
    crop_share=0.95,
    smoothing_probability=0.0,
    sharpening_probability=0.0,
    jitter_probability=0.0,
    noise_probability=0.5,
    any_flip_probability=0.5,
    crop_centre=(0.45, 0.55),
    noise_least=0.03,
    box_probability=0.5,
)
"""The kinds and amounts of the published code: noise, boxes, flips and crops.

There, boxes come before flips and crops, so that they are mirrored and up to a twentieth larger; and the grid of a crop's
image is half a voxel off that of its masks. Here one map serves both.
"""

RANGES = {"paper": PAPER_RANGES, "released": RELEASED_RANGES}


@dataclass(frozen=True)
class Augmentation:
    """One drawn augmentation; the defaults change nothing.

    Attributes:
        flips: whether z, y, x are mirrored.
        degrees: rotation about z, then y, then x.
        crop_start: first corner of the crop, z, y, x, as a share of the image.
        crop_size: its size, as a share of the image.
        smoothing: standard deviation along z, y, x in voxels; 0: none.
        sharpening: how far what is fine within a slice is lifted, in parts of itself; 0: not at all.
        contrast: factor about the middle of the window.
        shift: added, in units of the window.
        noise: standard deviation in units of the window; 0: none.
        noise_seed: what the noise is drawn from.
        boxes: centre and size of each box in which the input is set to 0, z, y, x, as shares of the image.
    """

    flips: tuple[bool, bool, bool] = (False, False, False)
    degrees: Triple = (0.0, 0.0, 0.0)
    crop_start: Triple = (0.0, 0.0, 0.0)
    crop_size: Triple = (1.0, 1.0, 1.0)
    smoothing: Triple = (0.0, 0.0, 0.0)
    sharpening: float = 0.0
    contrast: float = 1.0
    shift: float = 0.0
    noise: float = 0.0
    noise_seed: int = 0
    boxes: tuple[tuple[Triple, Triple], ...] = ()

    @property
    def is_affine(self) -> bool:
        """Whether voxels have to be interpolated."""
        return any(self.degrees) or self.crop_size != (1.0, 1.0, 1.0)


def draw_augmentation(ranges: AugmentationRanges, seed: int, epoch: int, entity: str, occurrence: int = 0) -> Augmentation:
    """Draw an augmentation that follows from its arguments alone: not from workers, devices or what was drawn before.

    Args:
        ranges: what may be drawn.
        seed: of the run.
        epoch: from 0.
        entity: the case.
        occurrence: how often the case has come up in this epoch already.
    """
    generator = np.random.default_rng((seed, epoch, occurrence, zlib.crc32(entity.encode())))

    def chance(probability: float) -> bool:
        return bool(generator.random() < probability)

    def symmetric(limit: float) -> float:
        return float(generator.uniform(-limit, limit))

    def within(span: Span) -> tuple[float, ...]:
        return tuple(float(generator.uniform(*span)) for _ in range(3))

    flips = tuple(chance(probability) for probability in ranges.flip_probability)
    degrees: tuple[float, ...] = (0.0, 0.0, 0.0)
    if chance(ranges.rotation_probability):
        degrees = tuple(symmetric(limit) for limit in ranges.rotation_degrees)
    start: tuple[float, ...] = (0.0, 0.0, 0.0)
    size: tuple[float, ...] = (1.0, 1.0, 1.0)
    if chance(ranges.crop_probability):
        size = within((ranges.crop_share, 1))
        if ranges.crop_centre is None:
            start = tuple(float(generator.uniform(0, 1 - share)) for share in size)
        else:
            ends = [_span(centre, share) for centre, share in zip(within(ranges.crop_centre), size, strict=True)]
            start, size = tuple(first for first, _ in ends), tuple(last - first for first, last in ends)
    smoothing: tuple[float, ...] = (0.0, 0.0, 0.0)
    if chance(ranges.smoothing_probability):
        across, in_plane = generator.random(2)
        shares = (across, in_plane, in_plane)
        smoothing = tuple(float(share * most) for share, most in zip(shares, ranges.smoothing_voxels, strict=True))
    sharpening = float(generator.uniform(0, ranges.sharpening)) if chance(ranges.sharpening_probability) else 0.0
    contrast, shift = 1.0, 0.0
    if chance(ranges.jitter_probability):
        contrast, shift = 1 + symmetric(ranges.contrast), symmetric(ranges.shift)
    noise = float(generator.uniform(ranges.noise_least, ranges.noise)) if chance(ranges.noise_probability) else 0.0
    noise_seed = int(generator.integers(2**31))
    # What the paper's ranges do not hold is drawn last and only if asked for, so that their draws stay what they were.
    boxes: list[tuple[tuple[float, ...], tuple[float, ...]]] = []
    if ranges.box_probability and chance(ranges.box_probability):
        fewest, most = ranges.boxes
        boxes = [(within(ranges.box_centre), within(ranges.box_size)) for _ in range(generator.integers(fewest, most + 1))]
    if ranges.any_flip_probability and chance(ranges.any_flip_probability):
        mirrored = generator.permutation(3)[: generator.integers(1, 3)]
        flips = tuple(flip != (axis in mirrored) for axis, flip in enumerate(flips))
    return Augmentation(
        flips=flips,  # type: ignore[arg-type]
        degrees=degrees,  # type: ignore[arg-type]
        crop_start=start,  # type: ignore[arg-type]
        crop_size=size,  # type: ignore[arg-type]
        smoothing=smoothing,  # type: ignore[arg-type]
        sharpening=0.0 if any(smoothing) else sharpening,
        contrast=contrast,
        shift=shift,
        noise=noise,
        noise_seed=noise_seed,
        boxes=tuple(boxes),  # type: ignore[arg-type]
    )


def within_slices(augmentation: Augmentation) -> Augmentation:
    """What is left of an augmentation where all slices are the same: no tilt, and nothing along z."""
    return replace(
        augmentation,
        flips=(False, *augmentation.flips[1:]),
        degrees=(augmentation.degrees[0], 0.0, 0.0),
        smoothing=(0.0, *augmentation.smoothing[1:]),
    )


def _span(centre: float, share: float) -> Span:
    """Where a part of an axis begins and ends, cut off at 0 and 1."""
    return max(0.0, centre - share / 2), min(1.0, centre + share / 2)


@dataclass(frozen=True)
class Lattice:
    """Where a volume's voxels lie on the network's input: voxel k lies at offset + stride k, the same for z, y and x."""

    stride: float = 1.0
    offset: float = 0.0


INPUT_LATTICE = Lattice()
PICKED_LATTICE = Lattice(stride=2.0)
"""The maps' grid where every second voxel is picked, as `labels_on_map_grid` does."""

AVERAGED_LATTICE = Lattice(stride=2.0, offset=0.5)
"""The maps' grid where voxels are averaged two by two."""


@dataclass(frozen=True)
class Tile:
    """A part of the network's input.

    Attributes:
        start: its first voxel, z y x; even, so that it begins on the maps' grid.
        shape: its size in voxels, z y x.
    """

    start: tuple[int, int, int]
    shape: tuple[int, int, int]

    def slices(self, source: Lattice, target: Lattice) -> tuple[slice, ...]:
        """What of a volume on the lattice `source` lies in the tile, at the step that gives the lattice `target`."""
        step = int(target.stride / source.stride)
        near = (int(start / source.stride) for start in self.start)
        sizes = (int(size / source.stride) for size in self.shape)
        return tuple(slice(first, first + size, step) for first, size in zip(near, sizes, strict=True))


@dataclass(frozen=True)
class AffineMap:
    """Position in the input of each position of the output, in voxels, z y x: matrix @ output + translation."""

    matrix: np.ndarray
    translation: np.ndarray

    def between(self, source: Lattice, target: Lattice) -> AffineMap:
        """The same map from voxels on the lattice `target` (the output's) to voxels on `source` (the input's)."""
        start = self.matrix @ np.full(3, target.offset) + self.translation
        return AffineMap(self.matrix * (target.stride / source.stride), (start - source.offset) / source.stride)

    def within(self, tile: Tile) -> AffineMap:
        """The same map from the voxels of a tile of the output."""
        return AffineMap(self.matrix, self.matrix @ np.array(tile.start, float) + self.translation)


def spatial_map(augmentation: Augmentation, shape: tuple[int, int, int], extent_mm: Triple) -> AffineMap:
    """Compose crop, flips and rotation.

    Args:
        augmentation: what to apply.
        shape: of the network's input, z y x.
        extent_mm: what that input spans, z y x.
    """
    last = np.array(shape, float) - 1
    matrix = np.diag(np.array(augmentation.crop_size) / last)  # from voxels of the output to shares of the input
    translation = np.array(augmentation.crop_start)
    mirror = np.array([-1.0 if flip else 1.0 for flip in augmentation.flips])
    matrix = mirror[:, None] * matrix
    translation = mirror * (translation - 0.5)  # shares, from the centre
    extent = np.array(extent_mm)
    turn = (1 / extent)[:, None] * _rotation(augmentation.degrees) * extent
    return AffineMap(last[:, None] * (turn @ matrix), last * (turn @ translation + 0.5))


def _rotation(degrees: Triple) -> np.ndarray:
    matrix = np.eye(3)
    for axis, angle in enumerate(degrees):
        first, second = (other for other in range(3) if other != axis)
        turn = np.eye(3)
        turn[first, first] = turn[second, second] = math.cos(math.radians(angle))
        turn[first, second] = -math.sin(math.radians(angle))
        turn[second, first] = math.sin(math.radians(angle))
        matrix = turn @ matrix
    return matrix


def moved(
    volume: Tensor,
    augmentation: Augmentation,
    extent_mm: Triple,
    source: Lattice = INPUT_LATTICE,
    target: Lattice = INPUT_LATTICE,
    tile: Tile | None = None,
) -> Tensor:
    """Apply the spatial part of an augmentation, to all of a volume or so as to fill one tile.

    Masks (bool) are taken by nearest neighbour, and are False beyond the border. Everything else is interpolated trilinearly,
    and the border's own value goes on beyond it.

    Args:
        volume: C x Z x Y x X, bool or numbers; it spans the network's input on the lattice `source`.
        augmentation: what to apply.
        extent_mm: what the network's input spans, z y x.
        source: where the voxels of `volume` lie.
        target: where those of the result shall lie; another than `source` only if that is `INPUT_LATTICE`.
        tile: the part of the augmented input that is wanted; None: all of it.

    Returns:
        C x Z x Y x X; bool stays bool, numbers become float32.
    """
    is_mask = volume.dtype == torch.bool
    z, y, x = (int(size * source.stride) for size in volume.shape[1:])
    tile = tile or Tile((0, 0, 0), (z, y, x))
    if not augmentation.is_affine:
        axes = [axis + 1 for axis, flip in enumerate(augmentation.flips) if flip]
        result = (volume.flip(axes) if axes else volume)[:, *tile.slices(source, target)]
        return result if is_mask else result.float()
    affine = spatial_map(augmentation, (z, y, x), extent_mm).within(tile).between(source, target)
    depth, height, width = (int(size / target.stride) for size in tile.shape)
    result = functional.grid_sample(
        volume[None].float(),
        _sampling_grid(affine, (depth, height, width), volume.shape[1:], volume.device),
        mode="nearest" if is_mask else "bilinear",
        padding_mode="zeros" if is_mask else "border",
        align_corners=True,
    )[0]
    return result > 0.5 if is_mask else result


def _sampling_grid(affine: AffineMap, shape: tuple[int, int, int], sampled: Sequence[int], device: torch.device) -> Tensor:
    """What `grid_sample` takes: 1 x Z x Y x X x 3, in x y z order, -1 to 1; by sums along axes, faster than `affine_grid`.

    Args:
        affine: from voxels of the output to voxels of the input.
        shape: of the output, z y x.
        sampled: shape of the input, z y x.
        device: where to build it.
    """
    last = np.array(sampled, float) - 1
    matrix, translation = 2 * affine.matrix / last[:, None], 2 * affine.translation / last - 1
    grid = torch.empty((1, *shape, 3), dtype=torch.float32, device=device)
    views = ((-1, 1, 1), (1, -1, 1), (1, 1, -1))
    for axis in range(3):
        parts = [
            (torch.arange(size, dtype=torch.float64, device=device) * float(matrix[axis, other])).float().view(view)
            for other, (size, view) in enumerate(zip(shape, views, strict=True))
        ]
        torch.add(parts[0] + parts[1] + float(translation[axis]), parts[2], out=grid[0, ..., 2 - axis])
    return grid


def with_changed_intensities(image: Tensor, augmentation: Augmentation) -> Tensor:
    """Smooth, sharpen, change contrast and intensity, and add noise, in that order; then clamp to the window.

    Args:
        image: Z x Y x X, float32, 0 to 1 in units of the window; it is changed in place.
        augmentation: what to apply.
    """
    for axis, deviation in enumerate(augmentation.smoothing):
        if deviation > 0:
            image = _smoothed(image, deviation, axis)
    if augmentation.sharpening > 0:
        coarse = _smoothed(_smoothed(image, SHARPENED_VOXELS, 1), SHARPENED_VOXELS, 2)
        image = image.lerp_(coarse, -augmentation.sharpening)
    if (augmentation.contrast, augmentation.shift) != (1.0, 0.0):
        image = image.mul_(augmentation.contrast).add_(0.5 * (1 - augmentation.contrast) + augmentation.shift)
    if augmentation.noise > 0:
        generator = torch.Generator(image.device).manual_seed(augmentation.noise_seed)
        noise = torch.randn(image.shape, generator=generator, device=image.device)
        image = image.add_(noise, alpha=augmentation.noise)
    return image.clamp_(0, 1)


def with_masked_boxes(
    image: Tensor, augmentation: Augmentation, shape: tuple[int, int, int], tile: Tile | None = None
) -> Tensor:
    """Set the network's input to 0 in the boxes of an augmentation.

    A box begins floor(share n) // 2 voxels before the voxel floor(centre n) of an axis of n voxels, and has floor(share n) of
    them.

    Args:
        image: Z x Y x X, all of the input or one tile of it; it is changed in place.
        augmentation: what to apply.
        shape: of the whole input, z y x.
        tile: what `image` is of it; None: all.
    """
    corner = tile.start if tile else (0, 0, 0)
    for centre, share in augmentation.boxes:
        parts = []
        for middle, size, voxels, first in zip(centre, share, shape, corner, strict=True):
            width = int(size * voxels)
            start = int(middle * voxels) - width // 2 - first
            parts.append(slice(max(start, 0), max(start + width, 0)))
        image[tuple(parts)] = 0
    return image


def _smoothed(image: Tensor, deviation: float, axis: int) -> Tensor:
    """Gaussian along one axis by shifted copies, which is faster than a convolution; the border repeats itself."""
    reach = max(math.ceil(3 * deviation), 1)
    weights = [math.exp(-0.5 * (step / deviation) ** 2) for step in range(reach + 1)]
    total = weights[0] + 2 * sum(weights[1:])
    result = image * (weights[0] / total)
    size = image.shape[axis]
    for step, weight in enumerate(weights[1:], start=1):
        share = weight / total
        inner, first, last = size - step, image.narrow(axis, 0, 1), image.narrow(axis, size - 1, 1)
        result.narrow(axis, step, inner).add_(image.narrow(axis, 0, inner), alpha=share)
        result.narrow(axis, 0, inner).add_(image.narrow(axis, step, inner), alpha=share)
        result.narrow(axis, 0, step).add_(first, alpha=share)
        result.narrow(axis, inner, step).add_(last, alpha=share)
    return result
