"""Segments the lungs of a chest CT by threshold, shape and position, for lungs that are mostly aerated.

The steps are the established ones (Hu, Hoffman and Reinhardt, IEEE Trans Med Imaging 2001; van Rikxoort et al., Med Phys
2009): find the air inside the body, remove the trachea and main bronchi, separate the right lung from the left, and close each
over its vessels. They run on voxels of about 2 mm; the surface is then refined on the CT's own voxels. With weights of the
lungmask network (Hofmanninger et al., Eur Radiol Exp 2020), that network is used instead.
"""

from __future__ import annotations

import pickle
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from scipy import ndimage

from ..errors import InputError
from ..imaging.geometry import ImageGeometry, Orientation, Spacing
from ..imaging.readers import Volume
from ..imaging.scan import AIR_HU, LUNG_VOLUME_ML, UNSIGNED_PADDING_HU
from .anatomy import LEFT, RIGHT, Bools, Labels, body_of, depth, largest_part, length_mm, tell_sides, trachea_of, within

Hounsfield = npt.NDArray[np.int16]

COARSE_MM = 2.0

AIR_BELOW_HU = -400
"""About halfway between aerated lung and soft tissue."""

BRIGHTEST_HU = 200
"""Values are clipped to this: in a coarse voxel, a rib must not outweigh the lung beside it."""

TABLE_MM = 4.0
"""Thinner tissue is not chest wall but the table's shell, clothes or blankets."""

LUMEN_HU = tuple(range(-650, -1000, -25))
"""Thresholds for the lumen of airways. The trachea's wall, thinner than a coarse voxel, is brighter than the first."""

SHORTEST_TRACHEA_MM = 20.0

BRONCHI_ML = 45.0
"""Airways beyond the trachea have a smaller volume; a larger lumen has leaked into the lung."""

MAIN_BRONCHUS_RADIUS_MM = 3.5
"""Narrower airways are part of the lungs."""

AIRWAY_RIM_MM = 2.5
"""The rim of an airway is partly wall, and thus brighter than its lumen."""

SECOND_LUNG_FRACTION = 0.05
"""A second part of the air in the chest is a lung if it has at least this share of the first part's volume."""

BULLA_WALL_MM = 3.0
"""Air this near to a lung is a bulla, which has a thin wall; stomach and bowel are farther away."""

CLOSING_MM = 8.0
"""Vessels at the hilum and nodules at the pleura of up to about twice this diameter are included."""

EXPECTED = "a chest CT in HU that shows both lungs completely, or a lung mask"
EXPECTED_LUNGMASK = "weights of a lungmask network (such as unet_r231-d5d2fc3d.pth)"


def segment_lungs(ct: Volume, lungmask_weights: Path | None = None) -> Volume:
    """Segment the lungs of a chest CT.

    Args:
        ct: in HU, of any orientation.
        lungmask_weights: a state dict of a lungmask network; without it, thresholds are used.

    Returns:
        uint8 labels on the CT's grid: 1 right lung, 2 left lung, 0 elsewhere; both lungs 1 if thresholds cannot separate them.
        The labels include vessels, bullae and small airways inside the lungs, but not the trachea and main bronchi.

    Raises:
        InputError: no lungs were found, or the network cannot be used.
    """
    image = _with_air(ct.image)
    if lungmask_weights is not None:
        labels = _by_lungmask(image, ct.name, lungmask_weights)
    else:
        coarse = _CoarseScan.of(image)
        labels = _on_grid_of(image, coarse.image_of(_coarse_lungs(coarse.hounsfield, coarse.spacing, ct.name)))
    return Volume(labels, f"{ct.name} (segmented lungs)")


def _with_air(ct: sitk.Image) -> sitk.Image:
    """The CT with air in place of unsigned padding and of values that are not finite; the same image where it has neither."""
    voxels = sitk.GetArrayViewFromImage(ct)
    is_air = voxels >= UNSIGNED_PADDING_HU
    if np.issubdtype(voxels.dtype, np.floating):
        is_air |= ~np.isfinite(voxels)
    if not is_air.any():
        return ct
    return ImageGeometry.of(ct).apply(sitk.GetImageFromArray(np.where(is_air, np.int16(AIR_HU), voxels)))


@dataclass(frozen=True)
class _CoarseScan:
    """A CT averaged over blocks of voxels.

    Attributes:
        hounsfield: z, y, x in the patient's frame, clamped to air and `BRIGHTEST_HU`.
        spacing: z, y, x; mm.
        grid: the same image, in the orientation of the file.
        orientation: from the file's axes to the patient's.
    """

    hounsfield: Hounsfield
    spacing: Spacing
    grid: sitk.Image
    orientation: Orientation

    @classmethod
    def of(cls, ct: sitk.Image) -> _CoarseScan:
        factors = [
            min(max(round(COARSE_MM / distance), 1), size) for distance, size in zip(ct.GetSpacing(), ct.GetSize(), strict=True)
        ]
        grid = sitk.BinShrink(sitk.Clamp(ct, sitk.sitkInt16, AIR_HU, BRIGHTEST_HU), factors)
        geometry = ImageGeometry.of(grid)
        orientation = Orientation.of(geometry)
        return cls(orientation.to_patient(sitk.GetArrayFromImage(grid)), orientation.spacing(geometry), grid, orientation)

    def image_of(self, array: np.ndarray) -> sitk.Image:
        """Make an image of an array in the patient's frame."""
        image = sitk.GetImageFromArray(np.ascontiguousarray(self.orientation.to_file(array)))
        return ImageGeometry.of(self.grid).apply(image)


def _coarse_lungs(hounsfield: Hounsfield, spacing: Spacing, name: str) -> Labels:
    """Label the right and the left lung on the coarse grid; both as right if they cannot be separated."""
    air = (hounsfield < AIR_BELOW_HU) & body_of(_thick(hounsfield >= AIR_BELOW_HU, spacing))
    airways = _main_airways(hounsfield, air, spacing)
    air &= ~airways
    lungs = _lung_parts(air)
    volume_ml = np.count_nonzero(lungs) * float(np.prod(spacing)) / 1000
    if volume_ml < LUNG_VOLUME_ML[0]:
        raise InputError(name, f"no lungs were found in it ({volume_ml:.0f} ml of air inside the body)", EXPECTED)
    sides = tell_sides(lungs, spacing)
    if sides is None:
        sides = lungs.astype(np.uint8)
    loose = _loose_air(air & ~lungs, airways)
    result = sides.copy()
    for side in (RIGHT, LEFT):
        lung = sides == side
        if lung.any():
            closed = _closed(_with_bullae(lung, loose, spacing), spacing)
            result[closed & (result == 0) & ~airways] = side
    return result


def _thick(tissue: Bools, spacing: Spacing) -> Bools:
    """The largest part of the tissue that is at least `TABLE_MM` thick.

    Voxels outside the image count as tissue: a body cut off by the field of view has no wall there.
    """
    core = largest_part(depth(tissue, spacing, beyond=True) > TABLE_MM / 2)
    return within(core, TABLE_MM / 2, spacing)


def _main_airways(hounsfield: Hounsfield, air: Bools, spacing: Spacing) -> Bools:
    """Trachea and main bronchi with their rims; empty if no trachea is found.

    The lumen is grown from the trachea at decreasing thresholds, until one does not leak into the lung.
    """
    trachea = trachea_of(air & (hounsfield < LUMEN_HU[0]), spacing)
    if length_mm(trachea, spacing) < SHORTEST_TRACHEA_MM:
        return np.zeros_like(air)
    voxel_ml = float(np.prod(spacing)) / 1000
    limit_ml = np.count_nonzero(trachea) * voxel_ml + BRONCHI_ML
    lumen = trachea
    for threshold in LUMEN_HU:
        grown = ndimage.binary_propagation(trachea, mask=trachea | (air & (hounsfield < threshold)))
        if np.count_nonzero(grown) * voxel_ml <= limit_ml:
            lumen = grown
            break
    wide = within(depth(lumen, spacing) > MAIN_BRONCHUS_RADIUS_MM, MAIN_BRONCHUS_RADIUS_MM, spacing) & lumen
    return within(_touched(wide | trachea, trachea), AIRWAY_RIM_MM, spacing)


def _lung_parts(air: Bools) -> Bools:
    """The largest part of the air, and the next one if it is a second lung, which bowel gas, lying below, is not."""
    labels, count = ndimage.label(air)
    if count == 0:
        return np.zeros_like(air)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    first, *others = np.argsort(sizes)[::-1][: min(count, 4)].tolist()
    parts = ndimage.find_objects(labels)
    middle = (parts[first - 1][0].start + parts[first - 1][0].stop) / 2
    for other in others:
        if sizes[other] >= SECOND_LUNG_FRACTION * sizes[first] and parts[other - 1][0].stop > middle:
            return np.isin(labels, (first, other))
    return np.asarray(labels == first)


def _loose_air(air: Bools, airways: Bools) -> Bools:
    """Air outside the lungs, without remains at the rim of an airway."""
    labels, _ = ndimage.label(air)
    leftover = np.unique(labels[ndimage.binary_dilation(airways)])
    return air & ~np.isin(labels, leftover[leftover > 0])


def _with_bullae(lung: Bools, loose: Bools, spacing: Spacing) -> Bools:
    """A lung with the parts of the loose air behind a thin wall."""
    return lung | _touched(loose, within(lung, BULLA_WALL_MM, spacing))


def _closed(lung: Bools, spacing: Spacing) -> Bools:
    """A lung after closing by a ball and filling of holes."""
    margin = [int(np.ceil(CLOSING_MM / distance)) + 1 for distance in spacing]
    (box,) = ndimage.find_objects(lung.astype(np.uint8))
    padded = np.pad(lung[box], [(width, width) for width in margin])
    closed = padded | (depth(within(padded, CLOSING_MM, spacing), spacing) > CLOSING_MM)
    result = np.zeros_like(lung)
    result[box] = ndimage.binary_fill_holes(closed)[tuple(slice(width, -width) for width in margin)]
    return result


def _touched(mask: Bools, seeds: Bools) -> Bools:
    """The connected parts of the mask that contain a seed."""
    return np.asarray(ndimage.binary_propagation(seeds & mask, mask=mask))


def _on_grid_of(ct: sitk.Image, sides: sitk.Image) -> sitk.Image:
    """Resample coarse labels to the CT's grid; within about a coarse voxel of their surface, threshold the CT's own voxels."""
    resampler = sitk.ResampleImageFilter()
    resampler.SetReferenceImage(ct)
    resampler.SetUseNearestNeighborExtrapolator(True)
    resampler.SetInterpolator(sitk.sitkLinear)
    share = resampler.Execute(sitk.Cast(sides > 0, sitk.sitkUInt8) * 200)
    inside = (share >= 199) | ((share > 1) & (ct < AIR_BELOW_HU))
    labels = sitk.GetArrayViewFromImage(sides)
    nearest = ndimage.distance_transform_edt(labels == 0, return_distances=False, return_indices=True)
    everywhere = ImageGeometry.of(sides).apply(sitk.GetImageFromArray(labels[tuple(nearest)]))
    resampler.SetInterpolator(sitk.sitkNearestNeighbor)
    return sitk.Mask(resampler.Execute(everywhere), inside)


def _by_lungmask(ct: sitk.Image, name: str, weights: Path) -> sitk.Image:
    if not weights.is_file():
        raise InputError(weights, "no such file", EXPECTED_LUNGMASK)
    with warnings.catch_warnings():  # on import, the package mutes every UserWarning
        try:
            from lungmask import LMInferer
        except ImportError as error:
            raise InputError(weights, "the package lungmask is not installed", "requirements/viewer.lock installed") from error
        try:
            network = LMInferer(modelpath=str(weights), tqdm_disable=True)
        except (RuntimeError, pickle.UnpicklingError, EOFError, AttributeError, TypeError, IndexError, OSError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise InputError(weights, f"not weights of a lungmask network ({reason})", EXPECTED_LUNGMASK) from error
        labels = network.apply(ct)
    if not labels.any():
        raise InputError(name, "the lungmask network found no lungs", EXPECTED)
    return ImageGeometry.of(ct).apply(sitk.GetImageFromArray(labels))
