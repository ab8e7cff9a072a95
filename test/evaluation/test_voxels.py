from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from model.cohort.readings import Reading, Readings
from model.cohort.tables import Extent
from model.errors import InputError
from model.evaluation.voxels import count_voxels, measure_voxels, summarise

SHAPE = (2, 3, 4)


def write_map(path: Path, voxels: Mapping[int, float], dtype: type = np.uint8, spacing: float = 1.0) -> Path:
    """An image of 24 voxels, 0 but for those that are named."""
    array: np.ndarray = np.zeros(SHAPE, dtype)
    for place, value in voxels.items():
        array.flat[place] = value
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((spacing, 1.0, 1.0))
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))
    return path


def write_case(
    root: Path, entity: str, truth: tuple[set[int], set[int]], claimed: tuple[set[int], set[int]]
) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    names = ("centrilobular", "paraseptal")
    return (
        tuple(
            write_map(root / "truth" / entity / "truth" / f"{name}.mha", dict.fromkeys(places, 1))
            for name, places in zip(names, truth, strict=True)
        ),
        tuple(
            write_map(root / "maps" / entity / f"{name}.mha", dict.fromkeys(places, 255))
            for name, places in zip(names, claimed, strict=True)
        ),
    )


def test_voxels_are_counted_for_the_own_map_and_for_the_others(tmp_path: Path) -> None:
    files = write_case(tmp_path, "a", ({0, 1, 2, 3}, {10, 11}), ({1, 2, 3, 4, 5}, {0, 10}))
    counts = count_voxels(files)
    own, other = counts[0]
    assert own.tolist() == [[24 - 4 - 2, 2], [1, 3]]
    assert other.tolist() == [[24 - 4 - 1, 1], [3, 1]]
    assert counts[1].tolist() == [[[21, 1], [1, 1]], [[17, 5], [2, 0]]]


@pytest.mark.parametrize(("dtype", "values", "active"), [(np.uint8, {0: 127, 1: 128}, 1), (np.float32, {0: 0.4999, 1: 0.5}, 1)])
def test_a_voxel_counts_from_an_activation_of_one_half(
    tmp_path: Path, dtype: type, values: dict[int, float], active: int
) -> None:
    truth, maps = write_case(tmp_path, "a", ({0, 1}, set()), (set(), set()))
    write_map(maps[0], values, dtype)
    assert count_voxels((truth, maps))[0, 0, 1, 1] == active


def test_maps_on_another_grid_are_named(tmp_path: Path) -> None:
    truth, maps = write_case(tmp_path, "a", ({0}, {1}), ({0}, {1}))
    write_map(maps[1], {}, spacing=2.0)
    with pytest.raises(InputError, match=r"maps/a/paraseptal\.mha: it lies on another grid"):
        count_voxels((truth, maps))


def test_a_cohorts_figures_are_pooled_and_averaged_over_the_scans_that_have_the_subtype() -> None:
    """Two scans with the subtype (Dice 0.8 and 0.5) and one without it, in which the map claims 4 voxels."""
    own = [[[10, 1], [1, 4]], [[10, 2], [0, 1]], [[10, 4], [0, 0]]]
    other = [[[11, 0], [3, 2]], [[12, 0], [1, 0]], [[14, 0], [0, 0]]]
    figures = summarise(np.array([list(pair) for pair in zip(own, other, strict=True)]))
    assert (figures.n, figures.n_with_subtype) == (3, 2)
    assert figures.mean_dice == pytest.approx((0.8 + 0.5) / 2)
    assert figures.pooled_dice == pytest.approx(2 * 5 / (6 + 12))
    assert figures.claimed_by_own == pytest.approx(5 / 6)
    assert figures.claimed_by_other == pytest.approx(2 / 6)


def test_a_cohort_without_the_subtype_has_no_figures() -> None:
    figures = summarise(np.array([[[[24, 0], [0, 0]], [[24, 0], [0, 0]]]]))
    assert (figures.pooled_dice, figures.mean_dice, figures.claimed_by_own, figures.claimed_by_other) == (None,) * 4


def test_several_workers_measure_a_cohort_and_name_every_scan_that_cannot_be_compared(tmp_path: Path) -> None:
    cases = {
        "a": write_case(tmp_path, "a", ({0, 1}, {5}), ({0, 1}, {6})),
        "b": write_case(tmp_path, "b", ({2, 3}, set()), ({3, 4}, set())),
    }
    reading = {entity: Reading((Extent(0), Extent(0)), maps) for entity, (_, maps) in cases.items()}
    predictions = Readings(tmp_path / "maps", "maps", reading)
    figures = measure_voxels(predictions, ["a", "b"], tmp_path / "truth", workers=2)
    assert figures["centrilobular"].pooled_dice == pytest.approx(2 * 3 / 8)
    assert figures["centrilobular"].mean_dice == pytest.approx((1 + 0.5) / 2)
    assert figures["paraseptal"].pooled_dice == 0
    assert figures["paraseptal"].n_with_subtype == 1

    for _, maps in cases.values():
        maps[0].unlink()
    with pytest.raises(InputError, match=r"2 scans cannot be compared: a: .*no such file.*b: .*no such file"):
        measure_voxels(predictions, ["a", "b"], tmp_path / "truth")
