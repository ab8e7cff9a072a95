"""Labelled patches become volumes to train on: lungs that are filled with them, and pleura that is covered with them."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from model.cohort.manifest import read_manifest
from model.imaging.scan import Scan
from model.training.patches_cohort import (
    BOUNDS,
    CLASSES,
    SIZE,
    SPACING_MM,
    Kit,
    LungMask,
    Sewn,
    bounds_of,
    chest_wall,
    costal_pleura,
    lay,
    main,
    outline,
    read_class_patches,
    sew,
    sewn,
    truth_of,
)
from test.phantom import make_phantom

LEVELS = {name: -990 + 20 * number for number, name in enumerate(CLASSES)}
"""HU of the patches of a class in this test, so that it is seen where they lie."""


def flat(value: int, wall: bool = False) -> np.ndarray:
    """A patch of one HU; with chest wall in its first ten columns."""
    patch = np.full((SIZE, SIZE), value, np.int16)
    if wall:
        patch[:, :10] = 40
    return patch


def save(path: Path, values: Mapping[str, np.ndarray]) -> None:
    np.savez(path, allow_pickle=False, **values)


@pytest.fixture
def patches(tmp_path: Path) -> Path:
    """In each half of a class: two patches, of which one touches the pleura."""
    file = tmp_path / "patches.npz"
    halves = {
        name: np.stack([flat(hu), flat(hu, wall=True), flat(hu + 5), flat(hu + 5, wall=True)]) for name, hu in LEVELS.items()
    }
    save(file, halves)
    return file


@pytest.fixture
def lungs(tmp_path: Path) -> Path:
    phantom = make_phantom((50, 128, 160), (5.0, 2.0, 2.0))
    sitk.WriteImage(phantom.images()[1], str(tmp_path / "lungs.mha"))
    return tmp_path / "lungs.mha"


def test_lungs_are_filled_with_one_class_and_keep_their_outline(patches: Path, lungs: Path) -> None:
    chest = outline(LungMask.read(lungs))
    assert chest.lungs.sum() * SPACING_MM**2 == pytest.approx(2 * np.pi * 42 * 70, rel=0.05)
    kit = Kit.of(read_class_patches(patches, "first")["panlobular"])
    slice_ = sew(chest, kit, None, np.random.default_rng(0))
    plane, mask = slice_.hounsfield, slice_.lungs
    assert np.array_equal(mask, chest.lungs)
    assert not slice_.rim.any()
    assert np.all(np.abs(plane[mask] - LEVELS["panlobular"]) < 0.01)
    assert set(np.unique(plane[~mask])) == {-1000, 45}


def test_the_outline_is_axial_however_the_mask_is_stored(lungs: Path, tmp_path: Path) -> None:
    phantom = make_phantom((50, 128, 160), (5.0, 2.0, 2.0))
    sitk.WriteImage(phantom.images("PIR")[1], str(tmp_path / "sagittal.mha"))
    stored, other = (outline(LungMask.read(path)).lungs for path in (lungs, tmp_path / "sagittal.mha"))
    assert np.array_equal(stored, other)


def test_patches_are_sewn_in_any_position_and_each_once_before_one_comes_again() -> None:
    patch = np.arange(SIZE * SIZE, dtype=np.float32).reshape(SIZE, SIZE)
    plane = sewn([patch], (SIZE * 8, SIZE * 8), np.random.default_rng(1))
    assert plane.shape == (SIZE * 8, SIZE * 8)
    middles = {round(float(value)) for value in plane.ravel() if abs(value - SIZE * SIZE // 2) < 0.01}
    assert middles == {SIZE * SIZE // 2}, "the middle of a patch stays what it was"
    slopes = {(round(float(b - a)), round(float(c - a))) for a, b, c in _corners(plane, SIZE * SIZE // 2)}
    assert len(slopes) == 8, f"eight positions: {slopes}"
    both = sewn([np.full_like(patch, 1), np.full_like(patch, 2)], (SIZE * 8, SIZE * 8), np.random.default_rng(1))
    assert np.count_nonzero(both == 1) == pytest.approx(np.count_nonzero(both == 2), rel=0.3)


def _corners(plane: np.ndarray, value: int) -> list[tuple[float, float, float]]:
    found = np.argwhere(np.abs(plane - value) < 0.01)
    inside = [(y, x) for y, x in found if 0 < y < len(plane) - 1 and 0 < x < len(plane) - 1]
    return [(plane[y, x], plane[y + 1, x], plane[y, x + 1]) for y, x in inside]


def test_pleural_patches_lie_on_the_pleura_with_their_wall_outside(lungs: Path) -> None:
    chest = outline(LungMask.read(lungs))
    rng = np.random.default_rng(2)
    points = costal_pleura(chest, rng)
    assert len(points) > 20
    middle = np.array(chest.lungs.shape) / 2
    for place, outwards in points:
        assert np.hypot(*outwards) == pytest.approx(1)
        inner, outer = (np.rint(place + step * outwards).astype(int) for step in (-6, 6))
        assert chest.lungs[tuple(inner)]
        assert not chest.lungs[tuple(outer)]
        towards_the_heart = abs(place[0] - middle[0]) < 40 and abs(place[1] - middle[1]) < 60
        assert not towards_the_heart, "the other lung lies behind this point"

    plane, mask = np.where(chest.lungs, -870, 45).astype(np.float32), chest.lungs.copy()
    place, outwards = points[0]
    slice_ = Sewn(plane, mask, np.zeros(plane.shape, bool))
    lay(slice_, flat(-990, wall=True).astype(np.float32), points[0])
    along = [tuple(np.rint(place + step * outwards).astype(int)) for step in range(-12, 4)]
    assert {float(plane[y, x]) for y, x in along[:11]} == {-990.0}
    assert all(mask[y, x] for y, x in along[:11])
    assert {float(plane[y, x]) for y, x in along[14:]} == {40.0}
    assert not any(mask[y, x] for y, x in along[14:])
    assert np.count_nonzero(plane == -990) > 250
    assert not np.any((plane == -990) & ~slice_.rim)


def test_some_kinds_of_volumes_alone_can_be_made(patches: Path, lungs: Path, tmp_path: Path) -> None:
    kinds = ("--kinds", "normal-paraseptal", "panlobular-alone")
    assert main([str(patches), str(lungs), str(tmp_path / "out"), "--rounds", "1", "--slices", "2", *kinds]) == 0
    with (tmp_path / "out" / "manifest.csv").open(newline="") as stream:
        assert [row["entity"] for row in csv.DictReader(stream)] == ["panlobular-alone-000", "normal-paraseptal-000"]


def test_each_kind_of_volume_has_its_bounds_and_is_a_scan(patches: Path, lungs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main([str(patches), str(lungs), str(out), "--rounds", "2", "--slices", "3", "--half", "second"]) == 0
    with (out / "manifest.csv").open(newline="") as stream:
        rows = {row["entity"]: row for row in csv.DictReader(stream)}
    assert len(rows) == 18
    assert all(row["split"] == "train" and row["uniform_slices"] == "yes" for row in rows.values())

    def bounds(entity: str) -> tuple[str, ...]:
        row = rows[entity]
        sides = (f"{subtype}_{side}" for subtype in ("centrilobular", "paraseptal") for side in ("lower", "upper"))
        return (*(row[side] for side in sides), row["leading"])

    assert bounds("normal-alone-000") == (*BOUNDS["normal"], "")
    assert bounds("severe_centrilobular-alone-001") == ("30", "", "0", "1", "centrilobular")
    assert bounds("panlobular-alone-000") == ("5", "", "0", "1", "")
    assert bounds("normal-paraseptal-000") == ("0", "1", "4", "40", "paraseptal")
    assert bounds("mild_centrilobular-paraseptal-000") == ("0.35", "10.5", "4", "40", "")
    assert bounds_of("moderate_centrilobular", "normal") == ("7", "42", "0", "1")

    scan = Scan.read(out / rows["normal-paraseptal-000"]["ct"], out / rows["normal-paraseptal-000"]["lung_mask"])
    assert scan.shape[0] == 3
    assert np.array_equal(scan.hounsfield[0], scan.hounsfield[2])
    dark = scan.hounsfield[0] == LEVELS["paraseptal"] + 5
    assert np.count_nonzero(dark & scan.lung[0]) > 1000
    assert not np.any(chest_wall(np.where(scan.lung[0], scan.hounsfield[0], -1000).astype(float))), "no chest wall in the mask"


def test_voxel_maps_follow_from_attenuation_and_the_class_of_the_patch(lungs: Path) -> None:
    chest = outline(LungMask.read(lungs))

    def kit(hu: int) -> Kit:
        return Kit.of(np.stack([flat(hu), flat(hu, wall=True)]))

    def truth(filling: str, hu: int, rim: str | None = None, rim_hu: int = 0) -> tuple[Sewn, np.ndarray, np.ndarray]:
        slice_ = sew(chest, kit(hu), kit(rim_hu) if rim else None, np.random.default_rng(0))
        return slice_, *truth_of(slice_, filling, rim)

    slice_, centrilobular, paraseptal = truth("panlobular", -960)
    assert np.array_equal(centrilobular, slice_.lungs), "up to the pleura"
    assert not paraseptal.any()
    for filling, hu in (("normal", -990), ("mild_centrilobular", -940)):
        slice_, centrilobular, paraseptal = truth(filling, hu)
        assert not centrilobular.any(), filling
        assert not paraseptal.any(), filling
    slice_, centrilobular, paraseptal = truth("mild_centrilobular", -960, "paraseptal", -980)
    assert np.array_equal(centrilobular, slice_.lungs & ~slice_.rim)
    assert np.array_equal(paraseptal, slice_.lungs & slice_.rim)
    assert np.count_nonzero(paraseptal) > 1000
    slice_, centrilobular, paraseptal = truth("moderate_centrilobular", -960, "normal", -980)
    assert np.array_equal(centrilobular, slice_.lungs & ~slice_.rim)
    assert not paraseptal.any()


def test_noise_alone_is_no_emphysema(lungs: Path) -> None:
    chest = outline(LungMask.read(lungs))
    noise = np.random.default_rng(0).normal(-925, 15, chest.lungs.shape).astype(np.float32)
    slice_ = Sewn(noise, chest.lungs, np.zeros(noise.shape, bool))
    assert np.count_nonzero(noise[chest.lungs] < -950) > 1000
    assert not truth_of(slice_, "mild_centrilobular", None)[0].any()


def test_voxel_maps_can_be_trained_on(patches: Path, lungs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main([str(patches), str(lungs), str(out), "--rounds", "1", "--slices", "3", "--truth"]) == 0
    manifest = out / "manifest.csv"
    manifest.write_text(manifest.read_text().replace(",train,", ",validation,", 1))
    cases = {case.entity: case for case in read_manifest(manifest, with_truth=True).cases}
    case = cases["normal-paraseptal-000"]
    assert case.truth is not None
    maps = [sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for path in case.truth]
    assert maps[0].shape == Scan.read(case.ct, case.lung_mask).shape
    assert not maps[0].any()
    assert np.count_nonzero(maps[1][0]) > 1000
    assert np.array_equal(maps[1][0], maps[1][2])


def test_a_seed_below_0_is_refused_before_anything_is_written(
    patches: Path, lungs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([str(patches), str(lungs), str(tmp_path / "out"), "--seed", "-1"])
    assert caught.value.code == 2
    assert "--seed: '-1': expected a whole number of at least 0" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_two_rounds_differ_and_the_same_seed_gives_the_same(patches: Path, lungs: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert main([str(patches), str(lungs), str(tmp_path / name), "--rounds", "2", "--slices", "2"]) == 0
    first, second, again = (
        sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / name / f"normal-normal-{number}_lungs.mha")))
        for name, number in (("a", "000"), ("a", "001"), ("b", "000"))
    )
    assert np.array_equal(first, again)
    assert first.shape != second.shape or not np.array_equal(first, second)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("no such file", "it cannot be read"),
        ("not an archive", "it cannot be read"),
        ("cut off", "it cannot be read"),
        ("pickled", "it cannot be read"),
        ("a class is missing", "it cannot be read"),
        ("not whole numbers", "normal is 4 x 31 x 31 of float32"),
        ("another size", "normal is 4 x 31 x 30"),
        ("no pleura", "no patch of class paraseptal can be used"),
        ("empty mask", "every voxel is 0"),
        ("full folder", "it already holds something"),
        ("below a file", "it cannot be created (Not a directory)"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_line(
    wrong: str, message: str, patches: Path, lungs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with np.load(patches) as file:
        values = {name: file[name] for name in CLASSES}
    if wrong == "no such file":
        patches = tmp_path / "missing.npz"
    elif wrong == "not an archive":
        patches.write_bytes(b"nonsense")
    elif wrong == "cut off":
        patches.write_bytes(patches.read_bytes()[:-200])
    elif wrong == "pickled":
        np.savez(patches, normal=np.array([{}], dtype=object))
    elif wrong == "not whole numbers":
        save(patches, {**values, "normal": values["normal"].astype(np.float32)})
    elif wrong == "a class is missing":
        save(patches, {name: values[name] for name in CLASSES[1:]})
    elif wrong == "another size":
        save(patches, {**values, "normal": values["normal"][:, :, 1:]})
    elif wrong == "no pleura":
        save(patches, {**values, "paraseptal": values["normal"][[0, 0]]})
    elif wrong == "empty mask":
        sitk.WriteImage(sitk.Image([8, 8, 8], sitk.sitkUInt8), str(lungs))
    elif wrong == "below a file":
        out = patches / "out"
    else:
        out.mkdir()
        (out / "something").touch()
    before = sorted(out.iterdir()) if out.exists() else None
    assert main([str(patches), str(lungs), str(out)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert (sorted(out.iterdir()) if out.exists() else None) == before
