"""Agreement of activation maps with voxel truth: Dice, and how much of one subtype's truth the other's map claims."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from evalutils.stats import calculate_confusion_matrix, dice_from_confusion_matrix

from ..cohort.layout import TRUTH_FOLDER, truth_paths
from ..cohort.readings import Readings
from ..errors import InputError
from ..fleischner import SUBTYPES
from ..imaging.readers import read_volume
from .workers import map_isolated

ACTIVE = 0.5
"""Activation from which a voxel counts as emphysema."""

Counts = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class VoxelAgreement:
    """How one subtype's maps agree with its truth over a cohort; 0 to 1, None where it is not defined.

    Attributes:
        n: scans.
        n_with_subtype: scans whose truth holds the subtype.
        pooled_dice: Dice of all scans' voxels together.
        mean_dice: mean over the scans that have the subtype.
        claimed_by_own: share of the truth's voxels, of all scans together, that the subtype's own map claims.
        claimed_by_other: share that the other subtype's map claims.
    """

    n: int
    n_with_subtype: int
    pooled_dice: float | None
    mean_dice: float | None
    claimed_by_own: float | None
    claimed_by_other: float | None

    def as_document(self) -> dict[str, Any]:
        """For `metrics.json`."""
        return asdict(self)


def measure_voxels(predictions: Readings, entities: Sequence[str], truth: Path, workers: int = 1) -> dict[str, VoxelAgreement]:
    """Compare the activation maps of a cohort with its truth.

    Args:
        predictions: results that lie in folders with their maps.
        entities: the scans to compare.
        truth: a cohort's folder, see `model.cohort.layout`.
        workers: processes.

    Returns:
        By the subtype's name.

    Raises:
        InputError: an image is missing or cannot be read, or the grids of a scan differ.
    """
    without = [entity for entity in entities if not predictions.cases[entity].maps]
    if without:
        raise InputError(predictions.source, f"no activation maps of {', '.join(without)}", "output folders of process.py")
    jobs = [(truth_paths(truth, entity), predictions.cases[entity].maps) for entity in entities]
    outcomes = map_isolated(count_voxels, jobs, workers)
    problems = [f"{entity}: {outcome.problem}" for entity, outcome in zip(entities, outcomes, strict=True) if outcome.problem]
    if problems:
        expected = f"maps of every scan on the grid of {truth}/ENTITY/{TRUTH_FOLDER}"
        raise InputError(predictions.source, f"{len(problems)} scans cannot be compared: {'; '.join(problems)}", expected)
    return by_subtype([outcome.value for outcome in outcomes if outcome.value is not None])


def by_subtype(counts: Sequence[Counts]) -> dict[str, VoxelAgreement]:
    """Figures of each subtype, by its name, from what `count_voxels` returned for each scan."""
    return {subtype.name: summarise(np.array(counts)[:, place]) for place, subtype in enumerate(SUBTYPES)}


def summarise(tables: Counts) -> VoxelAgreement:
    """Figures of one subtype over all scans.

    Args:
        tables: scans x 2 x 2 x 2; what `count_voxels` returns for one subtype of each scan.
    """
    own, other = tables.sum(axis=0)
    affected = [own for own, _ in tables if own[1].sum() > 0]
    return VoxelAgreement(
        n=len(tables),
        n_with_subtype=len(affected),
        pooled_dice=_ratio(2 * own[1, 1], own[1].sum() + own[:, 1].sum()),
        mean_dice=float(np.mean([dice_from_confusion_matrix(table)[1] for table in affected])) if affected else None,
        claimed_by_own=_ratio(own[1, 1], own[1].sum()),
        claimed_by_other=_ratio(other[1, 1], other[1].sum()),
    )


def _ratio(part: int, whole: int) -> float | None:
    return float(part / whole) if whole else None


def count_voxels(files: tuple[tuple[Path, ...], tuple[Path, ...]]) -> Counts:
    """Count the voxels of one scan.

    Args:
        files: truth: for each subtype an image, above 0 where there is emphysema; and maps: for each subtype an activation
            map on the same grid: uint8 (255 is activation 1) or floating-point.

    Returns:
        Subtype x (its own map, the other subtype's map) x (outside, inside of its truth) x (outside, inside of the map).

    Raises:
        InputError: an image cannot be read, or the grids differ.
    """
    truth, maps = files
    volumes = [read_volume(path) for path in (*truth, *maps)]
    grid = volumes[0].geometry
    for volume in volumes:
        if not volume.geometry.same_grid(grid):
            raise InputError(volume.name, "it lies on another grid", f"the grid of {truth[0]}")
    true = [sitk.GetArrayViewFromImage(volume.image) > 0 for volume in volumes[: len(truth)]]
    return count_masks(true, [active(sitk.GetArrayViewFromImage(volume.image)) for volume in volumes[len(truth) :]])


def count_masks(truth: Sequence[Mask], claimed: Sequence[Mask]) -> Counts:
    """As `count_voxels`, for masks in memory: one a subtype of the truth, and of the maps."""
    return np.array(
        [
            [calculate_confusion_matrix(inside, mask, [False, True]) for mask in (own, other)]
            for inside, own, other in zip(truth, claimed, claimed[::-1], strict=True)
        ]
    )


def active(activation: npt.NDArray[Any]) -> Mask:
    """Where an activation map counts as emphysema; uint8 (255 is activation 1) or floating-point."""
    return activation >= (ACTIVE if activation.dtype.kind == "f" else ACTIVE * 255)
