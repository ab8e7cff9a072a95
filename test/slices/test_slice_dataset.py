"""Folders of labelled slices, whose patients they are of, and the two ways to split them."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.errors import InputError
from model.slices import CLASSES
from model.slices.cross_validation import Fold, progress
from model.slices.dataset import (
    PATIENTS_FILE,
    Slices,
    _listed_patients,
    folds_by_patient,
    part_of,
    read_slices,
    split_by_image,
    split_by_patient,
)
from model.slices.metrics import CurvePoint
from model.slices.parts import KeptParts, notes_on_validation, parts_of, splits_of
from model.slices.settings import Settings
from test.slices.chest import chest
from test.slices.conftest import PATIENTS, SLICES_EACH
from test.slices.test_slice_images import write_dicom


def cohort(patients: int, slices_each: int, known: bool = True) -> Slices:
    """Labels and patients without pictures."""
    labels = np.repeat(np.arange(len(CLASSES)), patients * slices_each)
    owner = np.repeat(np.arange(len(CLASSES) * patients), slices_each).astype(str)
    empty = np.zeros((len(labels), 1, 1))
    return Slices(empty.astype(np.float16), empty.astype(np.uint8), labels, owner if known else None)


def test_every_slice_is_read_with_its_class_and_patient(slices_folder: Path) -> None:
    slices = read_slices(slices_folder)
    count = len(CLASSES) * PATIENTS * SLICES_EACH
    assert slices.pixels(np.arange(count)).shape == (count, 3, 336, 336)
    assert slices.refused == ()
    assert np.bincount(slices.labels).tolist() == [PATIENTS * SLICES_EACH] * len(CLASSES)
    assert slices.patients is not None
    assert set(slices.patients) == {f"{label}-{patient}" for label in CLASSES for patient in range(PATIENTS)}


def copy_of_first_patients(slices_folder: Path, folder: Path) -> None:
    """Copy the slices of each class's first patient."""
    shutil.copytree(slices_folder, folder, ignore=shutil.ignore_patterns("p[1-9]-*"))


def test_without_a_list_of_patients_they_are_not_known(slices_folder: Path, tmp_path: Path) -> None:
    copy_of_first_patients(slices_folder, tmp_path / "slices")
    (tmp_path / "slices" / PATIENTS_FILE).unlink()
    assert read_slices(tmp_path / "slices").patients is None


def test_dicom_files_tell_their_patients_who_are_not_named(tmp_path: Path) -> None:
    for label in CLASSES:
        (tmp_path / label).mkdir()
        for number in range(2):
            tags = {"0010|0020": f"ID-{label}", "0010|0010": "DOE^JANE"}
            write_dicom(tmp_path / label / f"{number}.dcm", chest().astype(np.int16), **tags)
    patients = read_slices(tmp_path).patients
    assert patients is not None
    assert len(patients) == 8
    assert len(set(patients)) == 4
    assert not any("ID" in patient or "DOE" in patient for patient in patients)


def test_dicom_files_are_found_whatever_their_names(tmp_path: Path) -> None:
    names = ("1.2.840.113619.2.55.12345", "IM.0001", "slice.dicom", "slice.v2")
    for label, name in zip(CLASSES, names, strict=True):
        (tmp_path / label).mkdir()
        write_dicom(tmp_path / label / "slice.dcm", chest().astype(np.int16)).rename(tmp_path / label / name)
        (tmp_path / label / "notes.txt").write_text("no slice")
    (tmp_path / "NT" / "LICENSE").write_text("no slice, either")
    write_dicom(tmp_path / "NT" / "slice.dcm", chest().astype(np.int16)).rename(tmp_path / "NT" / "IM1")
    slices = read_slices(tmp_path)
    assert slices.passed_over == ("CLE/notes.txt", "NT/LICENSE", "NT/notes.txt", "PLE/notes.txt", "PSE/notes.txt")
    assert "NT/IM1" in slices.files
    files = tuple(file for file in slices.files if file != "NT/IM1")
    assert files == tuple(f"{label}/{name}" for label, name in zip(CLASSES, names, strict=True))


@pytest.mark.parametrize("state", range(5))
def test_both_splits_set_a_fifth_of_each_class_aside(state: int) -> None:
    slices = cohort(patients=14, slices_each=8)
    for split in (split_by_image(slices, state), split_by_patient(slices, state)):
        assert sorted([*split.train, *split.test]) == list(range(len(slices.labels)))
        shares = np.bincount(slices.labels[split.test]) / np.bincount(slices.labels)
        assert (abs(shares - 0.2) < 1 / 14).all(), "to within one patient"


def test_only_the_split_by_patient_keeps_patients_apart() -> None:
    slices = cohort(patients=14, slices_each=8)
    assert slices.patients is not None
    by_patient, by_image = split_by_patient(slices), split_by_image(slices)
    assert not set(slices.patients[by_patient.train]) & set(slices.patients[by_patient.test])
    leaked = set(slices.patients[by_image.train]) & set(slices.patients[by_image.test])
    assert len(leaked) > 0.5 * len(set(slices.patients))


def test_five_folds_set_every_slice_aside_once_and_keep_patients_apart() -> None:
    slices = cohort(patients=14, slices_each=8)
    assert slices.patients is not None
    folds = folds_by_patient(slices)
    assert sorted(np.concatenate([fold.test for fold in folds]).tolist()) == list(range(len(slices.labels)))
    for fold in folds:
        assert not set(slices.patients[fold.train]) & set(slices.patients[fold.test])
        inner = part_of(slices, fold.train)
        assert sorted([*inner.train, *inner.test]) == sorted(fold.train)
        assert not set(slices.patients[inner.train]) & set(slices.patients[inner.test])


def test_a_slice_without_lungs_is_left_out_and_named(slices_folder: Path, tmp_path: Path) -> None:
    copy_of_first_patients(slices_folder, tmp_path / "slices")
    Image.fromarray(np.full((320, 320), 120, np.uint8)).save(tmp_path / "slices" / "PSE" / "p0-0.png")
    slices = read_slices(tmp_path / "slices")
    ((file, label, why),) = slices.refused
    assert (file, label) == ("PSE/p0-0.png", "PSE")
    assert "expected an axial slice of the chest" in why
    assert slices.patients is not None
    assert len(slices.labels) == len(slices.patients) == len(slices.files) == len(CLASSES) * SLICES_EACH - 1
    assert "PSE/p0-0.png" not in slices.files


def test_splits_are_the_same_every_time() -> None:
    slices = cohort(patients=6, slices_each=3)
    for split in (split_by_image, split_by_patient):
        np.testing.assert_array_equal(split(slices).test, split(slices).test)


def test_too_few_patients_or_none_known_cannot_be_split_by_patient() -> None:
    with pytest.raises(ValueError, match="class CLE has 4 patients"):
        split_by_patient(cohort(patients=4, slices_each=8))
    with pytest.raises(ValueError, match="not known"):
        split_by_patient(cohort(patients=14, slices_each=8, known=False))


def test_too_few_patients_for_folds_are_enough_to_split_by_image() -> None:
    few = cohort(patients=4, slices_each=8)
    assert list(splits_of(few, 1, ["image"])) == ["image"]
    with pytest.raises(InputError, match="class CLE has 4 patients"):
        splits_of(few, 1)
    assert list(splits_of(cohort(patients=14, slices_each=8, known=False), 1)) == ["image"]


def test_a_folder_that_is_none_is_refused_by_name(slices_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(slices_folder, tmp_path / "few")
    shutil.rmtree(tmp_path / "few" / "PSE")
    shutil.copytree(slices_folder, tmp_path / "unlisted")
    (tmp_path / "unlisted" / PATIENTS_FILE).write_text("file,patient\nCLE/p0-0.png,A\n")
    shutil.copytree(slices_folder, tmp_path / "columns")
    (tmp_path / "columns" / PATIENTS_FILE).write_text("name,person\n")
    shutil.copytree(slices_folder, tmp_path / "latin")
    (tmp_path / "latin" / PATIENTS_FILE).write_bytes("file,patient\nCLE/p0-0.png,Müller\n".encode("latin-1"))
    for name, message in (
        ("absent", "absent: no such folder"),
        ("few", "few: no slices of class PSE"),
        ("unlisted", f"{PATIENTS_FILE}: 39 slices have no patient, such as CLE/p0-1.png"),
        ("columns", f"{PATIENTS_FILE}: its columns are name, person; expected file and patient"),
        ("latin", f"{PATIENTS_FILE}: cannot be read ('utf-8' codec can't decode byte 0xfc in position"),
    ):
        with pytest.raises(InputError, match=re.escape(message)):
            read_slices(tmp_path / name)


def test_patients_are_told_apart_without_the_blanks_around_them(tmp_path: Path) -> None:
    path = tmp_path / PATIENTS_FILE
    names = {f"CLE/{letter}.png" for letter in "abcd"}
    path.write_text("file,patient\nCLE/a.png,A\nCLE/b.png,A \nCLE/c.png, A\nCLE/d.png,   \nCLE/a.png,A\n")
    with path.open("a") as stream:
        stream.write(",E\n,F\ngone.png,E\ngone.png,F\n")
    assert _listed_patients(path, names) == {"CLE/a.png": "A", "CLE/b.png": "A", "CLE/c.png": "A"}
    path.write_text("file,patient\nCLE/a.png,A\nCLE/a.png,B\n")
    with pytest.raises(InputError, match=r"patients\.csv: CLE/a\.png is of two patients, A and B; expected one"):
        _listed_patients(path, names)


def test_a_slice_that_cannot_be_read_or_is_none_of_a_ct_is_left_out_and_listed(tmp_path: Path) -> None:
    pixels = chest().astype(np.int16)
    for label in CLASSES:
        (tmp_path / label).mkdir()
        write_dicom(tmp_path / label / "slice.dcm", pixels)
    write_dicom(tmp_path / "CLE" / "mr.dcm", pixels, **{"0008|0060": "MR"})
    (tmp_path / "NT" / "damaged.png").write_bytes(b"no picture")
    slices = read_slices(tmp_path)
    assert slices.files == tuple(f"{label}/slice.dcm" for label in CLASSES)
    refused = {file: why for file, _, why in slices.refused}
    assert refused["CLE/mr.dcm"].startswith("an image of modality MR; expected")
    assert refused["NT/damaged.png"].startswith("not a picture that can be read")


@pytest.mark.parametrize("name", ["cut.dcm", "CUT1"])
def test_a_damaged_dicom_slice_is_left_out_and_listed_and_needs_no_patient(tmp_path: Path, name: str) -> None:
    for label in CLASSES:
        (tmp_path / label).mkdir()
        write_dicom(tmp_path / label / "slice.dcm", chest().astype(np.int16), **{"0010|0020": f"ID-{label}"})
    (tmp_path / "CLE" / name).write_bytes((tmp_path / "CLE" / "slice.dcm").read_bytes()[:200])
    files = tuple(f"{label}/slice.dcm" for label in CLASSES)
    from_files = read_slices(tmp_path)
    (tmp_path / PATIENTS_FILE).write_text("\n".join(["file,patient", *(f"{file},{file[0]}" for file in files)]))
    listed = read_slices(tmp_path)
    for slices in (from_files, listed):
        assert slices.files == files
        ((file, label, why),) = slices.refused
        assert (file, label) == (f"CLE/{name}", "CLE")
        assert why.startswith("the file is damaged or cut off")
        assert slices.passed_over == ()
    assert from_files.patients is not None
    assert len(set(from_files.patients)) == 4
    assert listed.patients is not None
    assert listed.patients.tolist() == ["C", "P", "P", "N"]


def test_validation_within_the_slices_to_train_on_is_tried_before_training() -> None:
    few = cohort(patients=5, slices_each=4, known=False)
    two_of_a_class = np.flatnonzero((few.labels != 3) | (np.arange(len(few.labels)) < 62))
    few = Slices(few.hounsfield[two_of_a_class], few.lungs[two_of_a_class], few.labels[two_of_a_class], None)
    assert np.bincount(few.labels).tolist() == [20, 20, 20, 2]
    for state in range(5):
        split = split_by_image(few, state)
        if (few.labels[split.train] == 3).sum() == 1:
            with pytest.raises(InputError, match=r"--patience: no slices .* \(class NT has 1 slices to train on"):
                notes_on_validation(few, [split])
            break
    else:
        raise AssertionError("no split leaves one slice")


def test_a_note_says_where_patients_are_known_and_validation_is_by_image() -> None:
    five, many = cohort(patients=5, slices_each=4), cohort(patients=14, slices_each=4)
    (note,) = notes_on_validation(five, folds_by_patient(five))
    assert "fewer than five patients" in note
    assert notes_on_validation(many, folds_by_patient(many)) == []
    unknown = replace(five, patients=None)
    assert notes_on_validation(unknown, [split_by_image(unknown)]) == []


def test_kept_answers_are_those_of_the_same_pixels_lungs_and_base_weights(tmp_path: Path) -> None:
    slices = cohort(patients=5, slices_each=4)
    slices = replace(slices, files=tuple(map(str, range(len(slices.labels)))))
    part = parts_of(slices, folds=1)[0]
    kept = KeptParts(tmp_path, slices, Settings(), {"texture": "base.pth, sha256 1"})
    kept.make_folder()
    fold = Fold(part.split, np.zeros((len(part.split.test), len(CLASSES))))
    kept.write("texture", part, fold)
    again = replace(kept).read("texture", part)
    assert again is not None
    np.testing.assert_array_equal(again.logits, fold.logits)
    renamed = tuple(f"{name}x" if index == part.split.train[0] else name for index, name in enumerate(slices.files))
    for changed, name in (
        (replace(kept, slices=replace(slices, hounsfield=slices.hounsfield + 1)), "slices"),
        (replace(kept, slices=replace(slices, lungs=slices.lungs + 1)), "slices"),
        (replace(kept, slices=replace(slices, labels=slices.labels[::-1])), "slices"),
        (replace(kept, slices=replace(slices, files=renamed)), "learnt_from"),
        (replace(kept, base_weights={"texture": "base.pth, sha256 2"}), "base_weights"),
    ):
        with pytest.raises(InputError, match=rf"was made otherwise \({name}\)"):
            changed.read("texture", part)


def test_an_epoch_is_told_in_words() -> None:
    assert progress(CurvePoint(1, 1.6031692028045654, 1.25, 0.5)) == (
        "epoch 1: loss 1.603, 1.250 on the slices set aside, 50.0 % of them right"
    )
    assert progress(CurvePoint(2, 1.6, None, None)) == "epoch 2: loss 1.600"
