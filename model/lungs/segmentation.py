"""Lungs of a chest CT without a mask, by threshold, shape and place: for lungs that are mostly filled with air.

The steps are the classical ones (Hu, Hoffman and Reinhardt, IEEE Trans Med Imaging 2001; van Rikxoort et al., Med Phys
2009): air inside the body, less the trachea and main bronchi, the right lung apart from the left, each closed over its
vessels. They run on voxels of about 2 mm; the surface then follows the CT's own voxels. With weights of the lungmask
network (Hofmanninger et al., Eur Radiol Exp 2020), that network does it instead.
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
from ..imaging.scan import AIR_HU, LUNG_VOLUME_ML
from .regions import LEFT, RIGHT, tell_sides

Bools = npt.NDArray[np.bool_]
Labels = npt.NDArray[np.uint8]
Hounsfield = npt.NDArray[np.int16]

COARSE_MM = 2.0

AIR_BELOW_HU = -400
"""About halfway between aerated lung and soft tissue."""

BRIGHTEST_HU = 200
"""Bone counts as this: a rib in a coarse voxel must not outweigh the lung beside it."""

TABLE_MM = 4.0
"""Tissue thinner than this is no chest wall: the table's shell, clothes, blankets."""

LUMEN_HU = tuple(range(-650, -1000, -25))
"""Thresholds for the inside of airways. The trachea's wall, thinner than a coarse voxel, is brighter than the first."""

TRACHEA_AREA_MM2 = (60.0, 800.0)
TRACHEA_WIDTH_MM = 40.0
SHORTEST_TRACHEA_MM = 20.0

BRONCHI_ML = 45.0
"""Airways beyond the trachea hold less than this; a lumen that grows to more has leaked into the lung."""

MAIN_BRONCHUS_RADIUS_MM = 3.5
"""Narrower airways lie inside the lungs and belong to them."""

AIRWAY_RIM_MM = 2.5
"""The rim of an airway is partly wall, and brighter than its inside."""

SECOND_LUNG_FRACTION = 0.05
"""A second part of the air in the chest that is smaller than this share of the first is no lung."""

BULLA_WALL_MM = 3.0
"""Air this near to a lung is a bulla, whose wall is thin; the stomach's and the bowel's is farther off."""

CLOSING_MM = 8.0
"""Vessels at the hilum, and nodules at the pleura, up to about twice this across are closed over."""

EXPECTED = "a chest CT in HU that shows both lungs whole, or a lung mask"
EXPECTED_LUNGMASK = "weights of a lungmask network (such as unet_r231-d5d2fc3d.pth)"


def segment_lungs(ct: Volume, lungmask_weights: Path | None = None) -> Volume:
    """Segment the lungs of a chest CT.

    Args:
        ct: in HU, of any orientation.
        lungmask_weights: a state dict of a lungmask network; without it, thresholds are used.

    Returns:
        uint8 labels on the CT's grid: 1 right lung, 2 left lung, 0 elsewhere; all of it 1 where thresholds cannot tell the two
        apart. Vessels, bullae and small airways inside the lungs belong to them; trachea and main bronchi do not.

    Raises:
        InputError: no lungs were found, or the network cannot be used.
    """
    image = _finite(ct.image)
    if lungmask_weights is not None:
        labels = _by_lungmask(image, ct.name, lungmask_weights)
    else:
        coarse = _CoarseScan.of(image)
        labels = _on_grid_of(image, coarse.image_of(_coarse_lungs(coarse.hounsfield, coarse.spacing, ct.name)))
    return Volume(labels, f"{ct.name} (the lungs found in it)")


def _finite(ct: sitk.Image) -> sitk.Image:
    """Values that are not a number count as air."""
    if ct.GetPixelID() not in (sitk.sitkFloat32, sitk.sitkFloat64):
        return ct
    voxels = np.nan_to_num(sitk.GetArrayFromImage(ct), nan=AIR_HU, posinf=BRIGHTEST_HU, neginf=AIR_HU)
    return ImageGeometry.of(ct).apply(sitk.GetImageFromArray(voxels))


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
        factors = [max(round(COARSE_MM / distance), 1) for distance in ct.GetSpacing()]
        grid = sitk.BinShrink(sitk.Clamp(ct, sitk.sitkInt16, AIR_HU, BRIGHTEST_HU), factors)
        geometry = ImageGeometry.of(grid)
        orientation = Orientation.of(geometry)
        return cls(orientation.to_patient(sitk.GetArrayFromImage(grid)), orientation.spacing(geometry), grid, orientation)

    def image_of(self, array: np.ndarray) -> sitk.Image:
        """Make an image of an array in the patient's frame."""
        image = sitk.GetImageFromArray(np.ascontiguousarray(self.orientation.to_file(array)))
        return ImageGeometry.of(self.grid).apply(image)


def _coarse_lungs(hounsfield: Hounsfield, spacing: Spacing, name: str) -> Labels:
    """Label the right lung 1 and the left 2 on the coarse grid."""
    air = (hounsfield < AIR_BELOW_HU) & _body(hounsfield, spacing)
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


def _body(hounsfield: Hounsfield, spacing: Spacing) -> Bools:
    """The largest thing in the image that is thicker than a table's shell, with the air that it encloses in each slice.

    Beyond the image there is tissue, for this: a body that the field of view cuts off has no wall there.
    """
    tissue = hounsfield >= AIR_BELOW_HU
    core = _largest(_depth(tissue, spacing, beyond=True) > TABLE_MM / 2)
    thick = _within(core, TABLE_MM / 2, spacing)
    return np.stack([ndimage.binary_fill_holes(level) for level in thick])


def _main_airways(hounsfield: Hounsfield, air: Bools, spacing: Spacing) -> Bools:
    """Trachea and main bronchi with their rims; nothing where no trachea is seen.

    From the trachea the lumen is grown under one threshold after another, until one does not leak into the lung.
    """
    trachea = _trachea(air & (hounsfield < LUMEN_HU[0]), spacing)
    if not trachea.any():
        return trachea
    voxel_ml = float(np.prod(spacing)) / 1000
    limit_ml = np.count_nonzero(trachea) * voxel_ml + BRONCHI_ML
    lumen = trachea
    for threshold in LUMEN_HU:
        grown = ndimage.binary_propagation(trachea, mask=trachea | (air & (hounsfield < threshold)))
        if np.count_nonzero(grown) * voxel_ml <= limit_ml:
            lumen = grown
            break
    wide = _within(_depth(lumen, spacing) > MAIN_BRONCHUS_RADIUS_MM, MAIN_BRONCHUS_RADIUS_MM, spacing) & lumen
    return _within(_touched(wide | trachea, trachea), AIRWAY_RIM_MM, spacing)


def _trachea(lumen: Bools, spacing: Spacing) -> Bools:
    """The longest run, from slice to slice, of spots that are as large and as compact as a trachea.

    Tops of the lungs are such spots, too, but soon grow larger; air in the gullet comes in short runs.
    """
    slice_mm, row_mm, column_mm = spacing
    smallest, largest = (area / (row_mm * column_mm) for area in TRACHEA_AREA_MM2)
    longest: list[Bools] = []
    bottom = 0
    runs: list[list[Bools]] = []
    for level in range(len(lumen) - 1, -1, -1):
        labels, _ = ndimage.label(lumen[level])
        continued = []
        for number, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
            width_mm = max((rows.stop - rows.start) * row_mm, (columns.stop - columns.start) * column_mm)
            spot = labels == number
            if width_mm > TRACHEA_WIDTH_MM or not smallest <= np.count_nonzero(spot) <= largest:
                continue
            run = max((run for run in runs if _continues(run[-1], spot)), key=len, default=[])
            continued.append([*run, spot])
            if len(continued[-1]) > len(longest):
                longest, bottom = continued[-1], level
        runs = continued
    result = np.zeros_like(lumen)
    if len(longest) * slice_mm >= SHORTEST_TRACHEA_MM:
        result[bottom : bottom + len(longest)] = longest[::-1]
    return result


def _continues(above: Bools, spot: Bools) -> bool:
    """Whether two spots in neighbouring slices are of one tube: they overlap by half, and neither is twice the other."""
    small, large = sorted((np.count_nonzero(above), np.count_nonzero(spot)))
    return bool(np.count_nonzero(above & spot) >= small / 2 and large <= 2 * small)


def _lung_parts(air: Bools) -> Bools:
    """The largest part of the air, and the next one where it is a lung of its own: gas in the bowel stays below them."""
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
    """Air that is no part of the lungs yet, less what is left over at the rim of an airway."""
    labels, _ = ndimage.label(air)
    leftover = np.unique(labels[ndimage.binary_dilation(airways)])
    return air & ~np.isin(labels, leftover[leftover > 0])


def _with_bullae(lung: Bools, loose: Bools, spacing: Spacing) -> Bools:
    """A lung with the parts of the loose air that only a thin wall parts from it."""
    return lung | _touched(loose, _within(lung, BULLA_WALL_MM, spacing))


def _closed(lung: Bools, spacing: Spacing) -> Bools:
    """Closing by a ball, then filling of what is enclosed."""
    margin = [int(np.ceil(CLOSING_MM / distance)) + 1 for distance in spacing]
    (box,) = ndimage.find_objects(lung.astype(np.uint8))
    padded = np.pad(lung[box], [(width, width) for width in margin])
    closed = padded | (_depth(_within(padded, CLOSING_MM, spacing), spacing) > CLOSING_MM)
    result = np.zeros_like(lung)
    result[box] = ndimage.binary_fill_holes(closed)[tuple(slice(width, -width) for width in margin)]
    return result


def _depth(mask: Bools, spacing: Spacing, beyond: bool = False) -> npt.NDArray[np.float64]:
    """How deep inside the mask each voxel lies, in mm; `beyond` says what there is beyond the image."""
    padded = np.pad(mask, 1, constant_values=beyond)
    return np.asarray(ndimage.distance_transform_edt(padded, sampling=spacing)[1:-1, 1:-1, 1:-1])


def _within(mask: Bools, distance_mm: float, spacing: Spacing) -> Bools:
    """What lies at most so many mm from the mask."""
    if not mask.any():
        return mask
    return np.asarray(ndimage.distance_transform_edt(~mask, sampling=spacing) <= distance_mm)


def _touched(mask: Bools, seeds: Bools) -> Bools:
    """The connected parts of the mask that hold a seed."""
    return np.asarray(ndimage.binary_propagation(seeds & mask, mask=mask))


def _largest(mask: Bools) -> Bools:
    """The largest connected part."""
    labels, count = ndimage.label(mask)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    sizes[0] = 0
    return np.asarray((labels == np.argmax(sizes)) & (labels > 0))


def _on_grid_of(ct: sitk.Image, sides: sitk.Image) -> sitk.Image:
    """Bring coarse labels to the CT's grid; within about a coarse voxel of their surface, the CT's own voxels decide."""
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
    with warnings.catch_warnings():  # the package mutes every UserWarning when it is imported
        try:
            from lungmask import LMInferer
        except ImportError as error:
            raise InputError(weights, "the package lungmask is not installed", "requirements/viewer.lock installed") from error
        try:
            network = LMInferer(modelpath=str(weights), tqdm_disable=True)
        except (RuntimeError, pickle.UnpicklingError, EOFError, AttributeError, TypeError, IndexError, OSError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise InputError(weights, f"not such weights ({reason})", EXPECTED_LUNGMASK) from error
        labels = network.apply(ct)
    if not labels.any():
        raise InputError(name, "the lungmask network found no lungs in it", EXPECTED)
    return ImageGeometry.of(ct).apply(sitk.GetImageFromArray(labels))
