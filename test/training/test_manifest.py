from __future__ import annotations

import hashlib
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from model.cohort.manifest import Scores, read_manifest, write_simulated_manifest
from model.errors import InputError
from model.fleischner import PARASEPTAL
from model.training.manifest import main
from test.imaging.series import write_enhanced_ct
from test.training.cohort import row, write_manifest, write_volume


@pytest.fixture
def folder(tmp_path: Path, manifest: Path) -> Path:
    """A folder with the files of the cohort's case `a` and nothing else."""
    for path in manifest.parent.glob("a_*.mha"):
        shutil.copy(path, tmp_path)
    return tmp_path


def others(folder: Path, *entities: str) -> None:
    for entity in entities:
        for path in folder.glob("a_*.mha"):
            shutil.copy(path, path.with_name(path.name.replace("a_", f"{entity}_")))


def test_rows_become_cases_with_paths_beside_the_manifest(folder: Path) -> None:
    others(folder, "b")
    path = write_manifest(folder / "m.csv", [row("a", 3, 1, "train"), row("b", 0, 2, "validation")])
    manifest = read_manifest(path, with_truth=True)
    (case,) = manifest.of("train")
    assert (case.entity, case.scores, case.ct) == ("a", Scores(3, 1), folder / "a_ct.mha")
    assert case.truth == (folder / "a_cle.mha", folder / "a_pse.mha")
    assert manifest.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_copdgene_tables_are_read_as_they_are(folder: Path) -> None:
    others(folder, "b")
    rows = []
    for entity, split in (("a", "train"), ("b", "validation")):
        ours = row(entity, "4.0", "1", split, truth=False)
        rows.append(
            {
                "sid": ours.pop("entity"),
                "CT_Visual_Emph_Severity_P1": ours.pop("centrilobular"),
                "CT_Visual_Emph_Paraseptal_P1": ours.pop("paraseptal"),
                "FEV1pp_utah_P1": "81.2",
            }
            | ours
        )
    manifest = read_manifest(write_manifest(folder / "copdgene.txt", rows, delimiter="\t"))
    assert [case.scores for case in manifest.cases] == [Scores(4, 1), Scores(4, 1)]
    assert manifest.cases[0].truth is None


def test_one_error_lists_every_bad_row_and_what_is_wrong_with_it(folder: Path) -> None:
    others(folder, "ok", "missing", "shifted", "small", "text", "twice")
    (folder / "missing_ct.mha").unlink()
    small = np.ones((10, 10, 10), np.uint8)
    write_volume(folder / "small_lung.mha", small, (5.0, 4.0, 4.0))
    write_volume(folder / "shifted_lung.mha", np.ones((50, 64, 80), np.uint8), (5.0, 4.0, 4.0), origin=9.0)
    (folder / "text_lung.mha").write_text("no image")
    rows = [
        row("ok", 0, 0, "train"),
        row("ok2", 6, -1, "train") | {"ct": "ok_ct.mha", "lung_mask": "ok_lung.mha"},
        row("missing", 1, 1, "train"),
        row("shifted", 1, 1, "train"),
        row("small", 1, 1, "traning"),
        row("text", "mild", 1, "train"),
        row("twice", 1, 1, "train"),
        row("twice", 1, 1, "train"),
    ]
    with pytest.raises(InputError) as caught:
        read_manifest(write_manifest(folder / "m.csv", rows))
    message = str(caught.value)
    assert "\n" not in message
    assert "7 bad rows" in message
    for fragment in (
        "row 3 (ok2): centrilobular score '6' is not one of 0 to 5, paraseptal score '-1' is not one of 0 to 2",
        "row 4 (missing): ",
        "missing_ct.mha: no such file",
        "row 5 (shifted): unequal grids: lung_mask lies elsewhere than the CT",
        "row 6 (small): unknown split 'traning', unequal grids: lung_mask has 10 x 10 x 10 voxels, the CT 80 x 64 x 50",
        "row 7 (text): centrilobular score 'mild'",
        "text_lung.mha: not an image",
        "row 8 (twice): duplicate entity twice",
        "row 9 (twice): duplicate entity twice",
    ):
        assert fragment in message
    assert "(ok):" not in message


def test_voxel_supervision_needs_truth_maps_of_a_scan_to_train_on_unless_scans_are_simulated(folder: Path) -> None:
    others(folder, "b")
    rows = [row("a", 0, 0, "train", truth=False), row("b", 0, 0, "validation", truth=False)]
    path = write_manifest(folder / "m.csv", rows)
    assert len(read_manifest(path).cases) == 2
    with pytest.raises(InputError, match="no scan to train on has centrilobular_truth and paraseptal_truth"):
        read_manifest(path, with_truth=True)
    assert len(read_manifest(path, with_truth=True, needs_training=False).cases) == 2
    alone = write_manifest(folder / "alone.csv", rows[1:])
    assert read_manifest(alone, needs_training=False).of("train") == ()


def bounded(entity: str, split: str, *bounds: str, **more: str) -> dict[str, str]:
    """A row without scores and truth, with bounds: centrilobular lower and upper, paraseptal lower and upper."""
    columns = ("centrilobular_lower", "centrilobular_upper", "paraseptal_lower", "paraseptal_upper")
    plain = row(entity, "", "", split, truth=False)
    return plain | dict(zip(columns, bounds, strict=True)) | more


def test_bounds_stand_for_scores_that_are_not_known(folder: Path) -> None:
    others(folder, "b", "c", "d")
    rows = [
        bounded("a", "train", "1", "", "", "", uniform_slices="yes"),
        bounded("b", "train", "", "", "2.5", "2.5", uniform_slices="") | {"centrilobular": "3"},
        bounded("c", "validation", "0", "1", "", "1", uniform_slices="no"),
        bounded("d", "train", "0", "100", "2", "", uniform_slices="no"),
    ]
    cases = read_manifest(write_manifest(folder / "m.csv", rows)).cases
    assert [case.scores for case in cases] == [Scores(None, None), Scores(3, None), Scores(None, None), Scores(None, None)]
    assert [case.intervals for case in cases] == [((1, 100), None), (None, (2.5, 2.5)), ((0, 1), (0, 1)), (None, (2, 100))]
    assert [case.uniform_slices for case in cases] == [True, False, False, False]
    without_scores = [
        {name: text for name, text in line.items() if name not in ("centrilobular", "paraseptal")} for line in rows
    ]
    again = read_manifest(write_manifest(folder / "n.csv", without_scores)).cases
    assert [case.intervals for case in again] == [case.intervals for case in cases]


def test_bounds_that_cannot_be_are_listed_row_by_row(folder: Path) -> None:
    others(folder, "b", "c", "d")
    rows = [
        bounded("a", "train", "5", "1", "", "101", uniform_slices="maybe"),
        bounded("b", "train", "", "few", "0", "0", uniform_slices=""),
        bounded("c", "train", "", "", "", "", uniform_slices=""),
        bounded("d", "validation", "0", "0", "0", "0", uniform_slices=""),
    ]
    with pytest.raises(InputError) as caught:
        read_manifest(write_manifest(folder / "m.csv", rows))
    message = str(caught.value)
    for fragment in (
        "3 bad rows",
        "row 2 (a): centrilobular_lower 5 is above centrilobular_upper 1, "
        "paraseptal_upper '101' is not a number from 0 to 100, "
        "uniform_slices 'maybe' is not yes, no or empty;",
        "row 3 (b): centrilobular_upper 'few' is not a number from 0 to 100;",
        "row 4 (c): no score, bound, truth map or predominant subtype;",
    ):
        assert fragment in message


@pytest.mark.parametrize("entity", ["../a", "", ".hidden", "a" * 201, "é" * 101])
def test_an_entity_must_be_able_to_name_a_file(folder: Path, entity: str) -> None:
    rows = [row("a", 0, 0, "train") | {"entity": entity}]
    with pytest.raises(InputError, match="cannot be a file name"):
        read_manifest(write_manifest(folder / "m.csv", rows))


def test_missing_columns_and_splits_are_named(folder: Path) -> None:
    with pytest.raises(InputError, match="missing columns: lung_mask, split"):
        read_manifest(write_manifest(folder / "m.csv", [{"entity": "a", "ct": "a", "centrilobular": "0", "paraseptal": "0"}]))
    with pytest.raises(InputError, match="no row has the split validation"):
        read_manifest(write_manifest(folder / "m.csv", [row("a", 0, 0, "train")]))
    with pytest.raises(InputError, match="cannot be read"):
        read_manifest(folder / "nothing.csv")


def simulated(folder: Path, count: int) -> Path:
    """The layout of `python -m model.simulation`, with copies of one CT."""
    rows = []
    for number in range(count):
        entity = f"case-{number:03d}"
        for name in ("images/ct", "images/lung-mask", "truth"):
            (folder / entity / name).mkdir(parents=True)
        for source, target in (
            ("ct", f"images/ct/{entity}.mha"),
            ("lung", f"images/lung-mask/{entity}.mha"),
            ("cle", "truth/centrilobular.mha"),
            ("pse", "truth/paraseptal.mha"),
        ):
            os.link(folder.parent / f"a_{source}.mha", folder / entity / target)  # a symbolic link would be one CT
        scores = {"cle_score": str(number % 4), "pse_score": "0", "cle_percentage": "12.5", "pse_percentage": "0.0"}
        rows.append({"entity": entity} | scores | {"kernel": "sharp"})
    write_manifest(folder / "reference.csv", rows)
    return folder


def test_a_simulated_cohort_gets_a_manifest_with_every_score_in_every_split(folder: Path) -> None:
    cohort = simulated(folder / "cohort", 40)
    path = write_simulated_manifest(cohort, validation=0.25, test=0.1, seed=3)
    manifest = read_manifest(path, with_truth=True)
    assert [len(manifest.of(split)) for split in ("train", "validation", "test")] == [26, 10, 4]
    assert set(Counter(case.scores.centrilobular for case in manifest.of("validation"))) == {0, 1, 2, 3}
    assert manifest.cases[0].percentages == (12.5, 0.0)
    assert (
        path.read_bytes()
        == write_simulated_manifest(cohort, folder / "cohort" / "again.csv", validation=0.25, test=0.1, seed=3).read_bytes()
    )


def test_the_manifest_of_a_simulated_cohort_may_lie_elsewhere(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cohort = simulated(folder / "cohort", 5)
    assert main([str(cohort), str(folder / "lists" / "m.csv"), "--validation", "0.4"]) == 0
    assert "3 train, 2 validation, 0 test" in capsys.readouterr().out
    assert read_manifest(folder / "lists" / "m.csv").cases[0].ct.is_file()


def test_a_folder_that_is_no_simulated_cohort_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "reference.csv: it cannot be read" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_leading_subtype_is_read_and_checked(folder: Path) -> None:
    others(folder, "b")
    known = row("a", 1, 2, "train") | {"leading": "paraseptal"}
    open_ = row("b", 0, 0, "validation") | {"leading": ""}
    manifest = write_manifest(folder / "m.csv", [known, open_])
    assert [case.leading for case in read_manifest(manifest).cases] == [PARASEPTAL, None]
    write_manifest(folder / "m.csv", [known | {"leading": "PSE"}, open_])
    with pytest.raises(InputError, match="leading 'PSE' is not centrilobular or paraseptal"):
        read_manifest(folder / "m.csv")


def test_a_row_may_know_the_predominant_subtype_alone(folder: Path) -> None:
    others(folder, "b")
    known = row("a", "", "", "train", truth=False) | {"leading": "paraseptal"}
    rows = [known, row("b", 0, 0, "validation", truth=False)]
    assert [case.leading for case in read_manifest(write_manifest(folder / "m.csv", rows)).cases] == [PARASEPTAL, None]


def test_a_link_to_itself_is_no_file(folder: Path) -> None:
    (folder / "loop.mha").symlink_to(folder / "loop.mha")
    rows = [row("a", 0, 0, "train") | {"ct": "loop.mha"}]
    with pytest.raises(InputError, match=r"1 bad row: row 2 \(a\): .*loop\.mha: "):
        read_manifest(write_manifest(folder / "m.csv", rows))


def test_a_ct_and_a_patient_are_in_one_split(folder: Path) -> None:
    others(folder, "b", "c", "d")
    (folder / "link.mha").symlink_to(folder / "a_ct.mha")
    rows = [
        row("a", 0, 0, "train") | {"patient": "1"},
        row("a2", 0, 0, "train") | {"patient": "1", "ct": "a_ct.mha", "lung_mask": "a_lung.mha"},
        row("b", 0, 0, "validation") | {"patient": "", "ct": "link.mha"},
        row("c", 0, 0, "test") | {"patient": "2"},
        row("d", 0, 0, "validation") | {"patient": "2"},
    ]
    rows = [line | {"centrilobular_truth": "", "paraseptal_truth": ""} for line in rows]
    with pytest.raises(InputError) as caught:
        read_manifest(write_manifest(folder / "m.csv", rows))
    for fragment in (
        "5 bad rows: row 2 (a): the same CT as b (validation); row 3 (a2): the same CT as b (validation); "
        "row 4 (b): the same CT as a (train); row 5 (c): the same patient as d (validation); "
        "row 6 (d): the same patient as c (test); ",
        "no CT or patient in two splits",
    ):
        assert fragment in str(caught.value)
    apart = [rows[0], rows[1], rows[4]]
    assert len(read_manifest(write_manifest(folder / "m.csv", apart)).cases) == 3


def test_what_the_readers_accept_is_no_bad_row(folder: Path) -> None:
    """A fourth axis with one place, and an enhanced CT whose frames come from the head down."""
    others(folder, "b")
    image = sitk.ReadImage(str(folder / "a_ct.mha"))
    sitk.WriteImage(sitk.JoinSeries([image]), str(folder / "a_ct.mha"))
    (folder / "b_ct.mha").unlink()
    write_enhanced_ct(image, folder / "b_ct.dcm", order=list(range(image.GetSize()[2]))[::-1])
    for name in ("lung", "cle", "pse"):  # on the grid of that file
        path = folder / f"b_{name}.mha"
        sitk.WriteImage(sitk.ReadImage(str(path))[:, :, ::-1], str(path))
    rows = [row("a", 0, 0, "train"), row("b", 0, 0, "validation") | {"ct": "b_ct.dcm"}]
    assert len(read_manifest(write_manifest(folder / "m.csv", rows)).cases) == 2
