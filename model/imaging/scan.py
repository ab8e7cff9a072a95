"""`Scan`: a chest CT and its lung mask on one grid, checked, and turned into the patient's frame.

Arrays are z, y, x in the patient's frame (LPS): slices towards the head, rows towards the posterior, columns towards the
left. `Scan.to_file_grid` returns an array to the grid of the CT file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from ..errors import InputError
from .geometry import Box, ImageGeometry, Orientation, Spacing, box_of
from .readers import Volume, check_ct, read_volume

AIR_HU = -1024
"""Replaces values that are not a number; padding below it counts as this."""

UNSIGNED_PADDING_HU = 31744
"""Nothing in a CT is as dense: stored values of 12 bits end at 3071 HU, of 16 bits with their sign at 31743 HU (intercept
-1024). Unsigned values from here on, such as -2000 stored as 63536, fill what lies outside the scanned circle."""

PADDING_HU = -2000
"""What takes their place, as scanners write it with a sign: below all noise in air."""

LUNG_VOLUME_ML = (100.0, 15000.0)
LUNG_MEAN_HU = (-1000.0, -200.0)
AERATED_HU = -500
MAX_REPLACED_FRACTION = 0.01


@dataclass(frozen=True)
class Scan:
    """A CT and its lung mask in the patient's frame; made by `Scan.read`, `Scan.from_images` or `Scan.of`.

    Attributes:
        hounsfield: z, y, x; int16, or float32 where the file holds floating-point numbers; HU.
        lung: z, y, x; bool.
        lobes: z, y, x; uint8 labels where the mask is one of lobes, else None: 1 to 5 are those of `model.lungs.anatomy`, 255
            stands for every label above it or that is no whole number.
        spacing: z, y, x; mm.
        geometry: the CT file's own.
        orientation: from the CT file's axes to the patient's.
        warnings: what was unusual about the input or was corrected, one sentence each.
        slice_thickness_mm: as a DICOM series has it; else None.
        lung_mask_name: for messages.
    """

    hounsfield: npt.NDArray[np.int16] | npt.NDArray[np.float32]
    lung: npt.NDArray[np.bool_]
    lobes: npt.NDArray[np.uint8] | None
    spacing: Spacing
    geometry: ImageGeometry
    orientation: Orientation
    warnings: tuple[str, ...] = ()
    slice_thickness_mm: float | None = None
    lung_mask_name: str = "lung mask"

    @classmethod
    def read(cls, ct: Path | str, lung_mask: Path | str | None = None, *, lobes: bool = False) -> Scan:
        """Read a CT and its lung mask, and check that they can be scored.

        Args:
            ct: a .mha, .mhd, .nii, .nii.gz or .nrrd file, or a folder that holds one DICOM series; HU.
            lung_mask: likewise; any label above 0 is lung. A mask on another grid is resampled onto the CT. Without a mask,
                the lungs are segmented (see `model.lungs.segmentation`).
            lobes: whether the mask's labels are the five lobes: 1 = left upper, 2 = left lower, 3 = right upper,
                4 = right lower, 5 = right middle.

        Raises:
            InputError: a file cannot be read, or what it holds cannot be a chest CT with its lungs.
        """
        volume = read_volume(ct)
        if lung_mask is not None:
            return cls.of(volume, read_volume(lung_mask), lobes=lobes)
        from ..lungs.segmentation import segment_lungs  # builds on this module, and imports scipy

        return cls.of(volume, segment_lungs(volume))

    @classmethod
    def from_images(
        cls,
        ct: sitk.Image,
        lung_mask: sitk.Image,
        *,
        lobes: bool = False,
        names: tuple[str, str] = ("CT", "lung mask"),
    ) -> Scan:
        """Make a scan of two images in memory, which the caller keeps; as `read`, with `names` for messages.

        Raises:
            InputError: the images cannot be a chest CT with its lungs.
        """
        return cls.of(Volume.copy_of(ct, names[0]), Volume.copy_of(lung_mask, names[1]), lobes=lobes)

    @classmethod
    def of(cls, ct: Volume, lung_mask: Volume, *, lobes: bool = False) -> Scan:
        """Make a scan of a CT and a mask of its lungs, given or segmented; the scan keeps the CT's voxels without a copy.

        Raises:
            InputError: the volumes cannot be a chest CT with its lungs.
        """
        check_ct(ct)
        geometry = ct.geometry
        labels, mask_warnings = _labels_on_grid(lung_mask, geometry)
        lung = labels > 0
        _check_volume(np.count_nonzero(lung) * geometry.voxel_ml, lung_mask.name)
        hounsfield, ct_warnings = _hounsfield(np.asarray(_Voxels(ct.image)), lung, ct.name)
        _check_hounsfield(hounsfield, lung, ct.name)
        orientation = Orientation.of(geometry)
        return cls(
            hounsfield=orientation.to_patient(hounsfield),
            lung=orientation.to_patient(lung),
            lobes=orientation.to_patient(labels.copy()) if lobes else None,
            spacing=orientation.spacing(geometry),
            geometry=geometry,
            orientation=orientation,
            warnings=(*ct.warnings, *(f"lung mask: {text}" for text in lung_mask.warnings), *mask_warnings, *ct_warnings),
            slice_thickness_mm=ct.slice_thickness_mm,
            lung_mask_name=lung_mask.name,
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels in the patient's frame: z, y, x."""
        z, y, x = self.lung.shape
        return z, y, x

    def lung_box(self, margin_mm: float = 0.0) -> Box:
        """The lung's bounding box, grown on each side by ceil(margin / spacing) voxels and clipped to the image."""
        return box_of(self.lung, self.spacing, margin_mm)

    def to_file_grid(self, array: np.ndarray) -> sitk.Image:
        """Make an image of an array in the patient's frame, with the CT file's size, spacing, origin and direction.

        True and false become 1 and 0.
        """
        if array.dtype == np.bool_:
            array = array.astype(np.uint8)
        return self.geometry.apply(sitk.GetImageFromArray(np.ascontiguousarray(self.orientation.to_file(array))))


class _Voxels:
    """An image's voxels for `numpy.asarray`, without a copy: the array, and every view of it, keeps the image alive."""

    def __init__(self, image: sitk.Image) -> None:
        self._image = image
        self.__array_interface__ = sitk.GetArrayViewFromImage(image).__array_interface__


def _labels_on_grid(mask: Volume, geometry: ImageGeometry) -> tuple[npt.NDArray[np.uint8], tuple[str, ...]]:
    """A mask on the CT's grid, with warnings: nearest neighbour where it lies on another.

    Labels above 255 and fractions become 255: lung, and none of the lobes. The labels may be a view of the mask.
    """
    stored = sitk.GetArrayViewFromImage(mask.image)
    labels = _as_labels(stored)
    filled = np.count_nonzero(labels)
    if filled == 0:
        found = "the mask has negative labels and none above 0" if (stored < 0).any() else "the mask is empty"
        raise InputError(mask.name, found, "labels above 0 inside the lungs")
    own = mask.geometry
    if own.same_grid(geometry):
        return labels, ()
    moving = own.apply(sitk.GetImageFromArray(labels))
    resampler = sitk.ResampleImageFilter()
    resampler.SetSize(geometry.size)
    resampler.SetOutputSpacing(geometry.spacing)
    resampler.SetOutputOrigin(geometry.origin)
    resampler.SetOutputDirection(geometry.direction)
    resampler.SetInterpolator(sitk.sitkNearestNeighbor)
    labels = sitk.GetArrayFromImage(resampler.Execute(moving))
    kept = np.count_nonzero(labels) * geometry.voxel_ml / (filled * own.voxel_ml)
    if kept == 0:
        raise InputError(mask.name, "the mask does not touch the CT", "a mask in the CT's physical space")
    volume = f"its volume there is {100 * kept:.1f} % of before"
    warning = f"the mask lies on another grid than the CT and was resampled onto it; {volume}"
    return labels, (warning,)


def _as_labels(array: np.ndarray) -> npt.NDArray[np.uint8]:
    if array.dtype == np.uint8:
        return array
    with np.errstate(invalid="ignore"):
        whole = (array > 0) & (array <= 255) & (array == np.floor(array))
        return np.where(whole, array, np.where(array > 0, 255, 0)).astype(np.uint8)


def _check_volume(volume_ml: float, name: str) -> None:
    low, high = LUNG_VOLUME_ML
    if not low <= volume_ml <= high:
        raise InputError(name, f"the mask has a volume of {volume_ml:.0f} ml", f"lungs of {low:.0f} to {high:.0f} ml")


def _hounsfield(
    voxels: np.ndarray, lung: npt.NDArray[np.bool_], name: str
) -> tuple[npt.NDArray[np.int16] | npt.NDArray[np.float32], tuple[str, ...]]:
    """A file's voxels as `_in_range` has them, those that are not finite replaced, with warnings."""
    finite = np.isfinite(voxels) if voxels.dtype.kind == "f" else None
    if finite is None or finite.all():
        return _in_range(voxels), ()
    if not finite.any():
        raise InputError(name, "no voxel is a finite number", "a CT in HU")
    inside = np.count_nonzero(lung & ~finite)
    fraction = inside / np.count_nonzero(lung)
    if fraction > MAX_REPLACED_FRACTION:
        raise InputError(
            name,
            f"{100 * fraction:.1f}% of the voxels in the lung are not finite numbers",
            f"at most {100 * MAX_REPLACED_FRACTION:.0f}%",
        )
    voxels = voxels.copy()
    replaced = _replace_not_finite(voxels, finite, lung)
    warning = f"{replaced} voxels of the CT were not finite numbers and were replaced, {inside} inside the lung"
    return _in_range(voxels), (warning,)


def hounsfield_shown(voxels: np.ndarray) -> npt.NDArray[np.int16] | npt.NDArray[np.float32]:
    """A file's voxels, to be shown alone: as a scan has them, but what is not finite is air, also inside the lung."""
    if voxels.dtype.kind == "f":
        voxels = np.where(np.isfinite(voxels), voxels, voxels.dtype.type(AIR_HU))
    return _in_range(voxels)


def _in_range(voxels: np.ndarray) -> npt.NDArray[np.int16] | npt.NDArray[np.float32]:
    """Finite voxels as int16 or float32.

    Values below the range of int16 are clipped to it; from `UNSIGNED_PADDING_HU` on, they become `PADDING_HU`.
    """
    if voxels.dtype != np.int16:
        limits = np.iinfo(np.int16)
        voxels = np.clip(voxels, limits.min, limits.max)
        voxels = voxels.astype(np.float32 if voxels.dtype.kind == "f" else np.int16, copy=False)
    return _with_signed_padding(voxels)


def _with_signed_padding(hounsfield: np.ndarray) -> np.ndarray:
    """The same array where it holds no unsigned padding, else a copy."""
    if hounsfield.max() < UNSIGNED_PADDING_HU:
        return hounsfield
    return np.where(hounsfield >= UNSIGNED_PADDING_HU, hounsfield.dtype.type(PADDING_HU), hounsfield)


def _replace_not_finite(voxels: np.ndarray, finite: npt.NDArray[np.bool_], lung: npt.NDArray[np.bool_]) -> int:
    """Replace in place: inside the lung by the median of the finite neighbours (3 x 3 x 3), elsewhere by air; count them."""
    missing = ~finite
    places = np.argwhere(missing & lung)
    medians = []
    for place in places:
        window = tuple(slice(max(p - 1, 0), p + 2) for p in place)
        known = voxels[window][finite[window]]
        medians.append(np.median(known) if known.size else AIR_HU)
    voxels[missing] = AIR_HU
    if len(places):
        voxels[tuple(places.T)] = medians
    return int(np.count_nonzero(missing))


def _check_hounsfield(hounsfield: np.ndarray, lung: npt.NDArray[np.bool_], name: str) -> None:
    if hounsfield.min() == hounsfield.max():
        raise InputError(name, f"every voxel is {hounsfield.flat[0]}", "a CT in HU")
    lowest, total = np.inf, 0.0
    for plane, inside in zip(hounsfield, lung, strict=True):
        if inside.any():
            values = plane[inside]
            lowest = min(lowest, float(values.min()))
            total += float(np.maximum(values, AIR_HU).sum(dtype=np.float64))
    if lowest >= AERATED_HU:
        raise InputError(
            name,
            f"nothing inside the lung mask lies below {AERATED_HU} HU (the lowest is {lowest:.0f})",
            "a CT in HU and a mask of its lungs",
        )
    mean = total / np.count_nonzero(lung)
    low, high = LUNG_MEAN_HU
    if not low <= mean <= high:
        raise InputError(
            name,
            f"the mean inside the lung mask is {mean:.0f} HU",
            f"{low:.0f} to {high:.0f} HU: a CT in HU and a mask of its lungs",
        )
