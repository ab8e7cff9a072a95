"""`process.py` as its users run it: a process of its own, from an input folder to an output folder.

Runs that show how it starts are started as users do; the others are forked from a process that has imported everything.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import panimg
import pydicom
import pytest
import SimpleITK as sitk

from model.container import grand_challenge
from model.container.algorithm import EmphysemaAlgorithm, Written
from model.container.command import granted_threads, main
from model.container.grand_challenge import RECORDS_FILE, OutputFolder, find_cases
from model.container.reading import ReadAhead
from model.container.results import provenance
from model.imaging.geometry import ImageGeometry
from model.subtyping import EmphysemaSubtyper
from model.weights import read_bundle, write_bundle
from test.conftest import ROOT
from test.container.schema import problems_of
from test.imaging.series import SCANNER_TAGS, write_dicom_series
from test.phantom import Phantom, make_phantom, write_case, write_dark_detector
from test.trust.provoke import Forks

MAPS = ("centrilobular-emphysema-heatmap", "paraseptal-emphysema-heatmap")
SCORES = ("centrilobular-emphysema-score.json", "paraseptal-emphysema-score.json")


FORKS = Forks()


def clean(environment: dict[str, str]) -> dict[str, str]:
    """This process's environment without settings of process.py, and with those of the test."""
    return {name: value for name, value in os.environ.items() if not name.startswith("EMPHYSEMA_")} | environment


def run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return FORKS.run((), [str(argument) for argument in arguments], clean(environment))


def start(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "process.py", *arguments],
        env=clean(environment),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def files_in(folder: Path) -> list[str]:
    """All but the notes for `--resume`; see `test_resume`."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != RECORDS_FILE]
    return sorted(str(path.relative_to(folder)) for path in files)


def results_of(folder: Path) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = json.loads((folder / "results.json").read_text())
    return results


@pytest.fixture(scope="module")
def scored(lesioned: Phantom, full_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A case stored sideways, and what a run with a picture wrote for it."""
    folder = tmp_path_factory.mktemp("scored")
    write_case(folder / "input", *lesioned.images("PIR"), stem="7d1a")
    done = start("--input", folder / "input", "--output", folder / "output", "--weights", full_bundle, "--preview")
    assert (done.returncode, done.stderr) == (0, ""), done
    return folder / "input", folder / "output"


def test_a_run_writes_every_output_and_nothing_else(scored: tuple[Path, Path]) -> None:
    expected = [*SCORES, "results.json", "results.csv", *(f"images/{name}/7d1a.mha" for name in MAPS), "preview/7d1a.png"]
    assert files_in(scored[1]) == sorted(expected)


def test_results_and_score_files_have_the_documented_fields(scored: tuple[Path, Path]) -> None:
    (result,) = results_of(scored[1])
    assert result.keys() == {"entity", "metrics", "quality", "provenance", "warnings", "error_messages"}
    assert problems_of(scored[1]) == []
    assert (result["entity"], result["warnings"], result["error_messages"]) == ("7d1a", [], [])
    metrics = result["metrics"]
    assert metrics.keys() == {
        *(f"{prefix}_{field}" for prefix in ("cle", "pse") for field in ("severity_score", "severity", "percentage")),
        *("laa950_percentage", "perc15_hu", "lung_volume_ml", "regions"),
    }
    assert metrics["regions"].keys() == {"right", "left"}
    for region in metrics["regions"].values():
        assert region.keys() == {"cle_percentage", "pse_percentage", "laa950_percentage", "perc15_hu", "volume_ml"}
    assert result["provenance"].keys() == {
        *("bundle", "sha256", "trained_on", "profile", "lung_mask_source", "version", "device", "precision"),
    }
    for name, prefix in zip(SCORES, ("cle", "pse"), strict=True):
        assert json.loads((scored[1] / name).read_text()) == {
            "score": metrics[f"{prefix}_severity_score"],
            "severity": metrics[f"{prefix}_severity"],
            "percentage": metrics[f"{prefix}_percentage"],
        }


def test_results_say_what_the_weights_were_validated_on(bundle: Path, tmp_path: Path) -> None:
    whole = read_bundle(bundle)
    write_bundle(tmp_path / "bundle", whole.network, dataclasses.replace(whole.metadata, validated_on="500 scans"))
    found = [provenance(EmphysemaSubtyper.from_bundle(path, "cpu"), "given") for path in (bundle, tmp_path / "bundle")]
    assert [run.validated_on for run in found] == [None, "500 scans"]


def test_the_scores_are_those_of_the_phantom(scored: tuple[Path, Path], lesioned: Phantom) -> None:
    metrics = results_of(scored[1])[0]["metrics"]
    dark = 100 * np.count_nonzero(lesioned.hounsfield[lesioned.lungs > 0] == -1000) / np.count_nonzero(lesioned.lungs)
    assert metrics["cle_severity_score"] == 3
    assert metrics["cle_percentage"] == pytest.approx(dark, abs=1.5)
    assert metrics["laa950_percentage"] == pytest.approx(dark, abs=1e-3)
    assert metrics["regions"]["right"]["cle_percentage"] > metrics["regions"]["left"]["cle_percentage"] + 10
    assert metrics["lung_volume_ml"] == round(np.count_nonzero(lesioned.lungs) * 0.01)


def test_maps_lie_on_the_cts_grid_and_mean_the_percentage(scored: tuple[Path, Path]) -> None:
    ct = sitk.ReadImage(str(scored[0] / "images/ct/7d1a.mha"))
    lung = sitk.GetArrayFromImage(sitk.ReadImage(str(scored[0] / "images/lung-mask/7d1a.mha"))) > 0
    metrics = results_of(scored[1])[0]["metrics"]
    for name, prefix in zip(MAPS, ("cle", "pse"), strict=True):
        image = sitk.ReadImage(str(scored[1] / "images" / name / "7d1a.mha"))
        assert ImageGeometry.of(image) == ImageGeometry.of(ct)
        assert image.GetPixelID() == sitk.sitkUInt8
        levels = sitk.GetArrayFromImage(image)
        assert not levels[~lung].any()
        assert levels[lung].mean() / 2.55 == pytest.approx(metrics[f"{prefix}_percentage"], abs=0.5)


def test_the_platform_can_import_both_maps(scored: tuple[Path, Path], tmp_path: Path) -> None:
    for name in MAPS:
        imported = panimg.convert(input_directory=scored[1] / "images" / name, output_directory=tmp_path / name)
        assert [file.name for file in imported.consumed_files] == ["7d1a.mha"]
        assert len(imported.new_images) == 1


def test_two_paths_and_the_environment_do_what_a_folder_and_options_do(
    scored: tuple[Path, Path], full_bundle: Path, tmp_path: Path
) -> None:
    images = scored[0] / "images"
    arguments = ("--ct", images / "ct/7d1a.mha", "--lung-mask", images / "lung-mask/7d1a.mha", "--output", tmp_path)
    done = start(*arguments, EMPHYSEMA_WEIGHTS=str(full_bundle), EMPHYSEMA_PRECISION="float32", EMPHYSEMA_MAP_TYPE="float32")
    assert (done.returncode, done.stderr) == (0, "")
    (result,), (expected,) = results_of(tmp_path), results_of(scored[1])
    assert result["provenance"]["precision"] == "float32"
    assert result["metrics"]["cle_percentage"] == pytest.approx(expected["metrics"]["cle_percentage"], abs=0.1)
    image = sitk.ReadImage(str(tmp_path / "images" / MAPS[0] / "7d1a.mha"))
    assert image.GetPixelID() == sitk.sitkFloat32
    assert not (tmp_path / "preview").exists()


def test_each_stage_is_logged_with_its_seconds_and_the_table_tells_the_scores(
    lesioned: Phantom, bundle: Path, tmp_path: Path
) -> None:
    write_case(tmp_path / "input", *lesioned.images())
    done = run("--input", tmp_path / "input", "--output", tmp_path / "output", "--weights", bundle)
    stages = ("weights", "read", "plausibility", "quality", "regions", "prepare", "network", "maps", "densitometry", "write")
    logged = re.findall(r"^\d\d:\d\d:\d\d (\w+) +\d+\.\d\d s$", done.stdout, re.MULTILINE)
    assert tuple(logged) == stages
    assert "3 moderate, " in done.stdout
    assert "trained on: nothing" in done.stdout
    assert "Research software, not a medical device." in done.stdout


def test_a_case_that_fails_is_listed_and_the_others_go_on(lesioned: Phantom, bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "input"
    for stem in ("a", "b", "c"):
        write_case(folder, *lesioned.images(), stem=stem)
    (folder / "images/lung-mask/a.mha").unlink()
    (folder / "images/ct/b.mha").write_bytes(b"")
    done = run("--input", folder, "--output", tmp_path / "output", "--weights", bundle)
    assert done.returncode == 2
    assert [line.split(": ")[0].rpartition("/")[2] for line in done.stderr.splitlines()] == ["a.mha", "b.mha"]
    results = results_of(tmp_path / "output")
    assert [(result["entity"], "metrics" in result, len(result["error_messages"])) for result in results] == [
        ("a", False, 1),
        ("b", False, 1),
        ("c", True, 0),
    ]
    assert problems_of(tmp_path / "output") == []
    assert files_in(tmp_path / "output") == sorted(["results.csv", "results.json", *(f"images/{name}/c.mha" for name in MAPS)])


def test_a_case_whose_name_is_not_utf_8_is_listed_and_the_others_go_on(lesioned: Phantom, bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "input"
    for stem in ("a", "b", "z"):
        write_case(folder, *lesioned.images(), stem=stem)
    for path in folder.rglob("b.mha"):
        path.rename(path.with_name(os.fsdecode(b"caf\xe9.mha")))
    done = run("--input", folder, "--output", tmp_path / "output", "--weights", bundle)
    assert done.returncode == 2, done.stderr
    assert [("metrics" in result, len(result["error_messages"])) for result in results_of(tmp_path / "output")] == [
        (True, 0),
        (False, 1),
        (True, 0),
    ]
    assert "caf\\udce9" in (tmp_path / "output/results.csv").read_text("utf-8-sig")


def test_an_output_folder_that_would_replace_the_input_is_refused(lesioned: Phantom, bundle: Path, tmp_path: Path) -> None:
    """The lungs that were scored are written under the name that masks have in an input."""
    case = tmp_path / "case"
    write_case(case, *lesioned.images())
    before = files_in(case)
    done = run("--input", case, "--output", case, "--weights", bundle)
    assert done.returncode == 2
    assert "images/lung-mask/scan.mha: the output folder" in done.stderr
    assert "would replace this input; expected another output folder" in done.stderr
    assert files_in(case) == sorted([*before, "results.json"])
    link = tmp_path / "link"
    link.symlink_to(case)
    mask = link / "images/lung-mask/scan.mha"
    done = run("--ct", case / "images/ct/scan.mha", "--lung-mask", mask, "--output", case, "--weights", bundle)
    assert done.returncode == 2
    assert mask.is_file()


def test_a_run_that_is_stopped_leaves_the_results_of_the_cases_before(
    lesioned: Phantom, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for stem in ("a", "b"):
        write_case(tmp_path / "input", *lesioned.images(), stem=stem)
    (tmp_path / "input/images/ct/a.mha").write_bytes(b"")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    subtyper = EmphysemaSubtyper.from_bundle(bundle)
    monkeypatch.setattr(subtyper, "predict", stop)
    cases = find_cases(tmp_path / "input")
    with ReadAhead(cases) as scans:
        algorithm = EmphysemaAlgorithm(cases, scans, subtyper, OutputFolder(tmp_path / "output"), Written(), None)
        with pytest.raises(KeyboardInterrupt):
            algorithm.process()
    assert [result["entity"] for result in results_of(tmp_path / "output")] == ["a"]


def test_the_example_case_is_small_laid_out_as_the_platform_does_and_has_emphysema(bundle: Path, tmp_path: Path) -> None:
    example = ROOT / "test" / "input"
    assert sum(path.stat().st_size for path in example.rglob("*") if path.is_file()) < 5e6
    assert {entry["interface"]["relative_path"] for entry in json.loads((example / "inputs.json").read_text())} == {
        *("images/ct", "images/lung-mask"),
    }
    done = start("--input", example, "--output", tmp_path, "--weights", bundle)
    assert (done.returncode, done.stderr) == (0, "")
    metrics = results_of(tmp_path)[0]["metrics"]
    assert set(metrics["regions"]) == {"right", "left"}
    assert metrics["laa950_percentage"] > 3
    assert metrics["cle_percentage"] > 3


def test_an_error_that_is_nobodys_input_ends_with_exit_1_and_one_line(lesioned: Phantom, bundle: Path, tmp_path: Path) -> None:
    """A file lies where a folder of maps must go."""
    write_case(tmp_path / "input", *lesioned.images())
    (tmp_path / "output" / "images").mkdir(parents=True)
    (tmp_path / "output" / "images" / MAPS[1]).write_text("in the way")
    done = run("--input", tmp_path / "input", "--output", tmp_path / "output", "--weights", bundle)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("scan: NotADirectoryError: ")
    assert "Traceback" in done.stdout
    assert files_in(tmp_path / "output") == [f"images/{MAPS[1]}", "results.json"]
    assert results_of(tmp_path / "output") == [{"entity": "scan", "warnings": [], "error_messages": [line]}]


@pytest.mark.parametrize("how", ["folder", "path"])
def test_lungs_are_found_where_there_is_no_mask_and_results_say_so(
    lesioned: Phantom, bundle: Path, tmp_path: Path, how: str
) -> None:
    ct, lungs = lesioned.images("RAS")
    write_case(tmp_path / "masked", ct, lungs)
    write_case(tmp_path / "bare", ct, lungs)
    (tmp_path / "bare/images/lung-mask/scan.mha").unlink()
    bare = ("--input", tmp_path / "bare") if how == "folder" else ("--ct", tmp_path / "bare/images/ct/scan.mha")
    results = []
    for name, arguments in (("masked", ("--input", tmp_path / "masked")), ("bare", bare)):
        output = tmp_path / f"{name}-output"
        done = run(*arguments, "--output", output, "--weights", bundle, EMPHYSEMA_SEGMENT_LUNGS="1")
        assert (done.returncode, done.stderr) == (0, ""), done
        results += results_of(output)
    given, automatic = results
    assert given["provenance"].pop("lung_mask_source") == "given"
    assert automatic["provenance"].pop("lung_mask_source") == "automatic"
    assert automatic["provenance"] == given["provenance"]
    assert automatic["metrics"]["cle_percentage"] == pytest.approx(given["metrics"]["cle_percentage"], abs=0.5)
    assert automatic["metrics"]["lung_volume_ml"] == pytest.approx(given["metrics"]["lung_volume_ml"], rel=0.02)
    assert not (tmp_path / "masked-output/images/lung-mask").exists()
    found = sitk.ReadImage(str(tmp_path / "bare-output/images/lung-mask/scan.mha"))
    assert ImageGeometry.of(found) == ImageGeometry.of(ct)
    voxel_ml = ImageGeometry.of(ct).voxel_ml
    volume_ml = np.count_nonzero(sitk.GetArrayFromImage(found)) * voxel_ml
    assert volume_ml == pytest.approx(automatic["metrics"]["lung_volume_ml"], abs=0.5)


def test_the_lungs_that_were_scored_are_written_on_the_cts_grid(lesioned: Phantom, bundle: Path, tmp_path: Path) -> None:
    """The mask lies on another grid than the CT, and has other labels."""
    ct, lungs = lesioned.images("PIR")
    write_case(tmp_path / "input", ct, 7 * lesioned.images("RAS")[1])
    done = run("--input", tmp_path / "input", "--output", tmp_path, "--weights", bundle, "--save-lung-mask")
    assert (done.returncode, done.stderr) == (0, ""), done
    written = sitk.ReadImage(str(tmp_path / "images/lung-mask/scan.mha"))
    assert ImageGeometry.of(written) == ImageGeometry.of(ct)
    assert np.array_equal(sitk.GetArrayFromImage(written), sitk.GetArrayFromImage(lungs) > 0)


def test_a_ct_that_came_as_dicom_goes_back_as_dicom_and_another_does_not(bundle: Path, tmp_path: Path) -> None:
    phantom = make_phantom((28, 40, 50), (9.0, 6.5, 6.5))
    ct, lungs = phantom.images()
    write_case(tmp_path / "input", ct, lungs, stem="plain")
    write_dicom_series(ct, tmp_path / "input/images/ct/series", tags=lambda _: SCANNER_TAGS)
    sitk.WriteImage(lungs, str(tmp_path / "input/images/lung-mask/series.mha"))
    output = tmp_path / "output"
    done = run("--input", tmp_path / "input", "--output", output, "--weights", bundle, EMPHYSEMA_DICOM="1")
    assert (done.returncode, done.stderr) == (0, ""), done
    assert "plain: the CT is not DICOM" in done.stdout
    written = [name for name in files_in(output) if name.startswith("dicom/")]
    assert written == [f"dicom/{kind}/series.dcm" for kind in ("activation-maps", "lungs", "report")]
    levels = sitk.GetArrayFromImage(sitk.ReadImage(str(output / "images" / MAPS[0] / "series.mha")))
    maps = pydicom.dcmread(output / "dicom/activation-maps/series.dcm")
    stored = np.zeros_like(levels)
    for frame, pixels in zip(maps.PerFrameFunctionalGroupsSequence, maps.pixel_array, strict=True):
        if frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber == 1:
            position = ct.TransformPhysicalPointToIndex(frame.PlanePositionSequence[0].ImagePositionPatient)
            stored[position[2]] = pixels
    assert levels.any()
    assert np.array_equal(stored, levels)
    done = run("--input", tmp_path / "input", "--output", output, "--weights", bundle)
    assert done.returncode == 0
    assert not [name for name in files_in(output) if name.startswith("dicom/")], "those of the run before are removed"


def test_a_ct_without_lungs_is_refused_when_they_are_to_be_found(phantom: Phantom, bundle: Path, tmp_path: Path) -> None:
    solid = dataclasses.replace(phantom, hounsfield=np.where(phantom.lungs > 0, 40, phantom.hounsfield).astype(np.int16))
    sitk.WriteImage(solid.images()[0], str(tmp_path / "abdomen.mha"))
    done = run("--ct", tmp_path / "abdomen.mha", "--segment-lungs", "--output", tmp_path / "output", "--weights", bundle)
    assert done.returncode == 2
    assert "abdomen.mha: no lungs were found in it" in done.stderr
    assert done.stderr.count("\n") == 1
    assert files_in(tmp_path / "output") == ["results.json"]


def test_lobes_are_reported_where_the_mask_names_them(lesioned: Phantom, fine_bundle: Path, tmp_path: Path) -> None:
    lobes = np.where(lesioned.lungs == 1, 3, np.where(lesioned.lungs == 2, 1, 0)).astype(np.uint8)
    lobes[:50][lobes[:50] > 0] += 1
    write_case(tmp_path / "input", *dataclasses.replace(lesioned, lungs=lobes).images(), mask_folder="pulmonary-lobes")
    done = run("--input", tmp_path / "input", "--output", tmp_path / "output", "--weights", fine_bundle)
    assert done.returncode == 0, done.stderr
    regions = results_of(tmp_path / "output")[0]["metrics"]["regions"]
    assert set(regions) == {"right", "left", "right_upper_lobe", "right_lower_lobe", "left_upper_lobe", "left_lower_lobe"}
    assert regions["right_lower_lobe"]["cle_percentage"] > 20 > regions["left_lower_lobe"]["cle_percentage"]


# Bad input: each maker lays out a broken case in a folder and returns options to run it with.


def altered(phantom: Phantom, folder: Path, hounsfield: Any = None, lungs: Any = None) -> None:
    changes = {key: value for key, value in (("hounsfield", hounsfield), ("lungs", lungs)) if value is not None}
    write_case(folder, *dataclasses.replace(phantom, **changes).images())


def ct_file(folder: Path) -> Path:
    return folder / "images/ct/scan.mha"


def write_ct(phantom: Phantom, folder: Path, content: bytes) -> None:
    altered(phantom, folder)
    ct_file(folder).write_bytes(content)


def cut_off(phantom: Phantom, folder: Path) -> None:
    altered(phantom, folder)
    ct_file(folder).write_bytes(ct_file(folder).read_bytes()[:-1000])


def header_alone(phantom: Phantom, folder: Path) -> None:
    header = "ObjectType = Image\nNDims = 3\nDimSize = 60000 60000 60000\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    write_ct(phantom, folder, header.encode())


def of_other_dimension(voxels: np.ndarray, is_vector: bool = False) -> Callable[[Phantom, Path], None]:
    def make(phantom: Phantom, folder: Path) -> None:
        altered(phantom, folder)
        sitk.WriteImage(sitk.GetImageFromArray(voxels, isVector=is_vector), str(ct_file(folder)))

    return make


def without(name: str) -> Callable[[Phantom, Path], None]:
    def make(phantom: Phantom, folder: Path) -> None:
        altered(phantom, folder)
        (folder / "images" / name / "scan.mha").unlink()

    return make


def unpaired(phantom: Phantom, folder: Path) -> None:
    for stem in ("a", "b"):
        write_case(folder, *phantom.images(), stem=stem)
    (folder / "images/lung-mask/a.mha").rename(folder / "images/lung-mask/c.mha")
    (folder / "images/lung-mask/b.mha").unlink()


def mask_elsewhere(phantom: Phantom, folder: Path) -> None:
    ct, mask = phantom.images()
    mask.SetOrigin((5000.0, 0.0, 0.0))
    write_case(folder, ct, mask)


def not_finite(phantom: Phantom, folder: Path) -> None:
    ct, mask = phantom.images()
    image = sitk.GetImageFromArray(np.full(phantom.lungs.shape, np.nan, np.float32))
    image.CopyInformation(ct)
    write_case(folder, image, mask)


def wide_mask(_: Phantom, folder: Path) -> None:
    large = make_phantom((50, 64, 80), (9.0, 9.0, 9.0))
    write_case(folder, *dataclasses.replace(large, lungs=np.ones_like(large.lungs)).images())


BAD_INPUTS: dict[str, tuple[Callable[[Phantom, Path], None], str, str]] = {
    "empty file": (lambda p, f: write_ct(p, f, b""), "scan.mha", "the file is empty; expected .mha"),
    "no image": (lambda p, f: write_ct(p, f, b"Dear radiologist,\n" * 9), "scan.mha", "not an image that can be read"),
    "cut off": (cut_off, "scan.mha", "its voxels are damaged or cut off"),
    "asks for too much memory": (header_alone, "scan.mha", "its header asks for 2.16e+14 voxels"),
    "2D": (of_other_dimension(np.zeros((9, 9), np.int16)), "scan.mha", "a 2D image of 9 x 9 voxels; expected a 3D volume"),
    "4D": (of_other_dimension(np.zeros((2, 9, 9, 9), np.int16)), "scan.mha", "a 4D image of 9 x 9 x 9 x 2 voxels"),
    "vector": (of_other_dimension(np.zeros((9, 9, 9, 3), np.int16), True), "scan.mha", "3 numbers per voxel"),
    "no mask": (without("lung-mask"), "input", "there is no lung mask; expected one in images/lung-mask"),
    "no CT": (without("ct"), "images/ct", "there is no CT"),
    "unpaired": (unpaired, "input", "2 CTs and 1 masks, no two of one name"),
    "empty mask": (lambda p, f: altered(p, f, lungs=0 * p.lungs), "lung-mask/scan.mha", "the mask is empty"),
    "mask elsewhere": (mask_elsewhere, "lung-mask/scan.mha", "the mask does not touch the CT"),
    "mask too small": (
        lambda p, f: altered(p, f, lungs=p.lungs * (np.arange(50) == 25)[:, None, None].astype(np.uint8)),
        "lung-mask/scan.mha",
        "ml; expected lungs of 100 to 15000 ml",
    ),
    "mask too large": (wide_mask, "lung-mask/scan.mha", "the mask has a volume of 186624 ml"),
    "all NaN": (not_finite, "ct/scan.mha", "no voxel is a finite number"),
    "constant": (lambda p, f: altered(p, f, hounsfield=0 * p.hounsfield), "ct/scan.mha", "every voxel is 0"),
    "not HU": (
        lambda p, f: altered(p, f, hounsfield=p.hounsfield + np.int16(1024)),
        "ct/scan.mha",
        "nothing inside the lung mask lies below -500 HU (the lowest is 164)",
    ),
    "mean too high": (
        lambda p, f: altered(p, f, hounsfield=np.where(np.arange(50)[:, None, None] > 12, np.int16(30), p.hounsfield)),
        "ct/scan.mha",
        "the mean inside the lung mask is",
    ),
    "mean too low": (
        lambda p, f: altered(p, f, hounsfield=np.where(p.lungs > 0, np.int16(-1020), p.hounsfield)),
        "ct/scan.mha",
        "the mean inside the lung mask is -1020 HU; expected -1000 to -200 HU",
    ),
}


@pytest.mark.parametrize("kind", BAD_INPUTS)
def test_bad_input_ends_with_exit_2_one_line_and_no_other_file(
    phantom: Phantom, bundle: Path, tmp_path: Path, kind: str
) -> None:
    make, file, message = BAD_INPUTS[kind]
    make(phantom, tmp_path / "input")
    done = run("--input", tmp_path / "input", "--output", tmp_path / "output", "--weights", bundle)
    assert_refused(done, tmp_path / "output", file, message)


def assert_refused(done: subprocess.CompletedProcess[str], output: Path, file: str, message: str) -> None:
    assert done.returncode == 2, done
    (line,) = done.stderr.splitlines()
    assert file in line.split(": ")[0]
    assert message in line
    assert "; expected " in line
    assert files_in(output) == ["results.json"]
    (result,) = results_of(output)
    assert result["error_messages"] == [line]
    assert "metrics" not in result


def test_a_missing_file_is_refused(phantom: Phantom, bundle: Path, tmp_path: Path) -> None:
    write_case(tmp_path / "input", *phantom.images())
    mask = tmp_path / "input/images/lung-mask/scan.mha"
    arguments = ("--ct", tmp_path / "missing.mha", "--lung-mask", mask, "--output", tmp_path / "output")
    assert_refused(run(*arguments, "--weights", bundle), tmp_path / "output", "missing.mha", "no such file")
    done = run("--input", tmp_path / "nowhere", "--output", tmp_path / "output")
    assert_refused(done, tmp_path / "output", "nowhere", "no such folder")
    found = ("--ct", tmp_path / "input/images/ct/scan.mha", "--segment-lungs", "--lungmask-weights", tmp_path / "no.pth")
    done = run(*found, "--output", tmp_path / "output", "--weights", bundle)
    assert_refused(done, tmp_path / "output", "no.pth", "it cannot be read (No such file or directory); expected weights of")


def test_without_a_named_input_the_refusal_says_how_to_name_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(grand_challenge, "INPUT_FOLDER", tmp_path / "input")
    assert main(["--output", str(tmp_path / "output")]) == 2
    expected = "a folder with images/ct and images/lung-mask, or --input or --ct"
    assert f"{tmp_path / 'input'}: no such folder; expected {expected}" in capfd.readouterr().err


@pytest.mark.parametrize("kind", ["missing", "damaged", "of another kind"])
def test_a_bundle_that_cannot_be_used_is_refused(phantom: Phantom, tmp_path: Path, kind: str) -> None:
    write_case(tmp_path / "input", *phantom.images())
    weights = tmp_path / "weights"
    message = "no weight bundle"
    if kind == "damaged":
        tensors = next(write_dark_detector(weights).glob("*.safetensors"))
        tensors.write_bytes(tensors.read_bytes()[:-1] + b"\xff")
        message = "the file is damaged (sha256"
    if kind == "of another kind":
        weights.mkdir()
        (weights / "bundle.json").write_text('{"format": 7}')
        message = "bundle format 7; expected format 1"
    done = run("--input", tmp_path / "input", "--output", tmp_path / "output", "--weights", weights)
    assert_refused(done, tmp_path / "output", "weights", message)


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["--device", "tpu"], {}, "argument --device: invalid choice: 'tpu'"),
        (["--ct", "a.mha"], {}, "--ct needs --lung-mask or --segment-lungs"),
        (["--lung-mask", "a.mha", "--segment-lungs"], {}, "--lung-mask needs --ct"),
        (["--lungmask-weights", "unet.pth"], {}, "--lungmask-weights goes with --segment-lungs"),
        ([], {"EMPHYSEMA_PRECISION": "float8"}, "argument --precision: invalid choice: 'float8'"),
    ],
)
def test_bad_usage_ends_with_exit_2_and_one_line(
    tmp_path: Path, arguments: list[str], environment: dict[str, str], message: str
) -> None:
    done = start(*arguments, "--output", tmp_path / "output", **environment)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert message in line
    assert not (tmp_path / "output").exists()


def test_a_gpu_that_is_asked_for_and_not_there_is_refused(phantom: Phantom, bundle: Path, tmp_path: Path) -> None:
    write_case(tmp_path / "input", *phantom.images())
    arguments = ("--input", tmp_path / "input", "--output", tmp_path / "output", "--weights", bundle, "--device", "cuda")
    done = run(*arguments, CUDA_VISIBLE_DEVICES="")
    assert_refused(done, tmp_path / "output", "--device cuda", "the GPU cannot be used: ")


def test_as_many_threads_as_were_asked_for_and_else_at_most_one_for_each_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert granted_threads() == 3
    for nothing_usable in ("", "0", "many"):
        monkeypatch.setenv("OMP_NUM_THREADS", nothing_usable)
        assert 1 <= granted_threads() <= len(os.sched_getaffinity(0))
