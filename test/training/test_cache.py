from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model.cohort.manifest import LONGEST_NAME, Scores, TrainingCase, read_manifest
from model.errors import InputError
from model.imaging.scan import Scan
from model.lungs.densitometry import measure
from model.lungs.regions import Regions
from model.preprocessing import PAPER_PROFILE, RELEASED_PROFILE, Profile, prepare
from model.training.cache import cache_path, prepare_case, prepare_cohort, read_case, read_figures, write_case
from model.training.dataset import WITHOUT_CHANGE, assemble
from test.phantom import COARSE_INPUT
from test.training.cohort import write_phantom


@pytest.fixture
def case(tmp_path: Path, lesioned: TrainingCase) -> TrainingCase:
    """A case whose files may be changed."""
    assert lesioned.truth is not None
    files = [Path(shutil.copy(path, tmp_path)) for path in lesioned.files]
    return TrainingCase("c", files[0], files[1], Scores(2, 0), "train", (files[2], files[3]))


@pytest.mark.parametrize("profile", [PAPER_PROFILE, RELEASED_PROFILE], ids=lambda profile: profile.name)
def test_an_unchanged_sample_is_what_inference_feeds_the_network(
    lesioned: TrainingCase, profile: Profile, tmp_path: Path
) -> None:
    scan = Scan.read(lesioned.ct, lesioned.lung_mask)
    expected = prepare(scan, Regions.of(scan), profile)
    write_case(prepare_case(lesioned, profile), tmp_path / "c.0123456789abcdef.safetensors")
    prepared = read_case(tmp_path / "c.0123456789abcdef.safetensors")
    sample = assemble(prepared, (2, 0), 0, profile, WITHOUT_CHANGE, with_truth=True, with_suspect=True)
    step = (prepared.brightest - prepared.darkest) / 255  # 3.3 HU for the paper's window
    assert float((sample.image - expected.image[0]).abs().max()) <= 0.5001 * step
    assert np.array_equal(sample.lung[0].numpy(), expected.labels[::2, ::2, ::2] > 0)
    assert (sample.suspect is None) == (expected.suspect is None)
    if expected.suspect is not None:
        assert sample.suspect is not None
        assert np.array_equal(sample.suspect[0].numpy(), expected.suspect)


@pytest.mark.parametrize("profile", [PAPER_PROFILE, RELEASED_PROFILE], ids=lambda profile: profile.name)
def test_targets_agree_with_the_scan_at_its_own_resolution(lesioned: TrainingCase, profile: Profile) -> None:
    scan = Scan.read(lesioned.ct, lesioned.lung_mask)
    density, _ = measure(scan, Regions.of(scan))
    prepared = prepare_case(lesioned, profile)
    assert prepared.low_attenuation_percentage == pytest.approx(density.laa950_percentage, abs=1e-6)
    sample = assemble(prepared, (2, 0), 0, profile, WITHOUT_CHANGE, with_truth=True, with_suspect=False)
    assert sample.truth is not None
    assert prepared.percentages is not None
    assert prepared.percentages[1] == 0
    inside = sample.lung[0]
    assert 100 * float(sample.low_attenuation[0][inside].float().mean()) == pytest.approx(density.laa950_percentage, rel=0.05)
    assert 100 * float(sample.truth[0][inside].mean()) == pytest.approx(prepared.percentages[0], rel=0.05)


def test_low_attenuation_is_taken_from_hu_also_where_the_input_is_standardised(lesioned: TrainingCase) -> None:
    """The sphere is at -1000 HU with noise of 15: next to all of it and nothing of the rest is below -950; at its rim,
    averaged truth and picked target may differ by half a voxel."""
    sample = assemble(
        prepare_case(lesioned, RELEASED_PROFILE),
        (2, 0),
        0,
        RELEASED_PROFILE,
        WITHOUT_CHANGE,
        with_truth=True,
        with_suspect=False,
    )
    assert sample.truth is not None
    sphere = sample.truth[0] > 0.9
    assert float(sample.low_attenuation[0][sphere].float().mean()) > 0.95
    assert float(sample.low_attenuation[0][sample.truth[0] == 0].float().mean()) < 0.001


def test_given_percentages_come_before_those_of_the_maps(lesioned: TrainingCase, tmp_path: Path) -> None:
    path = tmp_path / "c.0123456789abcdef.safetensors"
    write_case(prepare_case(replace(lesioned, percentages=(7.5, 2.5)), PAPER_PROFILE), path)
    assert read_figures(path).percentages == (7.5, 2.5)


def test_a_file_of_the_cache_is_of_no_use_once_a_file_or_the_profile_changed(case: TrainingCase, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    paths = [cache_path(case, PAPER_PROFILE, cache)]
    paths.append(cache_path(case, replace(PAPER_PROFILE, margin_mm=5.0), cache))
    paths.append(cache_path(case, replace(PAPER_PROFILE, interpolation=RELEASED_PROFILE.interpolation), cache))
    paths.append(cache_path(case, replace(PAPER_PROFILE, input_shape=COARSE_INPUT), cache))
    paths.append(cache_path(replace(case, truth=None), PAPER_PROFILE, cache))
    assert cache_path(case, PAPER_PROFILE, cache) == paths[0]
    for file in case.files:
        os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
        paths.append(cache_path(case, PAPER_PROFILE, cache))
    assert len(set(paths)) == len(paths)


def test_the_voxels_beside_an_mhd_header_count_as_the_header_does(case: TrainingCase, tmp_path: Path) -> None:
    header, voxels = tmp_path / "other.mhd", tmp_path / "other.raw"
    header.write_bytes(b"header")
    voxels.write_bytes(b"voxels")
    before = cache_path(replace(case, ct=header), PAPER_PROFILE, tmp_path)
    os.utime(voxels, ns=(0, 1))
    assert cache_path(replace(case, ct=header), PAPER_PROFILE, tmp_path) != before


def test_only_what_changed_is_prepared_again_and_the_old_file_goes(case: TrainingCase, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    other = replace(case, entity="c.d")  # its name begins like the other's
    assert list(prepare_cohort([case, other], PAPER_PROFILE, cache)) == [0, 1, 2]
    before = {path: path.stat().st_mtime_ns for path in (cache / "paper").iterdir()}
    assert list(prepare_cohort([case, other], PAPER_PROFILE, cache)) == [2]
    assert {path: path.stat().st_mtime_ns for path in (cache / "paper").iterdir()} == before

    write_phantom(tmp_path, "c", radius_mm=20.0)  # the same files with other voxels
    changed = replace(case, ct=tmp_path / "c_ct.mha")
    assert list(prepare_cohort([changed], PAPER_PROFILE, cache)) == [0, 1]
    after = set((cache / "paper").iterdir())
    assert after == {cache_path(changed, PAPER_PROFILE, cache), *(path for path in before if path.name.startswith("c.d."))}
    assert read_figures(cache_path(changed, PAPER_PROFILE, cache)).low_attenuation_percentage < 3


def test_what_other_runs_prepared_in_the_same_cache_is_left_to_them(case: TrainingCase, tmp_path: Path) -> None:
    coarse = replace(PAPER_PROFILE, input_shape=COARSE_INPUT)
    requests = [
        (case, coarse),
        (case, replace(coarse, input_shape=(32, 32, 32))),
        (replace(case, truth=None), coarse),
        (replace(case, percentages=(7.5, 2.5)), coarse),
        (replace(case, lung_mask=Path(shutil.copy(case.lung_mask, tmp_path / "other_lung.mha"))), coarse),
    ]
    for asked, profile in requests:
        assert list(prepare_cohort([asked], profile, tmp_path / "cache")) == [0, 1]
    assert all(cache_path(asked, profile, tmp_path / "cache").is_file() for asked, profile in requests)


def test_the_extent_of_a_scan_is_that_of_the_middles_of_its_voxels(lesioned: TrainingCase) -> None:
    profile = replace(PAPER_PROFILE, input_shape=COARSE_INPUT)
    scan = Scan.read(lesioned.ct, lesioned.lung_mask)
    box = prepare(scan, Regions.of(scan), profile).box
    expected = [(part.stop - 1 - part.start) * spacing for part, spacing in zip(box, scan.spacing, strict=True)]
    assert prepare_case(lesioned, profile).extent_mm == pytest.approx(expected)


def test_every_scan_that_cannot_be_used_is_listed_and_the_others_are_kept(case: TrainingCase, tmp_path: Path) -> None:
    empty = replace(case, entity="empty", lung_mask=case.truth[1] if case.truth else case.lung_mask)
    cut = tmp_path / "cut.mha"
    cut.write_bytes(case.ct.read_bytes()[:-2000])
    damaged = replace(case, entity="damaged", ct=cut)
    with pytest.raises(InputError, match=r"2 scans cannot be used: empty: .*the mask is empty.*; damaged: ") as caught:
        list(prepare_cohort([empty, case, damaged], PAPER_PROFILE, tmp_path / "cache"))
    assert "\n" not in str(caught.value)
    assert [path.name.split(".")[0] for path in (tmp_path / "cache" / "paper").iterdir()] == ["c"]


def test_errors_of_preparing_name_the_manifest(case: TrainingCase, tmp_path: Path) -> None:
    case.lung_mask.write_text("no image")
    with pytest.raises(InputError, match=r"^lists/m\.csv: 1 scan cannot be used: c: "):
        list(prepare_cohort([case], PAPER_PROFILE, tmp_path / "cache", manifest=Path("lists/m.csv")))


def test_the_longest_name_that_a_manifest_may_have_can_be_prepared(case: TrainingCase, tmp_path: Path) -> None:
    long = replace(case, entity="a" * LONGEST_NAME)
    assert list(prepare_cohort([long], PAPER_PROFILE, tmp_path / "cache")) == [0, 1]


@pytest.mark.slow
def test_several_processes_prepare_the_same_bytes_as_one(manifest: Path, tmp_path: Path) -> None:
    cases = read_manifest(manifest).cases[:3]
    alone, together = tmp_path / "alone", tmp_path / "together"
    assert list(prepare_cohort(cases, PAPER_PROFILE, alone)) == [0, 1, 2, 3]
    assert list(prepare_cohort(cases, PAPER_PROFILE, together, workers=2)) == [0, 1, 2, 3]
    for path in (alone / "paper").iterdir():
        assert path.read_bytes() == (together / "paper" / path.name).read_bytes()


def test_masks_survive_packing(tmp_path: Path, lesioned: TrainingCase) -> None:
    prepared = prepare_case(lesioned, PAPER_PROFILE)
    path = tmp_path / "c.0123456789abcdef.safetensors"
    write_case(prepared, path)
    found = read_case(path)
    for name in ("image", "lung", "low_attenuation", "truth"):
        assert torch.equal(getattr(found, name), getattr(prepared, name))
    assert found.suspect is None
    assert path.stat().st_size < 13_000_000
