"""From a scan to the network's input, and from dense activation maps back onto the scan's grid.

A `Profile` describes one way of doing it; `PROFILES` holds the two that exist. Every number of a profile is a field of it,
the size of the network's input included, so that no code asks which profile it runs. Resizing aligns corners: the first and
last voxel of the crop lie on the first and last voxel of the network's grid, as they do in the network's own upsampling. Where
the voxels of a map lie is a matter of its own: see `MapPlacement`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from .command_line import MapType
from .errors import InputError
from .imaging.geometry import Box
from .imaging.scan import Scan
from .lungs.regions import Regions

WINDOW_HU = (-1150.0, -300.0)
"""Intensities are clamped to this range and rescaled to 0..1 (Methods, "Pre-processing of CT scans")."""


Shape = tuple[int, int, int]

PAPER_INPUT_SHAPE: Shape = (128, 224, 288)
"""Size of the network's input in voxels: z, y, x (Methods, "Pre-processing of CT scans")."""

INPUT_MULTIPLE = 8
"""Sizes of the network's input are multiples of this: the backbone reduces them to an eighth."""

LARGEST_INPUT = 512
"""Voxels along each axis, far beyond the paper's 288: metadata that ask for more are wrong."""


MapPlacement = Literal["corners", "even"]
"""Where the voxels of a dense map lie; along an axis it has half as many as the network's input.

- `corners`: the first and the last one on the first and the last voxel of the crop.
- `even`: number k on voxel 2 k of the input, where the targets of training with scores are picked. The crop then goes on for
  one voxel of the input behind the last one, and the map keeps its last value there.

With `corners`, a map that was learnt from picked targets comes back stretched, by one voxel of the input at the far edge.
`benchmark/placement.py` measures both.
"""


class Interpolation(Protocol):
    """How a crop is brought to the network's size; every rule returns positions in the crop for each output position."""

    def slices(self, depth: int, count: int) -> npt.NDArray[np.float64]:
        """Position (0 to depth - 1) of each of `count` output slices; between two slices they are interpolated."""

    def nearest(self, size: tuple[int, ...], count: tuple[int, ...]) -> tuple[npt.NDArray[np.intp], ...]:
        """For z, y and x the index of the voxel that each output voxel of a mask takes."""


class Trilinear:
    """Trilinear in all three axes, masks by nearest neighbour; corners aligned."""

    def slices(self, depth: int, count: int) -> npt.NDArray[np.float64]:
        return np.linspace(0, depth - 1, count)

    def nearest(self, size: tuple[int, ...], count: tuple[int, ...]) -> tuple[npt.NDArray[np.intp], ...]:
        z, y, x = (np.rint(np.linspace(0, n - 1, m)).astype(np.intp) for n, m in zip(size, count, strict=True))
        return z, y, x


class PickedSlices:
    """Bilinear in the plane, whole slices picked in z; masks by torch's `nearest` rule in the plane, the same slices in z."""

    def slices(self, depth: int, count: int) -> npt.NDArray[np.float64]:
        return np.floor(np.linspace(0, depth - 1, count))

    def nearest(self, size: tuple[int, ...], count: tuple[int, ...]) -> tuple[npt.NDArray[np.intp], ...]:
        rows, columns = (_torch_nearest(n, m) for n, m in zip(size[1:], count[1:], strict=True))
        return self.slices(size[0], count[0]).astype(np.intp), rows, columns


def _torch_nearest(size: int, count: int) -> npt.NDArray[np.intp]:
    """The rule is floor(i * size / count) in single precision; asking torch gives the same roundings."""
    index = functional.interpolate(torch.arange(size, dtype=torch.float32)[None, None], count, mode="nearest")
    return index[0, 0].numpy().astype(np.intp)


@dataclass(frozen=True)
class Profile:
    """One way of preparing the network's input and of reading its maps.

    Attributes:
        name: what bundles and results call it.
        input_shape: size of the network's input in voxels, z, y, x; multiples of 8.
        margin_mm: how far the crop reaches beyond the lung's bounding box, in mm (rounded up to whole voxels).
        halo_voxels: how many voxels around the lung keep their intensity in the crop, the rest becomes air;
            None: all of them.
        interpolation: how the crop is brought to the network's size.
        standardise: whether the mean over the standard deviation (n - 1) of the whole crop replaces the range 0..1.
        blank_outside: whether what lies outside the resized lung mask is set to 0.
        suspect_below_hu: maps count only where the CT lies below this, on the network's input grid; None: everywhere in
            the lung, on the maps' own grid.
        map_placement: where the voxels of the network's maps lie.
    """

    name: str
    input_shape: Shape
    margin_mm: float
    halo_voxels: int | None
    interpolation: Interpolation
    standardise: bool
    blank_outside: bool
    suspect_below_hu: float | None
    map_placement: MapPlacement = "corners"

    def __post_init__(self) -> None:
        check_input_shape(self.input_shape)
        check_map_placement(self.map_placement)
        if self.suspect_below_hu is not None and self.map_placement != "corners":
            raise ValueError(f"map_placement is {self.map_placement!r}, expected 'corners' for a profile with a suspect mask")

    @property
    def map_shape(self) -> Shape:
        """Size of the dense activation maps, z, y, x: half of the input's."""
        z, y, x = self.input_shape
        return z // 2, y // 2, x // 2


def check_input_shape(shape: Shape) -> None:
    """Check the size of a network's input.

    Raises:
        ValueError: it is not three multiples of 8 from 8 to 512.
    """
    sizes = shape if isinstance(shape, tuple) else ()
    if len(sizes) != 3 or not all(type(n) is int and 0 < n <= LARGEST_INPUT and n % INPUT_MULTIPLE == 0 for n in sizes):
        raise ValueError(f"input_shape is {shape!r}, expected three multiples of {INPUT_MULTIPLE} up to {LARGEST_INPUT}")


def check_map_placement(placement: str) -> None:
    """Check the name of a placement.

    Raises:
        ValueError: there is none of that name.
    """
    if placement not in get_args(MapPlacement):
        raise ValueError(f"map_placement is {placement!r}, expected one of {', '.join(get_args(MapPlacement))}")


PAPER_PROFILE = Profile(
    name="paper",
    input_shape=PAPER_INPUT_SHAPE,
    margin_mm=0.0,
    halo_voxels=None,
    interpolation=Trilinear(),
    standardise=False,
    blank_outside=True,
    suspect_below_hu=None,
)
"""Methods, "Pre-processing of CT scans" and "regression training"."""

RELEASED_PROFILE = Profile(
    name="released",
    input_shape=PAPER_INPUT_SHAPE,
    margin_mm=5.0,
    halo_voxels=2,
    interpolation=PickedSlices(),
    standardise=True,
    blank_outside=False,
    suspect_below_hu=-910.0,
)
"""What the container that the authors published does, and so what its checkpoints need."""

PROFILES = {profile.name: profile for profile in (PAPER_PROFILE, RELEASED_PROFILE)}


@dataclass(frozen=True)
class NetworkInput:
    """A prepared scan.

    Attributes:
        image: 1 x 1 x Z x Y x X, float32; Z, Y, X are the profile's `input_shape`.
        labels: Z x Y x X, uint8: region labels (see `model.lungs.regions`), 0 outside the lung.
        suspect: Z x Y x X, bool: where maps count; None where the profile knows no such mask.
        box: the crop's place in the scan.
        placement: where the voxels of the network's maps will lie.
    """

    image: Tensor
    labels: npt.NDArray[np.uint8]
    suspect: npt.NDArray[np.bool_] | None
    box: Box
    placement: MapPlacement = "corners"


@dataclass(frozen=True)
class ActivationMaps:
    """Activation maps on a grid that spans the crop.

    Attributes:
        centrilobular: z, y, x; float32, 0 to 1.
        paraseptal: likewise.
        labels: region labels on the same grid, uint8, 0 outside the lung.
        box: the crop's place in the scan.
        placement: where the maps' voxels lie in it.
    """

    centrilobular: Tensor
    paraseptal: Tensor
    labels: npt.NDArray[np.uint8]
    box: Box
    placement: MapPlacement = "corners"


def prepare(scan: Scan, regions: Regions, profile: Profile) -> NetworkInput:
    """Crop, window, resize and mask a scan as `profile` says.

    Raises:
        InputError: the lung mask is so sparse that nothing of it is left at the network's resolution.
    """
    box = scan.lung_box(profile.margin_mm)
    crop = scan.hounsfield[box]
    margins = [(inner.start - outer.start, outer.stop - inner.stop) for outer, inner in zip(box, regions.box, strict=True)]
    labels = np.pad(regions.labels, margins)
    kept = None if profile.halo_voxels is None else dilated(labels > 0, profile.halo_voxels)

    image = _resized(crop, kept, profile)
    if profile.standardise:
        mean, deviation = _moments(crop, kept)
        image = (image - mean) / deviation
    index = np.ix_(*profile.interpolation.nearest(crop.shape, profile.input_shape))
    resized_labels = labels[index]
    if not labels_on_map_grid(resized_labels).any():
        raise InputError(scan.lung_mask_name, "nothing of it is left at the network's resolution", "a mask of whole lungs")
    if profile.blank_outside:
        image = image * torch.from_numpy(resized_labels > 0)
    suspect = None
    if profile.suspect_below_hu is not None:
        suspect = (crop[index] < profile.suspect_below_hu) & (resized_labels > 0)
    return NetworkInput(image[None, None], resized_labels, suspect, box, profile.map_placement)


def windowed(hounsfield: np.ndarray) -> npt.NDArray[np.float32]:
    """Clamp HU to [-1150, -300] and rescale to [0, 1] (Methods, "Pre-processing of CT scans")."""
    low, high = WINDOW_HU
    clamped: npt.NDArray[np.float32] = np.clip(hounsfield.astype(np.float32), low, high)
    return (clamped - np.float32(low)) / np.float32(high - low)


def dilated(mask: npt.NDArray[np.bool_], voxels: int) -> npt.NDArray[np.bool_]:
    """Dilate `voxels` times by a full 3 x 3 x 3 element: a box, and so one axis after the other, by shifted copies."""
    for axis in range(mask.ndim):
        source = np.moveaxis(mask, axis, 0)
        mask = mask.copy()
        target = np.moveaxis(mask, axis, 0)
        for shift in range(1, min(voxels, len(source) - 1) + 1):
            target[shift:] |= source[:-shift]
            target[:-shift] |= source[shift:]
    return mask


def _resized(crop: np.ndarray, kept: npt.NDArray[np.bool_] | None, profile: Profile) -> Tensor:
    """Window the slices that the profile's interpolation needs, interpolate between them, then bilinearly in the plane."""
    depth, rows, columns = profile.input_shape
    positions = profile.interpolation.slices(len(crop), depth)
    lower = np.floor(positions).astype(np.intp)
    weight = (positions - lower).astype(np.float32)
    volume = np.empty((len(positions), *crop.shape[1:]), np.float32)
    for place, (index, share) in enumerate(zip(lower, weight, strict=True)):
        volume[place] = _windowed_slice(crop, kept, index)
        if share > 0:
            volume[place] += share * (_windowed_slice(crop, kept, index + 1) - volume[place])
    planes = torch.from_numpy(volume)[:, None]
    return functional.interpolate(planes, (rows, columns), mode="bilinear", align_corners=True)[:, 0]


def _windowed_slice(crop: np.ndarray, kept: npt.NDArray[np.bool_] | None, index: int) -> npt.NDArray[np.float32]:
    values = windowed(crop[index])
    return values if kept is None else values * kept[index]  # air lies below the window: 0


def _moments(crop: np.ndarray, kept: npt.NDArray[np.bool_] | None) -> tuple[float, float]:
    """Mean and standard deviation (n - 1) of the windowed crop at full resolution, slice by slice."""
    total = squares = 0.0
    for index in range(len(crop)):
        values = _windowed_slice(crop, kept, index).astype(np.float64)
        total += values.sum()
        squares += np.square(values).sum()
    mean = total / crop.size
    return mean, float(np.sqrt((squares - crop.size * mean**2) / (crop.size - 1)))


def finish(centrilobular: Tensor, paraseptal: Tensor, prepared: NetworkInput) -> ActivationMaps:
    """Apply the suspect mask to activation maps, if the profile has one.

    Args:
        centrilobular: 1 x 1 x Z/2 x Y/2 x X/2 of the input's size, float32, 0 to 1.
        paraseptal: likewise.
        prepared: the input that they were computed from.

    Returns:
        Without a suspect mask, the maps on their own grid; outside the lung, of which training says nothing, they continue
        what lies inside. With one, both brought to the input's grid (trilinear, corners aligned) and set to 0 outside the
        mask.
    """
    if prepared.suspect is None:
        labels = labels_on_map_grid(prepared.labels)
        lung = torch.from_numpy(labels > 0)[None, None]
        cle, pse = (_continued_outside(activation, lung)[0, 0] for activation in (centrilobular, paraseptal))
        return ActivationMaps(cle, pse, labels, prepared.box, prepared.placement)
    maps = torch.cat((centrilobular, paraseptal), dim=1)
    maps = functional.interpolate(maps, prepared.suspect.shape, mode="trilinear", align_corners=True)[0]
    maps *= torch.from_numpy(prepared.suspect)
    return ActivationMaps(maps[0], maps[1], prepared.labels, prepared.box)


def _continued_outside(activation: Tensor, lung: Tensor) -> Tensor:
    """Give each voxel just outside the lung the mean of its neighbours inside, and 0 to those farther out.

    Interpolation at the pleura then mixes in nothing from outside, and the written map's mean stays the percentage.
    """
    weight = lung.to(activation.dtype)
    inside = activation * weight
    neighbours = functional.avg_pool3d(weight, 3, stride=1, padding=1)
    mean = functional.avg_pool3d(inside, 3, stride=1, padding=1) / neighbours.clamp(min=1 / 27)
    return torch.where(lung, activation, mean)


ON_MAP_GRID = (..., *3 * (slice(None, None, 2),))
"""What the dense maps' grid picks of the input's, of which it is half: nearest neighbours by torch's rule."""


def labels_on_map_grid(labels: np.ndarray) -> np.ndarray:
    """Bring labels from the input's grid to that of the dense maps."""
    return np.ascontiguousarray(labels[ON_MAP_GRID])


def map_on_scan(
    activation: Tensor, box: Box, scan: Scan, map_type: MapType = "uint8", placement: MapPlacement = "corners"
) -> np.ndarray:
    """Bring an activation map back to the scan's grid, trilinear; 0 outside the lung.

    Args:
        activation: z, y, x on any grid that spans `box`; float32, 0 to 1.
        box: the crop's place in the scan.
        scan: the scan that it was computed from.
        map_type: uint8 (255 is activation 1, rounded) or float32 (0 to 1).
        placement: where the map's voxels lie in the crop.

    Returns:
        An array of the scan's shape in the patient's frame.
    """
    if placement == "even":
        activation = _with_odd_voxels(activation)
    result = np.zeros(scan.shape, map_type)
    crop, lung = result[box], scan.lung[box]
    depth = len(activation)
    for index, position in enumerate(np.linspace(0, depth - 1, len(crop))):
        lower = int(position)
        plane = torch.lerp(activation[lower], activation[min(lower + 1, depth - 1)], position - lower)
        plane = functional.interpolate(plane[None, None], crop.shape[1:], mode="bilinear", align_corners=True)[0, 0]
        if map_type == "uint8":
            plane = (255 * plane).round()
        crop[index] = plane.numpy() * lung[index]
    return result


def _with_odd_voxels(activation: Tensor) -> Tensor:
    """Put means of neighbours between the voxels of a map, and the last one once more at the end: the grid of the input, whose
    corners are the crop's. Linear interpolation of the result is that of the map."""
    for axis in range(activation.ndim):
        following = activation.narrow(axis, 1, activation.shape[axis] - 1)
        following = torch.cat((following, activation.narrow(axis, activation.shape[axis] - 1, 1)), axis)
        activation = torch.stack((activation, (activation + following) / 2), axis + 1).flatten(axis, axis + 1)
    return activation
