"""What is reported of a case: the objects that `results.json` holds, as the container, the viewer and the evaluation have them.

The dataclasses are the shape of the file. `python -m model.container.results` writes their JSON Schema to
`docs/results.schema.json`.
This module imports nothing that takes seconds, such as torch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

from .. import __version__
from ..errors import InputError, reason
from ..fleischner import CENTRILOBULAR, PARASEPTAL, Subtype
from .schema import Described, from_json, schema_of, to_json

if TYPE_CHECKING:
    from ..imaging.scan import Scan
    from ..lungs.densitometry import Densitometry
    from ..lungs.quality import ImageQuality
    from ..subtyping import EmphysemaSubtyper, Subtyping

LungMaskSource = Literal["given", "automatic"]
"""Whether the lung mask came with the CT, or was made by `model.lungs.segmentation`."""

SCHEMA_FILE = Path("docs/results.schema.json")
"""In the repository."""

_DECIMALS = 4


def _score(subtype: Subtype) -> Described:
    highest = len(subtype.grades) - 1
    return Described(f"Fleischner score of {subtype.name} emphysema, 0 to {highest}.", 0, highest)


def _severity(subtype: Subtype) -> Described:
    text = f"Name of the score of {subtype.name} emphysema."
    return Described(text, values=tuple(grade.severity for grade in subtype.grades))


def _percentage(subtype: Subtype, of: str) -> Described:
    text = f"{subtype.name.capitalize()} emphysema in percent of the {of}, 0 to 100; null from a classification network."
    return Described(text, 0, 100)


def _probabilities(subtype: Subtype) -> Described:
    return Described(f"Probability of each score of {subtype.name} emphysema, 0 to 1; of a classification network alone.", 0, 1)


def _laa950(of: str) -> Described:
    return Described(f"Voxels below -950 HU in percent of the {of}, 0 to 100.", 0, 100)


def _perc15(of: str) -> Described:
    return Described(f"15th percentile of the density of the {of} in HU.")


def _volume(of: str) -> Described:
    return Described(f"Volume of the {of} in ml.", 0)


@dataclass(frozen=True)
class SubtypeScore:
    """One subtype in one scan; the object that its score file holds."""

    score: Annotated[int, Described("Fleischner score.", 0)]
    severity: Annotated[str, Described("Name of the score.")]
    percentage: Annotated[float | None, Described("Percent of the lung, 0 to 100; null from a classification network.", 0, 100)]


@dataclass(frozen=True)
class RegionMetrics:
    """Measurements of one region of the lungs."""

    cle_percentage: Annotated[float | None, _percentage(CENTRILOBULAR, "region")]
    pse_percentage: Annotated[float | None, _percentage(PARASEPTAL, "region")]
    laa950_percentage: Annotated[float, _laa950("region")]
    perc15_hu: Annotated[int, _perc15("region")]
    volume_ml: Annotated[int, _volume("region")]


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Scores and measurements of one scan."""

    cle_severity_score: Annotated[int, _score(CENTRILOBULAR)]
    cle_severity: Annotated[str, _severity(CENTRILOBULAR)]
    cle_percentage: Annotated[float | None, _percentage(CENTRILOBULAR, "lung")]
    cle_probabilities: Annotated[tuple[float, ...] | None, _probabilities(CENTRILOBULAR)] = None
    pse_severity_score: Annotated[int, _score(PARASEPTAL)]
    pse_severity: Annotated[str, _severity(PARASEPTAL)]
    pse_percentage: Annotated[float | None, _percentage(PARASEPTAL, "lung")]
    pse_probabilities: Annotated[tuple[float, ...] | None, _probabilities(PARASEPTAL)] = None
    laa950_percentage: Annotated[float, _laa950("lung")]
    perc15_hu: Annotated[int, _perc15("lung")]
    lung_volume_ml: Annotated[int, _volume("lung")]
    regions: Annotated[
        dict[str, RegionMetrics],
        Described(
            "Right and left, or both alone where the lungs cannot be told apart; and the lobes where the mask names them, as "
            "left_upper_lobe."
        ),
    ]

    def of(self, subtype: Subtype) -> SubtypeScore:
        """Score, its name and percentage of one subtype."""
        if subtype == CENTRILOBULAR:
            return SubtypeScore(self.cle_severity_score, self.cle_severity, self.cle_percentage)
        return SubtypeScore(self.pse_severity_score, self.pse_severity, self.pse_percentage)


@dataclass(frozen=True)
class Quality:
    """Image quality of one scan; how it is measured is in docs/image-quality.md."""

    noise_hu: Annotated[float | None, Described("Standard deviation in homogeneous lung in HU; null where it has no room.", 0)]
    edge_width_mm: Annotated[
        float | None,
        Described("Sharpness: width of the edge between lung and chest wall in mm, 25 to 75 %; null where it has no edge."),
    ]
    pixel_spacing_mm: Annotated[float, Described("Distance between voxels in axial slices in mm.", 0)]
    slice_spacing_mm: Annotated[float, Described("Distance between axial slices in mm.", 0)]
    slice_thickness_mm: Annotated[float | None, Described("As the DICOM header has it, in mm; null where there is none.", 0)]
    cut_off_percentage: Annotated[
        float, Described("Percent of the lungs' surface that lies on the border of the image or of its field of view.", 0, 100)
    ]
    mean_lung_hu: Annotated[float, Described("Mean density of the lungs in HU, a measure of inspiration.")]

    @classmethod
    def of(cls, measured: ImageQuality) -> Quality:
        """Round what was measured."""
        return cls(
            noise_hu=None if measured.noise_hu is None else round(measured.noise_hu, 1),
            edge_width_mm=None if measured.edge_width_mm is None else round(measured.edge_width_mm, 2),
            pixel_spacing_mm=round(measured.pixel_spacing_mm, _DECIMALS),
            slice_spacing_mm=round(measured.slice_spacing_mm, _DECIMALS),
            slice_thickness_mm=None if measured.slice_thickness_mm is None else round(measured.slice_thickness_mm, _DECIMALS),
            cut_off_percentage=round(measured.cut_off_percentage, 2),
            mean_lung_hu=round(measured.mean_lung_hu, 1),
        )

    @property
    def noise_at_1_mm_hu(self) -> float | None:
        """See `model.lungs.quality.noise_at_1_mm`."""
        from ..lungs.quality import noise_at_1_mm  # it imports scipy, which results do not need

        return noise_at_1_mm(self.noise_hu, self.edge_width_mm)

    @property
    def measures(self) -> dict[str, str]:
        """Each measure that there is, by its name, with its unit; rounded as in warnings (`model.lungs.quality.TERMS`)."""
        known = {
            "noise": (self.noise_hu, "HU", 0),
            "edge width": (self.edge_width_mm, "mm", 2),
            "pixel spacing": (self.pixel_spacing_mm, "mm", 2),
            "slice spacing": (self.slice_spacing_mm, "mm", 2),
            "slice thickness": (self.slice_thickness_mm, "mm", 2),
            "lung surface outside the image": (self.cut_off_percentage, "%", 1),
            "mean density": (self.mean_lung_hu, "HU", 0),
        }
        return {
            name: f"{round(value, decimals):g} {unit}" for name, (value, unit, decimals) in known.items() if value is not None
        }

    @property
    def text(self) -> str:
        """All measures in one line."""
        return ", ".join(f"{name} {value}" for name, value in self.measures.items())


@dataclass(frozen=True)
class Provenance:
    """What it takes to repeat a result."""

    bundle: Annotated[str, Described("Name of the weight bundle, or of the rule that was applied instead of a network.")]
    sha256: Annotated[str | None, Described("Of the bundle's metadata file, which lists those of its tensor files.")] = None
    trained_on: Annotated[str, Described("What the network was trained on.")] = ""
    profile: Annotated[str | None, Described("How the network's input was prepared: paper or released.")] = None
    lung_mask_source: Annotated[
        LungMaskSource | None, Described("given: the lung mask came with the CT; automatic: it was made from the CT.")
    ] = None
    version: Annotated[str, Described("Of this software.")] = ""
    device: Annotated[str | None, Described("Where the network ran: cpu or cuda.")] = None
    precision: Annotated[str | None, Described("What the network computed in: float32, bfloat16, float16 or int8.")] = None
    validated_on: Annotated[
        str | None, Described("The scans with visual scores that the weights were validated on; absent where they were not.")
    ] = None

    @property
    def validation(self) -> str:
        """What the weights were validated on, or that they were not; one sentence."""
        return f"Validated on: {self.validated_on}." if self.validated_on else "Not validated on scans with visual scores."


@dataclass(frozen=True)
class CaseResult:
    """The result of one case, or why there is none: then it has error messages, no metrics and no provenance."""

    entity: Annotated[str | None, Described("File name of the CT without suffix; null for a run that failed as a whole.")]
    metrics: Annotated[Metrics | None, Described("Scores and measurements.")] = None
    provenance: Annotated[Provenance | None, Described("What it takes to repeat the result.")] = None
    warnings: Annotated[tuple[str, ...], Described("What is unusual about the case, one sentence each.")] = ()
    error_messages: Annotated[tuple[str, ...], Described("Why the case was not scored, one line each.")] = ()
    quality: Annotated[Quality | None, Described("Image quality; of a network's results alone.")] = None

    def __post_init__(self) -> None:
        if self.metrics is None and not self.error_messages:
            raise ValueError("neither metrics nor error_messages")
        if self.metrics is not None and self.provenance is None:
            raise ValueError("metrics without provenance")

    @property
    def bundle(self) -> str:
        """The bundle that scored the case, empty if none did."""
        return self.provenance.bundle if self.provenance else ""


def failed_result(message: str, entity: str | None = None) -> CaseResult:
    """The result of a case that could not be scored; entity None is the run as a whole."""
    return CaseResult(entity, error_messages=(message,))


class Found(Protocol):
    """What a network or a rule found of one subtype; as `model.subtyping.Finding`."""

    @property
    def subtype(self) -> Subtype: ...
    @property
    def score(self) -> int: ...
    @property
    def severity(self) -> str: ...
    @property
    def percentage(self) -> float | None: ...
    @property
    def region_percentages(self) -> dict[str, float | None]: ...
    @property
    def probabilities(self) -> tuple[float, ...] | None: ...


def case_metrics(findings: Sequence[Found], lung: Densitometry, parts: dict[str, Densitometry]) -> Metrics:
    """Bring findings and densitometry together.

    Args:
        findings: centrilobular, paraseptal.
        lung: of the lungs as a whole.
        parts: of each region.
    """
    values: dict[str, Any] = {}
    for found in findings:
        prefix = found.subtype.abbreviation
        values[f"{prefix}_severity_score"] = found.score
        values[f"{prefix}_severity"] = found.severity
        values[f"{prefix}_percentage"] = found.percentage
        if found.probabilities is not None:
            values[f"{prefix}_probabilities"] = tuple(round(probability, _DECIMALS) for probability in found.probabilities)
    return Metrics(
        **values,
        laa950_percentage=round(lung.laa950_percentage, _DECIMALS),
        perc15_hu=lung.perc15_hu,
        lung_volume_ml=round(lung.volume_ml),
        regions={
            name: RegionMetrics(
                **_region_percentages(findings, name),
                laa950_percentage=round(part.laa950_percentage, _DECIMALS),
                perc15_hu=part.perc15_hu,
                volume_ml=round(part.volume_ml),
            )
            for name, part in parts.items()
        },
    )


def _region_percentages(findings: Sequence[Found], region: str) -> dict[str, Any]:
    return {f"{found.subtype.abbreviation}_percentage": found.region_percentages[region] for found in findings}


def case_result(
    entity: str,
    scan: Scan,
    subtyping: Subtyping,
    density: tuple[Densitometry, dict[str, Densitometry]],
    subtyper: EmphysemaSubtyper,
    lung_mask_source: LungMaskSource,
) -> CaseResult:
    """The result of a case that a network has scored.

    Args:
        density: of the lungs and of each region, as `densitometry.measure` returns it.
    """
    return CaseResult(
        entity,
        case_metrics(subtyping.findings, *density),
        provenance(subtyper, lung_mask_source),
        (*scan.warnings, *subtyping.warnings),
        quality=Quality.of(subtyping.quality),
    )


def provenance(subtyper: EmphysemaSubtyper, lung_mask_source: LungMaskSource) -> Provenance:
    """The provenance of what a network scores."""
    return Provenance(
        bundle=subtyper.metadata.name,
        sha256=subtyper.bundle_sha256,
        trained_on=subtyper.metadata.trained_on,
        profile=subtyper.metadata.profile,
        lung_mask_source=lung_mask_source,
        version=__version__,
        device=subtyper.device.type,
        precision=str(subtyper.precision).removeprefix("torch."),
        validated_on=subtyper.metadata.validated_on,
    )


def score_text(score: SubtypeScore) -> str:
    """The content of a score file."""
    return _text(to_json(score))


def results_text(results: Sequence[CaseResult]) -> str:
    """The content of `results.json`: a list, one object a case."""
    return _text([to_json(result) for result in results])


def _text(document: Any) -> str:
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


def parse_results(path: Path) -> tuple[list[CaseResult], list[str]]:
    """Read a `results.json`; return the results, and what is wrong with those that cannot be used.

    Raises:
        InputError: the file cannot be read or is no list.
    """
    expected = "a list of results, as process.py writes it"
    try:
        documents = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(path, f"it cannot be read ({reason(error)})", expected) from error
    if not isinstance(documents, list):
        raise InputError(path, "not a list of results", expected)
    results, problems = [], []
    for number, document in enumerate(documents, start=1):
        entity = document.get("entity") if isinstance(document, dict) else None
        try:
            results.append(from_json(CaseResult, document))
        except ValueError as error:
            problems.append(f"{entity or f'result {number}'}: {error}")
    return results, problems


def read_results(path: Path) -> list[CaseResult]:
    """Read a `results.json`.

    Raises:
        InputError: the file cannot be read, is no list, or holds something else than results; all such entries are listed.
    """
    results, problems = parse_results(path)
    if problems:
        raise InputError(path, f"not a list of results ({'; '.join(problems)})", f"what {SCHEMA_FILE} describes")
    return results


def results_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of `results.json`. Fields that it does not describe are allowed: later versions add some."""
    definitions: dict[str, Any] = {}
    items = schema_of(CaseResult, definitions)
    definitions["CaseResult"]["anyOf"] = [
        {"required": ["metrics", "provenance"]},
        {"properties": {"error_messages": {"minItems": 1}}, "not": {"required": ["metrics"]}},
    ]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "results.json of emphysema-subtyping: one result for each case",
        "type": "array",
        "items": items,
        "$defs": {name: definitions[name] for name in sorted(definitions)},
    }


def schema_text() -> str:
    """The content of `SCHEMA_FILE`."""
    return _text(results_schema())


if __name__ == "__main__":
    SCHEMA_FILE.write_text(schema_text(), encoding="utf-8")
