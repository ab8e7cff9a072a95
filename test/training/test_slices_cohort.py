from __future__ import annotations

import csv
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from model.cohort.manifest import read_manifest
from model.errors import InputError
from model.imaging.scan import Scan
from model.lungs.regions import Regions
from model.preprocessing import PAPER_PROFILE, prepare
from model.slices.images import LUNG_WINDOW
from model.training.slices_cohort import LabelledSlice, listed_slices, main, make_volume, pixel_size_mm, split_by_patient
from test.phantom import make_phantom

ENLARGED = 4


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pictures a class of an axial slice of the phantom, in a lung window; each of another patient but the last."""
    plane = make_phantom().hounsfield[25]
    grey = LUNG_WINDOW.grey(np.kron(plane, np.ones((ENLARGED, ENLARGED), np.int16)))
    rows = []
    for number, label in enumerate(("NT", "CLE", "PSE", "PLE")):
        for name in ("1", "2"):
            path = tmp_path / "slices" / label / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(grey).save(path)
            rows.append((f"{label}/{name}.png", label, f"p{number}{name}"))
    with (tmp_path / "slices" / "patients.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("file", "class", "patient"), *rows])
    return tmp_path / "slices"


def test_pictures_become_volumes_in_hu_with_what_their_class_says(folder: Path, tmp_path: Path) -> None:
    assert main([str(folder), str(tmp_path / "out"), "--seed", "1"]) == 0
    manifest = read_manifest(tmp_path / "out" / "manifest.csv")
    intervals = {case.entity.partition("-")[0]: case.intervals for case in manifest.cases}
    assert intervals == {"NT": ((0, 1), (0, 1)), "CLE": ((1, 100), None), "PSE": (None, (1, 100))}
    assert len(manifest.of("train")) == len(manifest.of("validation")) == 3
    assert all(case.uniform_slices for case in manifest.cases)

    phantom = make_phantom()
    case = manifest.cases[0]
    scan = Scan.read(case.ct, case.lung_mask)
    assert scan.shape == (40, *(ENLARGED * size for size in phantom.hounsfield.shape[1:]))
    assert scan.spacing[0] == pytest.approx(2.5)
    assert all(np.array_equal(part[0], part[-1]) for part in (scan.hounsfield, scan.lung))
    lungs = np.kron(phantom.lungs[25] > 0, np.ones((ENLARGED, ENLARGED), bool))
    found = scan.lung[0]
    assert 2 * np.count_nonzero(found & lungs) / (np.count_nonzero(found) + np.count_nonzero(lungs)) > 0.93
    expected = float(np.median(phantom.hounsfield[25][phantom.lungs[25] > 0]))
    assert float(np.median(scan.hounsfield[0][found & lungs])) == pytest.approx(expected, abs=15)


def test_two_slices_are_the_same_input_as_forty(folder: Path) -> None:
    profile = replace(PAPER_PROFILE, input_shape=(32, 48, 48))
    images = []
    for slices in (2, 40):
        scan = Scan.from_images(*make_volume(folder / "NT" / "1.png", slices))
        images.append(prepare(scan, Regions.of(scan), profile).image.numpy())
    np.testing.assert_allclose(images[0], images[1], atol=1e-6)


def test_a_list_of_patients_decides_the_split_and_panlobular_slices_are_taken_when_asked_for(
    folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "train.txt").write_text("p01\np11\np21\np31\n")
    out = tmp_path / "out"
    options = ("--train-patients", str(tmp_path / "train.txt"), "--panlobular-is-centrilobular", "--slices", "2")
    assert main([str(folder), str(out), *options]) == 0
    manifest = read_manifest(out / "manifest.csv")
    assert [case.entity for case in manifest.of("train")] == ["CLE-1", "NT-1", "PLE-1", "PSE-1"]
    assert {case.intervals for case in manifest.cases if case.entity.startswith("PLE")} == {((5, 100), None)}


def test_a_listed_patient_without_a_slice_is_refused_and_blanks_around_names_do_not_count(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "train.txt").write_text("p01\np99\n")
    assert main([str(folder), str(tmp_path / "out"), "--train-patients", str(tmp_path / "train.txt"), "--slices", "2"]) == 2
    assert "train.txt: 1 patients that have no slice, such as p99; expected patients of patients.csv" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    blanks = shutil.copytree(folder, tmp_path / "blanks")
    listed = (blanks / "patients.csv").read_text()
    (blanks / "patients.csv").write_text(listed.replace("p01", " p01 "))
    labels = ["NT", "CLE", "PSE"]
    assert listed_slices(blanks, labels) == [
        replace(entry, path=blanks / entry.path.relative_to(folder)) for entry in listed_slices(folder, labels)
    ]


def test_a_margin_between_absent_and_present_is_set_by_options(folder: Path, tmp_path: Path) -> None:
    assert main([str(folder), str(tmp_path / "out"), "--slices", "2", "--absent", "0.5", "--present", "2"]) == 0
    intervals = {case.entity.partition("-")[0]: case.intervals for case in read_manifest(tmp_path / "out/manifest.csv").cases}
    assert intervals == {"NT": ((0, 0.5), (0, 0.5)), "CLE": ((2, 100), None), "PSE": (None, (2, 100))}


@pytest.mark.parametrize("name", ["--absent", "--present"])
def test_a_bound_that_is_no_percentage_is_refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([str(tmp_path), str(tmp_path / "out"), name, "101"])
    assert f"{name} is 101, expected percent of the lung" in capsys.readouterr().err


def test_no_patient_is_on_both_sides_and_every_class_is_shared_out() -> None:
    slices = [LabelledSlice(Path(f"{k}.png"), "NT" if k < 20 else "CLE", f"p{k // 2}") for k in range(40)]
    train = split_by_patient(slices, 0.5, seed=0)
    assert sum(int(patient[1:]) < 10 for patient in train) == 5
    assert len(train) == 10
    assert train == split_by_patient(slices, 0.5, seed=0) != split_by_patient(slices, 0.5, seed=1)


def test_the_number_of_patients_to_train_on_is_rounded_to_the_nearest() -> None:
    slices = [LabelledSlice(Path(f"{k}.png"), "NT", f"p{k}") for k in range(3)]
    assert [len(split_by_patient(slices, share, seed=0)) for share in (0.4, 0.6)] == [1, 2]


def test_pixels_are_as_large_as_a_patient_of_350_mm_makes_them() -> None:
    hounsfield = np.full((100, 120), -1000.0, np.float32)
    hounsfield[20:90, 10:110] = 40
    hounsfield[95, 0] = 40  # a crumb beside the patient
    assert pixel_size_mm(hounsfield) == 3.5


def test_a_picture_that_is_no_slice_is_left_out_and_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(np.full((100, 100), 90, np.uint8)).save(folder / "CLE" / "2.png")
    assert main([str(folder), str(tmp_path / "out"), "--slices", "2"]) == 0
    assert "left out: CLE-2: " in capsys.readouterr().out
    assert len(read_manifest(tmp_path / "out" / "manifest.csv").cases) == 5


@pytest.mark.parametrize("columns", [("class", "patient", "file"), ("file", "class", "patient"), ("file", "patient", "class")])
def test_a_row_of_the_list_that_is_too_short_is_refused(
    columns: tuple[str, ...], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (folder / "patients.csv").open(newline="") as stream:
        rows = [[row[name] for name in columns] for row in csv.DictReader(stream)]
    with (folder / "patients.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([columns, *rows[:2], rows[2][:2], *rows[3:]])
    assert main([str(folder), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "patients.csv: row 4 is too short; expected a folder with patients.csv" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_output_below_a_file_is_refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main([str(folder), str(tmp_path / "file" / "out")]) == 2
    assert "out: it cannot be created (Not a directory)" in capsys.readouterr().err


def test_a_folder_without_a_list_of_patients_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), str(tmp_path / "out")]) == 2
    assert "patients.csv: it cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="no such file"):
        make_volume(tmp_path / "nothing.png")


def test_a_full_disk_is_one_line_that_names_the_volume(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise RuntimeError("itk::ERROR: MetaImageIO: File cannot be written\nReason: No space left on device")

    monkeypatch.setattr(sitk, "WriteImage", full)
    assert main([str(folder), str(tmp_path / "out")]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "writing" not in line]
    assert line == f"{tmp_path / 'out' / 'CLE-1_ct.mha'}: the image cannot be written (No space left on device)"
