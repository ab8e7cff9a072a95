"""Which files are which case, and how outputs appear."""

from __future__ import annotations

import errno
import json
import logging
import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from model.container.grand_challenge import Case, OutputFolder, find_cases, stem_of
from model.container.results import SubtypeScore
from model.errors import InputError
from model.imaging.readers import read_header


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def test_one_ct_and_one_mask_pair_whatever_their_names(tmp_path: Path) -> None:
    touch(tmp_path, "images/ct/7d1a.mha", "images/lung-mask/99ff.mha")
    assert find_cases(tmp_path) == [
        Case("7d1a", tmp_path / "images/ct/7d1a.mha", tmp_path / "images/lung-mask/99ff.mha", lobes=False)
    ]


@pytest.mark.parametrize(("mask_folder", "lobes"), [("lung-mask", False), ("pulmonary-lobes", True), ("lungs", False)])
def test_each_mask_folder_is_found_and_only_lobes_have_labels_that_mean_something(
    tmp_path: Path, mask_folder: str, lobes: bool
) -> None:
    touch(tmp_path, "images/ct/a.mha", f"images/{mask_folder}/b.nii.gz")
    (case,) = find_cases(tmp_path)
    assert (case.lung_mask, case.lobes) == (tmp_path / "images" / mask_folder / "b.nii.gz", lobes)
    assert Case.of(case.ct, tmp_path / "images" / mask_folder / "b.nii.gz").lobes is lobes


def test_the_lung_mask_goes_before_lobes(tmp_path: Path) -> None:
    touch(tmp_path, "images/ct/a.mha", "images/pulmonary-lobes/a.mha", "images/lung-mask/a.mha")
    (case,) = find_cases(tmp_path)
    assert case.lung_mask == tmp_path / "images/lung-mask/a.mha"


def test_several_cases_pair_by_stem_and_one_without_a_mask_stays_behind(tmp_path: Path) -> None:
    touch(tmp_path, "images/ct/b.mha", "images/ct/a.nii.gz", "images/ct/c.mha")
    touch(tmp_path, "images/lung-mask/a.mha", "images/lung-mask/b.mha", "images/lung-mask/other.mha")
    cases = find_cases(tmp_path)
    assert [(case.entity, case.lung_mask and case.lung_mask.name) for case in cases] == [
        ("a", "a.mha"),
        ("b", "b.mha"),
        ("c", None),
    ]
    with pytest.raises(InputError, match=r"c\.mha: no lung mask has the same name"):
        _ = cases[2].files


def test_cts_without_a_mask_are_cases_where_lungs_are_to_be_found(tmp_path: Path) -> None:
    touch(tmp_path, "images/ct/a.mha", "images/ct/b.mha")
    with pytest.raises(InputError, match="there is no lung mask"):
        find_cases(tmp_path)
    folder = tmp_path / "images/ct"
    assert [case.files for case in find_cases(tmp_path, segment_lungs=True)] == [(folder / "a.mha",), (folder / "b.mha",)]
    touch(tmp_path, "images/lung-mask/b.mha")
    cases = find_cases(tmp_path, segment_lungs=True)
    assert [(len(case.files), case.lung_mask_source) for case in cases] == [(1, "automatic"), (2, "given")]


def test_each_ct_is_paired_with_the_first_mask_of_its_name_in_any_mask_folder(tmp_path: Path) -> None:
    touch(tmp_path, "images/ct/a.mha", "images/ct/b.mha", "images/ct/c.mha", "images/lung-mask/a.mha")
    touch(tmp_path, "images/pulmonary-lobes/b.mha", "images/pulmonary-lobes/a.mha", "images/lungs/c.mha")
    for segment_lungs in (False, True):
        assert [(case.lung_mask, case.lobes) for case in find_cases(tmp_path, segment_lungs)] == [
            (tmp_path / "images/lung-mask/a.mha", False),
            (tmp_path / "images/pulmonary-lobes/b.mha", True),
            (tmp_path / "images/lungs/c.mha", False),
        ]


def test_a_single_ct_is_paired_with_the_mask_of_its_name_before_any_other(tmp_path: Path) -> None:
    touch(tmp_path, "images/ct/b.mha", "images/lung-mask/a.mha", "images/pulmonary-lobes/b.mha")
    (case,) = find_cases(tmp_path)
    assert (case.lung_mask, case.lobes) == (tmp_path / "images/pulmonary-lobes/b.mha", True)


@pytest.mark.parametrize("is_ct_decomposed", [False, True])
def test_names_pair_however_their_accents_are_encoded(tmp_path: Path, is_ct_decomposed: bool) -> None:
    """macOS writes letters with accents decomposed (NFD)."""
    name = "M\u00fcller.mha"
    ct, mask = (unicodedata.normalize("NFD", name), name) if is_ct_decomposed else (name, unicodedata.normalize("NFD", name))
    touch(tmp_path, f"images/ct/{ct}", "images/ct/x.mha", f"images/lung-mask/{mask}")
    case, other = find_cases(tmp_path, segment_lungs=True)
    assert (case.entity, case.lung_mask) == (stem_of(Path(ct)), tmp_path / "images/lung-mask" / mask)
    assert other.lung_mask is None
    touch(tmp_path, f"images/ct/{mask}")
    with pytest.raises(InputError, match="two CTs have the same name"):
        find_cases(tmp_path, segment_lungs=True)


def test_two_masks_of_one_name_are_refused_where_one_would_be_used(tmp_path: Path) -> None:
    touch(tmp_path, "images/ct/a.mha", "images/ct/b.mha", "images/lung-mask/a.mha", "images/lung-mask/x.mha")
    touch(tmp_path, "images/pulmonary-lobes/a.mha", "images/pulmonary-lobes/a.nii.gz", "images/lung-mask/x.nii.gz")
    used, none = find_cases(tmp_path, segment_lungs=True)
    assert (used.lung_mask, none.lung_mask) == (tmp_path / "images/lung-mask/a.mha", None)
    touch(tmp_path, "images/pulmonary-lobes/b.mha", "images/pulmonary-lobes/b.nii.gz")
    pair = "images/pulmonary-lobes/b.mha and images/pulmonary-lobes/b.nii.gz"
    with pytest.raises(InputError, match=f"two masks have the same name, {pair}; expected names that differ"):
        find_cases(tmp_path, segment_lungs=True)


def test_masks_that_belong_to_no_ct_are_logged_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    touch(tmp_path, "images/ct/a.mha", "images/ct/B.mha", "images/lung-mask/a.mha", "images/pulmonary-lobes/a.mha")
    find_cases(tmp_path, segment_lungs=True)
    assert caplog.messages == []
    first = tmp_path / "images/lung-mask/x.mha"
    touch(tmp_path, "images/lung-mask/x.mha")
    find_cases(tmp_path, segment_lungs=True)
    assert caplog.messages == [f"a lung mask belongs to no CT: {first}"]
    caplog.clear()
    touch(tmp_path, "images/lung-mask/y.mha")
    find_cases(tmp_path, segment_lungs=True)
    assert caplog.messages == [f"2 lung masks belong to no CT, such as {first}"]
    caplog.clear()
    touch(tmp_path, "images/pulmonary-lobes/b.mha")
    find_cases(tmp_path, segment_lungs=True)
    other = tmp_path / "images/pulmonary-lobes/b.mha"
    assert caplog.messages == [f"3 lung masks belong to no CT, such as {other}, whose name differs in case from that of B.mha"]


def test_dicom_series_are_found_as_subfolders_or_as_the_folder_itself(tmp_path: Path) -> None:
    touch(tmp_path / "one", "images/ct/series/1.dcm", "images/lung-mask/m.mha")
    assert find_cases(tmp_path / "one")[0].ct == tmp_path / "one/images/ct/series"
    for name, suffix in (("two", ".dcm"), ("three", "")):
        touch(tmp_path / name, f"images/ct/IM1{suffix}", f"images/ct/IM2{suffix}", "images/lung-mask/m.mha")
        assert find_cases(tmp_path / name)[0].ct == tmp_path / name / "images/ct"


@pytest.mark.parametrize(
    "stray",
    [
        ("__MACOSX/",),
        ("__MACOSX/1.dcm", "__MACOSX/._2.dcm"),
        ("empty/empty/",),
        ("notes/README", "notes/a.txt"),
        (".hidden/1.dcm",),
    ],
    ids=lambda stray: stray[0],
)
def test_a_stray_subfolder_does_not_replace_the_series_beside_it(
    tmp_path: Path, stray: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    touch(tmp_path, "images/ct/1.dcm", "images/ct/2.dcm", "images/lung-mask/m.mha")
    for name in stray:
        (tmp_path / "images/ct" / name).mkdir(parents=True) if name.endswith("/") else touch(tmp_path, f"images/ct/{name}")
    assert [case.ct for case in find_cases(tmp_path)] == [tmp_path / "images/ct"]
    folder = tmp_path / "images/ct" / stray[0].split("/")[0]
    told = [f"{folder}: passed over: it holds no DICOM file"] if folder.name in ("empty", "notes") else []
    assert caplog.messages == told


def test_slices_of_a_series_beside_image_files_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "images/ct/a.mhd", "images/ct/notes", "images/lung-mask/a.mha")
    (tmp_path / "images/ct/a.raw").write_bytes(bytes(128) + b"DICM")  # voxels
    assert [case.entity for case in find_cases(tmp_path)] == ["a"]
    (tmp_path / "images/ct/IM1").write_bytes(bytes(128) + b"DICM")
    with pytest.raises(
        InputError, match="IM1: a DICOM slice beside image files; expected each DICOM series in a folder of its own"
    ):
        find_cases(tmp_path)


def test_a_series_beside_a_subfolder_with_another_is_a_case_too(tmp_path: Path) -> None:
    part_10 = bytes(128) + b"DICM"
    touch(tmp_path, "images/ct/late/1.dcm", "images/lung-mask/ct.mha", "images/lung-mask/late.mha")
    (tmp_path / "images/ct/IM1").write_bytes(part_10)
    assert [(case.entity, case.ct.name) for case in find_cases(tmp_path)] == [("ct", "ct"), ("late", "late")]


def test_a_series_is_found_in_the_nested_folders_of_an_export_and_named_after_the_outermost(tmp_path: Path) -> None:
    part_10 = bytes(128) + b"DICM"
    for patient in ("p1", "p2"):
        touch(tmp_path, f"images/ct/{patient}/STUDY/SER1/1.dcm", f"images/ct/{patient}/DICOMDIR")
        touch(tmp_path, f"images/lung-mask/{patient}/STUDY/SEG/mask.dicom", f"images/ct/{patient}/__MACOSX/1.dcm")
        (tmp_path / f"images/lung-mask/{patient}/STUDY/SEG/mask.dicom").write_bytes(part_10)
    assert find_cases(tmp_path) == [
        Case(
            patient,
            tmp_path / f"images/ct/{patient}/STUDY/SER1",
            tmp_path / f"images/lung-mask/{patient}/STUDY/SEG",
        )
        for patient in ("p1", "p2")
    ]


def test_a_folder_of_several_series_is_not_passed_over(tmp_path: Path) -> None:
    """Reading it fails with a message that names it."""
    touch(tmp_path, "images/ct/p1/SER1/1.dcm", "images/ct/p1/SER2/1.dcm", "images/ct/p2/SER1/1.dcm")
    assert [case.ct for case in find_cases(tmp_path, segment_lungs=True)] == [
        tmp_path / "images/ct/p1",
        tmp_path / "images/ct/p2/SER1",
    ]
    with pytest.raises(InputError, match=r"p1: the folder holds no DICOM file but 2 folders; expected one DICOM series$"):
        read_header(tmp_path / "images/ct/p1")


@pytest.mark.parametrize(
    ("files", "found"),
    [
        (["scan.mha", ".hidden"], "no DICOM file but scan.mha"),
        (["SER/1.dcm", "__MACOSX/1.dcm", "scan.mha"], "no DICOM file but 1 folder and scan.mha"),
        (["a.nii.gz", "b.nii.gz", "c.nii.gz"], "no DICOM file but 3 files, such as a.nii.gz"),
    ],
)
def test_a_folder_with_an_image_file_is_not_passed_over(tmp_path: Path, files: list[str], found: str) -> None:
    touch(tmp_path / "images/ct/p1", *files)
    (case,) = find_cases(tmp_path, segment_lungs=True)
    assert case.entity == "p1"
    with pytest.raises(InputError, match=f"p1: the folder holds {found}; expected one DICOM series$"):
        read_header(case.ct)


@pytest.fixture
def locked(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is named `lost+found` or `locked` cannot be read, whoever runs the tests."""
    iterdir, open_file = Path.iterdir, Path.open

    def listed(path: Path) -> Iterator[Path]:
        if path.name == "lost+found":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return iterdir(path)

    def opened(path: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
        if path.name.endswith("locked") and "r" in mode:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return open_file(path, mode, *args, **options)

    monkeypatch.setattr(Path, "iterdir", listed)
    monkeypatch.setattr(Path, "open", opened)


@pytest.mark.usefixtures("locked")
def test_a_folder_that_cannot_be_read_is_a_case_that_fails_beside_the_others(tmp_path: Path) -> None:
    touch(tmp_path, "images/ct/a.mha", "images/ct/b.mha", "images/lung-mask/a.mha", "images/lung-mask/b.mha")
    (tmp_path / "images/ct/lost+found").mkdir()
    cases = find_cases(tmp_path, segment_lungs=True)
    assert [case.entity for case in cases] == ["a", "b", "lost+found"]
    with pytest.raises(InputError, match=r"ct/lost\+found: .*Permission denied"):
        read_header(cases[2].ct)


@pytest.mark.usefixtures("locked")
def test_a_file_that_cannot_be_read_fails_its_own_series_alone(tmp_path: Path) -> None:
    part_10 = bytes(128) + b"DICM"
    touch(
        tmp_path, "images/ct/locked", "images/ct/p1/IM1", "images/ct/p1/00locked", "images/ct/p2/SER/IM1", "images/ct/p2/locked"
    )
    touch(tmp_path, "images/ct/p3/IM1-locked", "images/ct/p3/IM2-locked")
    for place in ("p1/IM1", "p2/SER/IM1"):
        (tmp_path / "images/ct" / place).write_bytes(part_10)
    cases = find_cases(tmp_path, segment_lungs=True)
    assert [str(case.ct.relative_to(tmp_path / "images/ct")) for case in cases] == ["p1", "p2/SER", "p3"]
    for case in cases[::2]:
        with pytest.raises(InputError, match=rf"{case.ct}.*Permission denied"):
            read_header(case.ct)


def test_links_in_a_circle_end_no_search_for_a_series(tmp_path: Path) -> None:
    touch(tmp_path, "images/ct/p/SER/1.dcm", "images/lung-mask/m.mha")
    for name in ("again", "and-again", "SER/up"):
        (tmp_path / "images/ct/p" / name).symlink_to(tmp_path / "images/ct", target_is_directory=True)
    assert [case.ct for case in find_cases(tmp_path)] == [tmp_path / "images/ct/p/SER"]


def interface(key: str, slug: str, relative_path: str) -> dict[str, Any]:
    return {key: {"slug": slug, "relative_path": relative_path}, "image": {"name": "original.mha"}}


@pytest.mark.parametrize("key", ["interface", "socket"])
def test_inputs_json_says_which_folders_count(tmp_path: Path, key: str) -> None:
    touch(tmp_path, "images/ct/a.mha", "images/lung-mask/a.mha", "images/pulmonary-lobes/a.mha")
    entries = [interface(key, "ct-image", "images/ct"), interface(key, "pulmonary-lobes", "images/pulmonary-lobes")]
    (tmp_path / "inputs.json").write_text(json.dumps(entries))
    (case,) = find_cases(tmp_path)
    assert case.lung_mask == tmp_path / "images/pulmonary-lobes/a.mha"


@pytest.mark.parametrize(
    "content",
    [
        *("{", "{}x", "[1]", "7", "null", "[null]", '[{"interface": {}}]', '[{"interface": {"relative_path": 3}}]'),
        *("[" * 100_000, "[" + "9" * 10_000 + "]"),
    ],
    ids=lambda content: content[:40],
)
def test_an_inputs_json_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    touch(tmp_path, "images/ct/a.mha", "images/lung-mask/a.mha")
    (tmp_path / "inputs.json").write_text(content)
    with pytest.raises(InputError, match=r"inputs\.json: not the platform's list of inputs"):
        find_cases(tmp_path)


def test_an_inputs_json_that_is_no_small_file_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "images/ct/a.mha", "images/lung-mask/a.mha")
    path = tmp_path / "inputs.json"
    makers = (path.mkdir, lambda: os.mkfifo(path), lambda: path.symlink_to("nowhere"), lambda: path.write_bytes(bytes(1 << 21)))
    for make in makers:
        make()
        with pytest.raises(InputError, match=r"inputs\.json: no file, or one too large"):
            find_cases(tmp_path)
        path.rmdir() if path.is_dir() else path.unlink()


@pytest.mark.parametrize("place", ["../images/ct", "images/../images/ct", "images/ct/../../../etc"])
def test_inputs_json_leads_to_no_folder_but_the_known_ones(tmp_path: Path, place: str) -> None:
    touch(tmp_path, "images/ct/a.mha", "images/lung-mask/a.mha")
    (tmp_path / "inputs.json").write_text(json.dumps([interface("interface", "ct", place)]))
    with pytest.raises(InputError, match="there is no CT"):
        find_cases(tmp_path)


def test_a_folder_of_slices_named_by_their_identifiers_is_a_series(tmp_path: Path) -> None:
    touch(tmp_path, "images/ct/1.2.840.10008.1", "images/ct/1.2.840.10008.2", "images/lung-mask/m.mha")
    assert find_cases(tmp_path)[0].ct == tmp_path / "images/ct"


def test_a_name_that_leaves_no_room_for_a_suffix_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, f"images/ct/{'n' * 255}/1.dcm", "images/lung-mask/m.mha")
    (case,) = find_cases(tmp_path)
    with pytest.raises(InputError, match="the name is too long to name results after; expected at most 250 bytes"):
        _ = case.files
    OutputFolder(tmp_path / "out").discard(case.entity)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["images/lung-mask/a.mha"], "images/ct: there is no CT"),
        (["images/ct/a.txt", "images/lung-mask/a.mha"], "images/ct: there is no CT"),
        (["images/ct/a.mha"], "there is no lung mask"),
        (["images/ct/a.mha", "images/ct/b.mha", "images/lung-mask/c.mha"], "2 CTs and 1 masks, no two of one name"),
        (
            ["images/ct/A.mha", "images/ct/b.mha", "images/lung-mask/a.mha"],
            "2 CTs and 1 masks, no two of one name; expected pairs of equal names, upper and lower case included",
        ),
        (
            ["images/ct/a.mha", "images/ct/a.nrrd", "images/lung-mask/a.mha"],
            "two CTs have the same name, images/ct/a.mha and images/ct/a.nrrd",
        ),
        (
            ["images/ct/a.mha", "images/lung-mask/a.mha", "images/lung-mask/a.nii"],
            "two masks have the same name, images/lung-mask/a.mha and images/lung-mask/a.nii",
        ),
        (["images/ct/a.mha", "images/lung-mask/b.mha", "images/lung-mask/b.nii"], "two masks have the same name"),
    ],
)
def test_what_cannot_be_paired_is_refused(tmp_path: Path, files: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_cases(touch(tmp_path, *files))


@pytest.mark.parametrize(
    ("name", "stem"), [("a.mha", "a"), ("a.b.nii.gz", "a.b"), ("A.NII", "A"), ("series", "series"), ("x.dcm", "x.dcm")]
)
def test_stems(name: str, stem: str) -> None:
    assert stem_of(Path("/somewhere") / name) == stem


def test_a_linked_file_is_called_by_its_link(tmp_path: Path) -> None:
    touch(tmp_path, "store/0f3e9a.mha")
    (tmp_path / "patient.mha").symlink_to(tmp_path / "store/0f3e9a.mha")
    assert stem_of(tmp_path / "patient.mha") == "patient"


def test_files_of_one_block_appear_together_or_not_at_all(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(np.zeros((2, 2, 2), np.uint8))
    outputs = OutputFolder(tmp_path / "out")

    def stop_half_way() -> None:
        with outputs:
            outputs.write_maps("a", {"centrilobular": image, "paraseptal": image})
            outputs.write_score("centrilobular", SubtypeScore(1, "trace", 1.5))
            assert not (tmp_path / "out" / "centrilobular-emphysema-score.json").exists()
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        stop_half_way()
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []
    with outputs:
        outputs.write_score("paraseptal", SubtypeScore(0, "absent", None))
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert [path.name for path in written] == ["paraseptal-emphysema-score.json"]
    assert json.loads(written[0].read_text()) == {"score": 0, "severity": "absent", "percentage": None}


def test_an_earlier_runs_results_are_not_left_behind(tmp_path: Path) -> None:
    with OutputFolder(tmp_path) as outputs:
        outputs.write_results([])
        outputs.write_score("paraseptal", SubtypeScore(0, "absent", 0.0))
        outputs.write_preview("a", b"png")
        outputs.write_preview("b", b"png")
    outputs.close()
    again = OutputFolder(tmp_path)
    again.discard("a")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["b.png"]


def test_an_output_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "file")
    with pytest.raises(InputError, match="the output folder cannot be written"):
        OutputFolder(tmp_path / "file" / "out")
