"""Activation maps and lungs as DICOM segmentations on the slices of the source (DICOM PS3.3, A.51)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .. import DISCLAIMER
from ..imaging.scan import Scan
from ..lungs.regions import Regions
from ..subtyping import Finding
from . import codes
from .codes import Code
from .software import Software
from .source import SourceSeries

if TYPE_CHECKING:
    from highdicom.seg import Segmentation, SegmentDescription

FULL_ACTIVATION = 255
"""The stored value of activation 1."""

MAPS_SERIES = ("Emphysema activation maps", 9401)
LUNGS_SERIES = ("Lungs that were scored", 9402)
"""Descriptions of the derived series and their numbers, which sort behind those of a scanner."""

WHOLE_LUNGS = "lungs"
"""The first segment of the lungs; the regions follow."""

_COLOURS = {"centrilobular": (255, 120, 0), "paraseptal": (0, 170, 255)}
_LUNG_COLOUR = (120, 220, 120)


def maps_segmentation(source: SourceSeries, scan: Scan, findings: tuple[Finding, Finding], software: Software) -> Segmentation:
    """Both activation maps as the fractional segments 1 (centrilobular) and 2 (paraseptal).

    The stored values are those of the maps: 0 to 255, where 255 is activation 1. Frames without any activation are left out.
    """
    levels = [_on_slices(scan, _as_bytes(finding.activation_map)) for finding in findings]
    shown = _slices_with(np.stack([stack.any(axis=(1, 2)) for stack in levels]).any(axis=0))
    descriptions = [
        _described(
            number,
            f"{finding.subtype.name.capitalize()} emphysema",
            codes.ALTERED_STRUCTURE,
            codes.SUBTYPES[finding.subtype],
            software,
            _COLOURS[finding.subtype.name],
        )
        for number, finding in enumerate(findings, start=1)
    ]
    # highdicom takes fractions as floating-point numbers, of which a full-size scan would need gigabytes: it is given where
    # there is activation, and the stored values replace its frames.
    active = np.stack([stack[shown] > 0 for stack in levels], axis=-1)
    segmentation = _segmentation(source, scan, shown, active, descriptions, software, "FRACTIONAL", MAPS_SERIES)
    by_instance = {source.slices[index].SOPInstanceUID: index for index in shown}
    frames = []
    for frame in segmentation.PerFrameFunctionalGroupsSequence:
        number = frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        (image,) = frame.DerivationImageSequence[0].SourceImageSequence
        frames.append(levels[number - 1][by_instance[image.ReferencedSOPInstanceUID]].tobytes())
    pixels = b"".join(frames)
    segmentation.PixelData = pixels + b"\0" * (len(pixels) % 2)
    return segmentation


def lungs_segmentation(source: SourceSeries, scan: Scan, regions: Regions, software: Software) -> Segmentation:
    """The lungs that were scored as binary segments: the whole first, then each region in the order of `region_names`."""
    lung = _on_slices(scan, scan.lung)
    shown = _slices_with(lung.any(axis=(1, 2)))
    segments = np.empty((len(shown), *lung.shape[1:], 1 + len(region_names(regions))), bool)
    segments[..., 0] = lung[shown]
    labels = np.zeros(scan.shape, np.uint8)
    labels[regions.box] = regions.labels
    labels = _on_slices(scan, labels)[shown]
    descriptions = [_described(1, "Lungs that were scored", codes.ANATOMICAL_STRUCTURE, codes.LUNGS, software, _LUNG_COLOUR)]
    for number, name in enumerate(region_names(regions), start=2):
        segments[..., number - 1] = np.isin(labels, regions.members[name])
        code = codes.REGIONS[name]
        descriptions.append(_described(number, code.meaning, codes.ANATOMICAL_STRUCTURE, code, software, _LUNG_COLOUR))
    return _segmentation(source, scan, shown, segments, descriptions, software, "BINARY", LUNGS_SERIES)


def region_names(regions: Regions) -> list[str]:
    """The regions that have a segment of their own: all but `both`, which is the whole."""
    return [name for name in regions.members if name != "both"]


def _as_bytes(activation_map: np.ndarray) -> npt.NDArray[np.uint8]:
    if activation_map.dtype == np.uint8:
        return activation_map
    return np.rint(FULL_ACTIVATION * activation_map).astype(np.uint8)


def _on_slices(scan: Scan, array: np.ndarray) -> np.ndarray:
    """An array in the patient's frame on the slices of the source: slice, row, column."""
    return np.ascontiguousarray(scan.orientation.to_file(array))


def _slices_with(anything: Any) -> list[int]:
    """The slices that hold something, or the first alone: a segmentation needs a frame."""
    return [int(index) for index in np.flatnonzero(anything)] or [0]


def _described(
    number: int, label: str, category: Code, kind: Code, software: Software, colour: tuple[int, int, int]
) -> SegmentDescription:
    from highdicom.color import CIELabColor
    from highdicom.seg import SegmentDescription

    return SegmentDescription(
        number,
        label,
        category.concept(),
        kind.concept(),
        algorithm_type="AUTOMATIC",
        algorithm_identification=software.for_segments(),
        anatomic_regions=None if category is codes.ANATOMICAL_STRUCTURE else [codes.LUNGS.concept()],
        display_color=CIELabColor.from_rgb(*colour),
    )


def _segmentation(
    source: SourceSeries,
    scan: Scan,
    shown: list[int],
    pixels: npt.NDArray[np.bool_],
    descriptions: list[SegmentDescription],
    software: Software,
    kind: str,
    series: tuple[str, int],
) -> Segmentation:
    from highdicom import UID, PixelMeasuresSequence
    from highdicom.seg import Segmentation

    first, distance = source.slices[0], scan.geometry.spacing[2]
    measures = PixelMeasuresSequence(first.PixelSpacing, first.get("SliceThickness") or distance, distance)
    return Segmentation(
        [source.slices[index] for index in shown],
        pixels,
        kind,
        descriptions,
        series_instance_uid=UID(),
        series_number=series[1],
        sop_instance_uid=UID(),
        instance_number=1,
        fractional_type="PROBABILITY",
        max_fractional_value=FULL_ACTIVATION,
        content_description=DISCLAIMER,
        content_label="EMPHYSEMA",
        pixel_measures=measures,
        series_description=series[0],
        **software.equipment(),
    )
