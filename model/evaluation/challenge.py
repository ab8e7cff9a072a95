"""A challenge's jobs as the platform lists them in `predictions.json`: whose scan each is of, and what it found.

Each job has `pk`, `status`, `inputs` and `outputs`; what they list is called an interface or, later, a socket, and has a slug
and a relative path. The files of a job lie in `<pk>/output/<relative path>`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..cohort.layout import REFERENCE_FILE, truth_paths
from ..cohort.readings import Reading, Readings
from ..cohort.tables import RANGES, Extent, parse_extent
from ..container.grand_challenge import CT_FOLDER, JOB_OUTPUT_FOLDER, MAP_FOLDERS, PREDICTIONS_FILE, SCORE_FILES, stem_of
from ..errors import InputError, reason
from ..fleischner import SUBTYPES, Subtype
from .report import Report
from .voxels import Counts, by_subtype, count_voxels
from .workers import map_isolated

SUCCEEDED = "Succeeded"
SCORE_SLUGS = {name: Path(file).stem for name, file in SCORE_FILES.items()}
MAP_SLUGS = [Path(folder).name for folder in MAP_FOLDERS.values()]


@dataclass(frozen=True)
class JobResult:
    """What one job found.

    Attributes:
        entity: the stem of the CT's name.
        reading: scores and percentages, and where the maps are, if it wrote any.
        voxels: what `count_voxels` makes of the maps, where there are maps and truth.
    """

    entity: str
    reading: Reading
    voxels: Counts | None


@dataclass(frozen=True)
class Submission:
    """All jobs of one submission.

    Attributes:
        readings: of the jobs that could be read; `failures` names the others by their pk.
        jobs: pk by entity.
        voxels: by entity, where there are maps and truth.
        is_input: whether every failure is the input's fault.
    """

    readings: Readings
    jobs: dict[str, str]
    voxels: dict[str, Counts]
    is_input: bool


def ground_truth(*places: Path) -> Path:
    """The first of these folders that holds `reference.csv`.

    Raises:
        InputError: none does.
    """
    found = next((place for place in places if (place / REFERENCE_FILE).exists()), None)
    if found is None:
        others = ", ".join(str(place) for place in places[1:])
        raise InputError(places[0], f"no {REFERENCE_FILE}", f"the ground truth there or in {others}")
    return found


def read_submission(folder: Path, truth: Path | None, workers: int = 1) -> Submission:
    """Read all jobs, each in a process of its own; those that cannot be read are listed, and the others go on.

    Args:
        folder: with `predictions.json` and the jobs' folders.
        truth: the folder with voxel truth, see `model.cohort.layout`; or None.
        workers: how many jobs are read at a time.

    Raises:
        InputError: `predictions.json` is missing or no list, or no job can be read.
    """
    file = folder / PREDICTIONS_FILE
    jobs = _listed(file)
    outcomes = map_isolated(partial(read_job, folder=folder, truth=truth), jobs, workers)
    names = [_name(job, place) for place, job in enumerate(jobs)]
    failures = {name: outcome.problem for name, outcome in zip(names, outcomes, strict=True) if outcome.problem}
    results = [(name, outcome.value) for name, outcome in zip(names, outcomes, strict=True) if outcome.value is not None]
    times = Counter(result.entity for _, result in results)
    for name, result in results:
        if times[result.entity] > 1:
            failures[name] = f"{result.entity} is the scan of {times[result.entity]} jobs, expected one"
    kept = [(name, result) for name, result in results if times[result.entity] == 1]
    if not kept:
        listed = "; ".join(f"{name}: {problem}" for name, problem in failures.items())
        raise InputError(file, f"no job can be read ({listed or 'the list is empty'})", "jobs with scores")
    return Submission(
        Readings(file, "submission", {result.entity: result.reading for _, result in kept}, failures),
        {result.entity: name for name, result in kept},
        {result.entity: result.voxels for _, result in kept if result.voxels is not None},
        all(outcome.is_input for outcome in outcomes if outcome.problem),
    )


def read_job(job: Any, folder: Path, truth: Path | None) -> JobResult:
    """Read the scores of one job, and count the voxels of its maps where there is truth.

    Raises:
        InputError: the job did not succeed, is malformed, or its files cannot be read.
    """
    if not isinstance(job, dict) or not isinstance(job.get("pk"), str):
        raise InputError(PREDICTIONS_FILE, "a job without pk", "an object with pk, status, inputs and outputs")
    if job.get("status") != SUCCEEDED:
        raise InputError(job["pk"], f"its status is {job.get('status')!r}", SUCCEEDED)
    output = folder / job["pk"] / JOB_OUTPUT_FOLDER
    try:
        inputs, outputs = (_by_slug(job[key]) for key in ("inputs", "outputs"))
        entity = _entity(inputs)
        scores = {name: output / outputs[slug]["relative_path"] for name, slug in SCORE_SLUGS.items()}
        maps = [output / outputs[slug]["relative_path"] for slug in MAP_SLUGS if slug in outputs]
    except (LookupError, TypeError, AttributeError) as error:
        found = f"malformed ({type(error).__name__}: {error})"
        expected = f"inputs with an image at {CT_FOLDER}, outputs with {' and '.join(SCORE_SLUGS.values())}"
        raise InputError(job["pk"], found, expected) from error
    extents = tuple(_read_extent(subtype, scores[subtype.name]) for subtype in SUBTYPES)
    reading = Reading(extents, tuple(_only_file(path) for path in maps))
    truths = truth_paths(truth, entity) if truth else ()
    counted = len(reading.maps) == len(SUBTYPES) and any(path.exists() for path in truths)
    return JobResult(entity, reading, count_voxels((truths, reading.maps)) if counted else None)


def _listed(file: Path) -> list[Any]:
    expected = "the platform's list of jobs"
    try:
        jobs = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(file, f"it cannot be read ({reason(error)})", expected) from error
    if not isinstance(jobs, list):
        raise InputError(file, f"a {type(jobs).__name__}", expected)
    return jobs


def _name(job: Any, place: int) -> str:
    return job["pk"] if isinstance(job, dict) and isinstance(job.get("pk"), str) else f"job {place + 1} of the list"


def _by_slug(values: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What a job lists, by slug: each value with its interface's or socket's relative path."""
    kinds = [(value, value.get("interface") or value["socket"]) for value in values]
    return {kind["slug"]: {**value, "relative_path": kind["relative_path"].strip("/")} for value, kind in kinds}


def _entity(inputs: dict[str, dict[str, Any]]) -> str:
    """The stem of the CT's name; the CT is what lies where `process.py` looks for it, or the only image."""
    images = [value for value in inputs.values() if value.get("image")]
    scans = [value for value in images if value["relative_path"] == CT_FOLDER] or images
    if len(scans) != 1:
        raise LookupError(f"{len(scans)} images at {CT_FOLDER}")
    return stem_of(Path(scans[0]["image"]["name"]))


def _only_file(folder: Path) -> Path:
    files = [path for path in sorted(folder.glob("*")) if path.is_file()]
    if len(files) != 1:
        raise InputError(folder, f"{len(files)} files", "one activation map")
    return files[0]


def _read_extent(subtype: Subtype, path: Path) -> Extent:
    """What a score file says: an object with score and percentage, or a score alone."""
    expected = f"a score, or an object with score and percentage; {RANGES}"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        score, percentage = (content["score"], content.get("percentage")) if isinstance(content, dict) else (content, None)
        extent = parse_extent(subtype, score, percentage)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(path, f"no score can be read ({type(error).__name__}: {reason(error)})", expected) from error
    if extent.score is None:
        raise InputError(path, "the score is empty", expected)
    return extent


def challenge_document(report: Report, reference: Readings, submission: Submission) -> dict[str, Any]:
    """What the platform's `metrics.json` holds: `results` a case, `failures` by job, and `aggregates` of all cases."""
    results = []
    for entity in report.coverage.paired:
        case: dict[str, Any] = {"entity": entity, "job": submission.jobs[entity]}
        sides = (reference.cases[entity].extents, submission.readings.cases[entity].extents)
        for subtype, true, found in zip(SUBTYPES, *sides, strict=True):
            case[subtype.name] = {
                "reference": true.score,
                "predicted": found.score,
                "reference_percentage": true.percentage,
                "predicted_percentage": found.percentage,
            }
        if entity in submission.voxels:
            voxels = by_subtype([submission.voxels[entity]])
            for subtype in SUBTYPES:
                case[subtype.name]["voxels"] = voxels[subtype.name].as_document()
        results.append(case)
    failures = [{"job": name, "error": problem} for name, problem in submission.readings.failures.items()]
    return {"results": results, "failures": failures, "aggregates": report.as_document()}
