"""Scores, percentages and densitometry as a structured report after template TID 1500 (DICOM PS3.16)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .. import DISCLAIMER
from ..fleischner import Subtype
from ..lungs.densitometry import Densitometry
from ..subtyping import Finding, Subtyping
from . import codes
from .codes import Code
from .segmentation import WHOLE_LUNGS, region_names
from .software import NAME, Software
from .source import SourceSeries

if TYPE_CHECKING:
    from highdicom.seg import Segmentation
    from highdicom.sr import (
        EnhancedSR,
        Measurement,
        QualitativeEvaluation,
        VolumetricROIMeasurementsAndQualitativeEvaluations,
    )
    from pydicom import Dataset

REPORT_SERIES = ("Emphysema report", 9403)
"""As `segmentation.MAPS_SERIES`."""


def structured_report(
    source: SourceSeries,
    maps: Segmentation,
    lungs: Segmentation,
    subtyping: Subtyping,
    density: tuple[Densitometry, dict[str, Densitometry]],
    software: Software,
    warnings: Sequence[str],
) -> EnhancedSR:
    """One group of measurements for each subtype, which refers to its map, and one for the lungs and each region.

    Args:
        maps, lungs: the segmentations of this case.
        density: of the lungs and of each region, as `densitometry.measure` returns it.
        warnings: about the case; they become comments of the first group.
    """
    from highdicom import UID
    from highdicom.sr import (
        DeviceObserverIdentifyingAttributes,
        EnhancedSR,
        MeasurementReport,
        ObservationContext,
        ObserverContext,
    )
    from pydicom.sr.codedict import codes as standard

    whole, parts = density
    percentages = {finding.subtype: finding.percentage for finding in subtyping.findings}
    groups = [_subtype_group(finding, maps, number, software) for number, finding in enumerate(subtyping.findings, start=1)]
    groups.append(_region_group(WHOLE_LUNGS, codes.LUNGS, lungs, 1, _measurements(whole, percentages), software))
    for number, name in enumerate(region_names(subtyping.regions), start=2):
        percentages = {finding.subtype: finding.region_percentages[name] for finding in subtyping.findings}
        measured = _measurements(parts[name], percentages)
        groups.append(_region_group(name, codes.REGIONS[name], lungs, number, measured, software))
    for text in (DISCLAIMER, *warnings):
        _add_comment(groups[0], text)
    observer = DeviceObserverIdentifyingAttributes(uid=UID(), name=NAME, model_name=software.bundle)
    content = MeasurementReport(
        ObservationContext(observer_device_context=ObserverContext(standard.DCM.Device, observer)),
        codes.CT_CHEST.concept(),
        groups,
        standard.DCM.ImagingMeasurementReport,
    )
    report = EnhancedSR(
        [*source.slices, maps, lungs],
        content[0],
        series_instance_uid=UID(),
        series_number=REPORT_SERIES[1],
        sop_instance_uid=UID(),
        instance_number=1,
        is_complete=True,
        is_final=False,
        is_verified=False,
        series_description=REPORT_SERIES[0],
        **software.equipment(),
    )
    report.CodingSchemeIdentificationSequence = [_private_scheme()]
    return report


def _private_scheme() -> Dataset:
    from pydicom import Dataset

    scheme = Dataset()
    scheme.CodingSchemeDesignator = codes.PRIVATE_SCHEME
    scheme.CodingSchemeName = f"Private codes of {NAME}"
    return scheme


def _measurements(density: Densitometry, percentages: dict[Subtype, float | None]) -> list[Measurement]:
    values: list[tuple[Code, float, Code]] = [
        (codes.VOLUME, round(density.volume_ml), codes.MILLILITER),
        (codes.LAA950, round(density.laa950_percentage, 4), codes.PERCENT),
        (codes.PERC15, density.perc15_hu, codes.HOUNSFIELD),
    ]
    for subtype, percentage in percentages.items():
        if percentage is not None:
            values.append((codes.EXTENT[subtype], percentage, codes.PERCENT))
    return [_measurement(*value) for value in values]


def _measurement(name: Code, value: float, unit: Code) -> Measurement:
    from highdicom.sr import Measurement

    return Measurement(name.concept(), value, unit.concept())


def _subtype_group(
    finding: Finding, maps: Segmentation, number: int, software: Software
) -> VolumetricROIMeasurementsAndQualitativeEvaluations:
    from highdicom.sr import QualitativeEvaluation

    subtype = finding.subtype
    measurements = [_measurement(codes.SCORE, finding.score, codes.SCORE_UNIT)]
    if finding.percentage is not None:
        measurements.append(_measurement(codes.EXTENT[subtype], finding.percentage, codes.PERCENT))
    grade = QualitativeEvaluation(codes.SEVERITY.concept(), codes.grade(subtype, finding.score).concept())
    return _group(
        f"{subtype.name} emphysema", codes.SUBTYPES[subtype], codes.LUNGS, maps, number, measurements, software, [grade]
    )


def _region_group(
    name: str, site: Code, lungs: Segmentation, number: int, measurements: list[Measurement], software: Software
) -> VolumetricROIMeasurementsAndQualitativeEvaluations:
    return _group(name.replace("_", " "), codes.EMPHYSEMA, site, lungs, number, measurements, software, [])


def _group(
    name: str,
    finding: Code,
    site: Code,
    segmentation: Segmentation,
    number: int,
    measurements: list[Measurement],
    software: Software,
    evaluations: list[QualitativeEvaluation],
) -> VolumetricROIMeasurementsAndQualitativeEvaluations:
    from highdicom import UID
    from highdicom.sr import (
        FindingSite,
        ReferencedSegment,
        SourceSeriesForSegmentation,
        TrackingIdentifier,
        VolumetricROIMeasurementsAndQualitativeEvaluations,
    )

    return VolumetricROIMeasurementsAndQualitativeEvaluations(
        TrackingIdentifier(UID(), name),
        referenced_segment=ReferencedSegment(
            segmentation.SOPClassUID,
            segmentation.SOPInstanceUID,
            number,
            source_series=SourceSeriesForSegmentation(segmentation.ReferencedSeriesSequence[0].SeriesInstanceUID),
        ),
        finding_type=finding.concept(),
        algorithm_id=software.for_measurements(),
        finding_sites=[FindingSite(site.concept())],
        measurements=measurements,
        qualitative_evaluations=evaluations,
    )


def _add_comment(group: VolumetricROIMeasurementsAndQualitativeEvaluations, text: str) -> None:
    from highdicom.sr import RelationshipTypeValues, TextContentItem

    comment = TextContentItem(codes.COMMENT.concept(), text, RelationshipTypeValues.CONTAINS)
    group[0].ContentSequence.append(comment)
