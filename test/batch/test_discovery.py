"""Which scans a tree or a list holds; files are empty where nothing reads them."""

from __future__ import annotations

import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pydicom
import pytest
import SimpleITK as sitk
from pyarrow import parquet

from model.batch import series
from model.batch.cases import NO_MASK, CohortCase, Listing, entity_of, shard_of
from model.batch.discovery import find_cohort, read_list
from model.cohort.layout import ct_path, lung_mask_path, truth_path
from model.errors import InputError
from model.imaging.dicom import Tags, read_identity, read_series
from test.imaging.series import write_dicom_series


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def pairs(listing: Listing) -> dict[str, tuple[str, str | None]]:
    return {case.entity: (case.ct.name, case.lung_mask.name if case.lung_mask else None) for case in listing.cases}


def reasons(listing: Listing, root: Path) -> dict[str, str]:
    return {str(other.path.relative_to(root)): other.reason for other in listing.left_out}


def test_files_pair_by_name_and_ending_in_any_depth(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "a.nii.gz",
        "a_mask.nii.gz",
        "b_ct.mha",
        "b_lung.nrrd",
        "c-CT.nii",
        "c-lung-mask.nii",
        "d.mhd",
        "d.raw",
        "d_seg.mhd",
        "e_ct.mha",
        "e_ct_mask.mha",
    )
    touch(tmp_path, "p1/ct.nii.gz", "p1/mask.nii.gz", "p1/late/scan.mha", "p1/late/scan_lungs.mha", ".hidden.mha", "notes.txt")
    listing = find_cohort(tmp_path, segment_lungs=False)
    assert pairs(listing) == {
        "a": ("a.nii.gz", "a_mask.nii.gz"),
        "b": ("b_ct.mha", "b_lung.nrrd"),
        "c": ("c-CT.nii", "c-lung-mask.nii"),
        "d": ("d.mhd", "d_seg.mhd"),
        "e": ("e_ct.mha", "e_ct_mask.mha"),
        "p1": ("ct.nii.gz", "mask.nii.gz"),
        "p1_late_scan": ("scan.mha", "scan_lungs.mha"),
    }
    assert listing.left_out == ()


@pytest.mark.parametrize("ending", ["lobes", "Lobes", "lung_lobes", "pulmonary-lobes", "lobes_mask", "lobe-mask"])
def test_a_mask_that_is_named_after_lobes_is_a_mask_of_lobes(tmp_path: Path, ending: str) -> None:
    touch(tmp_path, "a.nii.gz", f"a_{ending}.nii.gz", "p/ct.mha", f"p/{ending}.mha", "b.mha", f"b_{ending}.mha", "b_lung.mha")
    listing = find_cohort(tmp_path, segment_lungs=True)
    assert [(case.entity, case.lung_mask and case.lung_mask.name, case.lobes) for case in listing.cases] == [
        ("a", f"a_{ending}.nii.gz", True),
        ("b", "b_lung.mha", False),
        ("p", f"{ending}.mha", True),
    ]
    assert reasons(listing, tmp_path) == {f"b_{ending}.mha": "b_lung.mha is the CT's mask"}


def test_a_mask_of_lobes_beside_a_series_belongs_to_it(pacs: Path, tmp_path: Path) -> None:
    shutil.copytree(pacs / "alone/study/3", tmp_path / "3")
    touch(tmp_path, "3_lobes.nii.gz")
    (case,) = find_cohort(tmp_path, segment_lungs=False).cases
    assert case == CohortCase("3", tmp_path / "3", tmp_path / "3_lobes.nii.gz", lobes=True)


def test_a_series_in_a_folder_that_is_named_ct_has_the_mask_beside_it(pacs: Path, tmp_path: Path) -> None:
    for folder, mask in (("p/CT", "p/CT_mask"), ("q/CT", "q/mask"), ("r/late_ct", "r/late_ct_mask"), ("s/x-ct", "s/x_mask")):
        shutil.copytree(pacs / "alone/study/3", tmp_path / folder)
        for path in (tmp_path / folder).iterdir():
            header = pydicom.dcmread(path)
            header.SeriesInstanceUID = f"1.9.{ord(folder[0])}"
            header.save_as(path)
        touch(tmp_path, f"{mask}.nii.gz")
    touch(tmp_path, "s/x.mha")  # the mask is its own
    found = pairs(find_cohort(tmp_path, segment_lungs=True))
    assert found == {
        "p_CT": ("CT", "CT_mask.nii.gz"),
        "q_CT": ("CT", "mask.nii.gz"),
        "r_late_ct": ("late_ct", "late_ct_mask.nii.gz"),
        "s_x": ("x.mha", "x_mask.nii.gz"),
        "s_x-ct": ("x-ct", None),
    }


def test_a_mask_belongs_to_the_series_of_its_name_and_not_to_that_of_another_ending(pacs: Path, tmp_path: Path) -> None:
    for number, folder in enumerate(("3", "3_ct")):
        shutil.copytree(pacs / "alone/study/3", tmp_path / folder)
        for path in (tmp_path / folder).iterdir():
            header = pydicom.dcmread(path)
            header.SeriesInstanceUID = f"1.9.{number}"
            header.save_as(path)
    touch(tmp_path, "3_mask.nii.gz")
    assert pairs(find_cohort(tmp_path, segment_lungs=True)) == {"3": ("3", "3_mask.nii.gz"), "3_ct": ("3_ct", None)}


def test_a_mask_beside_a_folder_with_several_series_belongs_to_none(pacs: Path, tmp_path: Path) -> None:
    shutil.copytree(pacs / "two", tmp_path / "two")
    touch(tmp_path, "two/study_mask.nii.gz")
    listing = find_cohort(tmp_path, segment_lungs=True)
    names = [case.entity for case in listing.cases]
    assert [case.lung_mask for case in listing.cases] == [None, None]
    assert reasons(listing, tmp_path) == {
        "two/study_mask.nii.gz": "several series have its name; a list of cases (CSV) can name it"
    }
    left = find_cohort(tmp_path, segment_lungs=False).left_out
    assert [other.reason for other in left if other.path.name == "study"] == [f"{NO_MASK} ({name})" for name in names]


def test_names_pair_however_their_accents_are_encoded(tmp_path: Path) -> None:
    ct, mask = (unicodedata.normalize(form, "M\u00fcller") for form in ("NFD", "NFC"))
    touch(tmp_path, f"{ct}.mha", f"{mask}_mask.mha")
    (case,) = find_cohort(tmp_path, segment_lungs=True).cases
    assert (case.entity, case.ct.name, case.lung_mask) == (ct, f"{ct}.mha", tmp_path / f"{mask}_mask.mha")


def test_what_has_no_pair_or_two_is_left_out_with_the_reason(tmp_path: Path) -> None:
    touch(tmp_path, "alone.mha", "x_lung.mha", "y.mha", "y_ct.mha", "z.mha", "z_mask.mha", "z_seg.mha", "z_lung.nii.gz")
    listing = find_cohort(tmp_path, segment_lungs=False)
    assert pairs(listing) == {"z": ("z.mha", "z_lung.nii.gz")}
    left = reasons(listing, tmp_path)
    assert left.keys() == {"alone.mha", "x_lung.mha", "y.mha", "y_ct.mha", "z_mask.mha", "z_seg.mha"}
    assert left["alone.mha"] == NO_MASK
    assert left["x_lung.mha"].startswith("named as a mask")
    assert left["y.mha"] == "several CTs have one name (y.mha, y_ct.mha)"
    assert left["z_seg.mha"] == "z_lung.nii.gz is the CT's mask"
    assert pairs(find_cohort(tmp_path, segment_lungs=True)).keys() == {"alone", "z"}


def test_platform_folders_and_simulated_cases_are_taken_whole_and_outputs_are_not(tmp_path: Path) -> None:
    for entity in ("simulated-7-00000", "simulated-7-00001"):
        case = tmp_path / "cohort" / entity
        touch(tmp_path, *(str(path.relative_to(tmp_path)) for path in (ct_path(case, entity), lung_mask_path(case, entity))))
        touch(tmp_path, str(truth_path(case, "centrilobular").relative_to(tmp_path)))
    touch(
        tmp_path, "job/images/ct/7d1a.mha", "job/images/pulmonary-lobes/9fff.mha", "job/late/b.mha", "job/c.nii", "job/log.txt"
    )
    (tmp_path / "job/itself").symlink_to("itself")
    touch(
        tmp_path, "many/images/ct/a.mha", "many/images/ct/b.mha", "many/images/lung-mask/a.mha", "many/images/lung-mask/b.mha"
    )
    touch(tmp_path, "many/images/lung-mask/c.mha", "many/images/lungs/a.mha")
    touch(tmp_path, "former/images/centrilobular-emphysema-heatmap/a.mha", "out/cohort.csv", "out/cases/a/a.mha")
    listing = find_cohort(tmp_path, segment_lungs=False)
    assert {case.entity: case.lobes for case in listing.cases} == {
        "simulated-7-00000": False,
        "simulated-7-00001": False,
        "job": True,
        "many_a": False,
        "many_b": False,
    }
    beside = "beside images/ct, which is scored alone; a list of cases (CSV) can name it"
    left = reasons(listing, tmp_path)
    assert left.pop("job/itself").startswith("it cannot be read (")
    assert left == {
        "former": "an output folder of this software",
        "out": "an output folder of this software",
        "job/late": beside,
        "job/c.nii": beside,
        "many/images/lung-mask/c.mha": "a mask that no CT uses",
        "many/images/lungs/a.mha": "a mask that no CT uses",
    }


def test_a_simulated_cohort_keeps_the_names_of_its_reference(tmp_path: Path) -> None:
    touch(tmp_path, *(f"sim-{k}/images/{kind}/sim-{k}.mha" for k in range(2) for kind in ("ct", "lung-mask")), "reference.csv")
    assert [case.entity for case in find_cohort(tmp_path, segment_lungs=False).cases] == ["sim-0", "sim-1"]


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a PACS exports: a scan and a localiser in one folder, a scan in two, and series that are none."""
    root = tmp_path_factory.mktemp("pacs")
    image = sitk.GetImageFromArray(np.zeros((12, 4, 4), np.int16))

    def series(folder: str, uid: str, depth: int = 12, **tags: str) -> None:
        values = {
            "0020|000e": uid,
            "0008|0008": tags.get("kind", "ORIGINAL\\PRIMARY\\AXIAL"),
            "0008|0060": tags.get("modality", "CT"),
        }
        written = write_dicom_series(image[:, :, :depth], root / "written", tags=lambda _: values)
        (root / folder).mkdir(parents=True, exist_ok=True)
        for path in written.iterdir():
            path.rename(root / folder / f"{uid}.{path.stem}{tags.get('suffix', '.dcm')}")
        written.rmdir()

    series("mixed/study", "1.2.1")
    series("mixed/study", "1.2.2", depth=2, kind="ORIGINAL\\PRIMARY\\LOCALIZER")
    series("alone/study/3", "1.3.1", suffix="")
    series("two/study", "1.4.1")
    series("two/study", "1.4.2")
    series("no/mpr", "1.5.1", kind="DERIVED\\SECONDARY\\REFORMATTED")
    series("no/mr", "1.5.2", modality="MR")
    series("no/short", "1.5.3", depth=3)
    (root / "no/short/broken.dcm").write_bytes(b"DICM")
    touch(root, "alone/study/3_mask.nii.gz", "alone/DICOMDIR")
    return root


def test_dicom_series_are_told_apart_by_their_uid(pacs: Path, tmp_path: Path) -> None:
    listing = find_cohort(pacs, segment_lungs=True)
    by_name = {case.entity: case for case in listing.cases}
    assert len(by_name) == 4
    assert by_name["alone_study_3"] == CohortCase("alone_study_3", pacs / "alone/study/3", pacs / "alone/study/3_mask.nii.gz")
    assert {path.name[:5] for path in by_name["mixed_study"].series} == {"1.2.1"}
    two = [case for name, case in by_name.items() if name.startswith("two_study-")]
    assert [{path.name[:5] for path in case.series} for case in two] in ([{"1.4.1"}, {"1.4.2"}], [{"1.4.2"}, {"1.4.1"}])
    linked = by_name["mixed_study"].with_one_folder(tmp_path)
    assert linked.ct == tmp_path / "series/mixed_study"
    assert [path.resolve() for path in sorted(linked.ct.iterdir())] == [
        path.resolve() for path in by_name["mixed_study"].series
    ]
    assert by_name["mixed_study"].with_one_folder(tmp_path) == linked


@pytest.mark.parametrize("name", ["{}.dicom", "{}.DICOM", "{}.dic", "{}.img", "{}.CT", "1.2.840.{}.x", "{}.dcm_", "{}.dc3"])
def test_a_series_is_found_whatever_its_files_are_called(pacs: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "a").mkdir()
    for number, path in enumerate(sorted((pacs / "alone/study/3").iterdir())):
        shutil.copy(path, tmp_path / "a" / name.format(number))
    assert find_cohort(tmp_path, segment_lungs=True) == Listing((CohortCase("a", tmp_path / "a"),))


def test_files_of_other_known_types_are_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.mha", "a.json", "b.nii.gz", "c.hdr", "c.img", "d.CSV", "e.png", "f.zip", "g.raw", "DICOMDIR")
    touch(tmp_path, "alone.img", "x.weights")
    (tmp_path / "1.2.840.7").write_bytes(b"no slice")
    opened: list[str] = []
    monkeypatch.setattr(series, "read_identity", lambda path: opened.append(path.name))
    assert find_cohort(tmp_path, segment_lungs=True).left_out == ()
    assert sorted(opened) == ["1.2.840.7", "alone.img", "x.weights"]


def test_a_series_may_lie_in_the_input_folder_itself(pacs: Path, tmp_path: Path) -> None:
    root = shutil.copytree(pacs / "alone/study/3", tmp_path / "flat")
    touch(root, "p1/a.mha")
    listing = find_cohort(root, segment_lungs=True)
    assert {case.entity: case.ct.name for case in listing.cases} == {"flat": "flat", "p1_a": "a.mha"}


def test_a_series_of_two_folders_has_its_own_files_alone(pacs: Path, tmp_path: Path) -> None:
    first = shutil.copytree(pacs / "alone/study/3", tmp_path / "in/1")
    (tmp_path / "in/2").mkdir()
    for path in sorted(first.iterdir())[6:]:
        path.rename(tmp_path / "in/2" / path.name)
    touch(tmp_path, "in/1/README")
    (case,) = find_cohort(tmp_path / "in", segment_lungs=True).cases
    assert len(case.series) == 12
    assert not [path for path in case.series if path.name == "README"]


def test_a_series_that_may_lack_a_damaged_file_is_left_out(pacs: Path, tmp_path: Path) -> None:
    """Of two series in one folder; where there is one alone, reading the folder fails."""
    root = shutil.copytree(pacs / "two", tmp_path / "two")
    (root / "study/1.4.1.0011.dcm").write_bytes(b"damaged")
    listing = find_cohort(root, segment_lungs=True)
    assert listing.cases == ()
    assert "1.4.1.0011.dcm, which may belong to it, cannot be used" in str(listing.left_out)


@pytest.mark.parametrize("beside", ["a copy", "another folder"])
def test_a_series_that_is_read_by_a_list_of_its_files_is_left_out_if_one_beside_them_is_damaged(
    tmp_path: Path, beside: str
) -> None:
    image = sitk.GetImageFromArray(np.zeros((24, 4, 4), np.int16))
    folder = write_dicom_series(image, tmp_path / "in/a", tags=lambda _: {"0008|0008": "ORIGINAL\\PRIMARY\\AXIAL"})
    (folder / "0023.dcm").write_bytes((folder / "0023.dcm").read_bytes()[:200])
    assert find_cohort(tmp_path / "in", segment_lungs=True).cases == (CohortCase("a", folder),)  # and reading it fails
    if beside == "a copy":
        shutil.copy(folder / "0003.dcm", folder / "copy.dcm")
    else:
        (tmp_path / "in/b").mkdir()
        (folder / "0022.dcm").rename(tmp_path / "in/b/0022.dcm")
    listing = find_cohort(tmp_path / "in", segment_lungs=True)
    assert listing.cases == ()
    assert "0023.dcm, which may belong to it, cannot be used" in str(listing.left_out)


def test_a_copy_of_a_series_is_left_out_in_one_line(pacs: Path, tmp_path: Path) -> None:
    root = tmp_path / "in"
    for folder in ("a", "backup/b"):
        shutil.copytree(pacs / "alone/study/3", root / folder)
    listing = find_cohort(root, segment_lungs=True)
    assert listing.cases == (CohortCase("a", root / "a"),)
    assert reasons(listing, root) == {"backup/b": f"a copy of {root / 'a'} (12 files)"}


def test_slices_that_two_folders_of_a_series_share_are_taken_once(pacs: Path, tmp_path: Path) -> None:
    root = tmp_path / "in"
    first, second = (shutil.copytree(pacs / "alone/study/3", root / name) for name in "ab")
    for path in sorted(first.iterdir())[8:] + sorted(second.iterdir())[:4]:
        path.unlink()
    listing = find_cohort(root, segment_lungs=True)
    (case,) = listing.cases
    assert [path.parent.name for path in case.series] == ["a"] * 8 + ["b"] * 4
    assert len({path.name for path in case.series}) == 12
    assert reasons(listing, root) == {"b": f"a copy of {first} (4 files)"}


def test_copies_in_one_folder_are_left_out_in_one_line(pacs: Path, tmp_path: Path) -> None:
    root = shutil.copytree(pacs / "alone/study/3", tmp_path / "in/3").parent
    for path in sorted((root / "3").iterdir())[:5]:
        shutil.copy(path, path.with_name(f"{path.name}.dcm"))
    listing = find_cohort(root, segment_lungs=True)
    (case,) = listing.cases
    assert len(case.series) == 12
    assert reasons(listing, root) == {"3": "copies of other files in it (5 files)"}


def test_an_instance_uid_that_all_slices_have_makes_them_no_copies(tmp_path: Path) -> None:
    """As some anonymisation leaves them."""
    image = sitk.GetImageFromArray(np.zeros((12, 4, 4), np.int16))
    write_dicom_series(image, tmp_path / "a", tags=lambda _: {"0008|0018": "1.2.3", "0020|000e": "1.2"})
    listing = find_cohort(tmp_path, segment_lungs=True)
    assert listing == Listing((CohortCase("a", tmp_path / "a"),))


@pytest.mark.parametrize("in_first", [12, 20])
def test_an_instance_uid_that_all_slices_have_makes_no_folder_a_copy_of_another(tmp_path: Path, in_first: int) -> None:
    image = sitk.GetImageFromArray(np.zeros((24, 4, 4), np.int16))
    first = write_dicom_series(image, tmp_path / "in/a", tags=lambda _: {"0008|0018": "1.2.3", "0020|000e": "1.2"})
    (tmp_path / "in/b").mkdir()
    for path in sorted(first.iterdir())[in_first:]:
        path.rename(tmp_path / "in/b" / path.name)
    listing = find_cohort(tmp_path / "in", segment_lungs=True)
    (case,) = listing.cases
    assert len(case.series) == 24
    assert listing.left_out == ()


def test_each_header_is_read_once_where_a_series_lies_in_many_folders(
    pacs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in (pacs / "alone/study/3").iterdir():
        (tmp_path / "in" / path.name).mkdir(parents=True)
        shutil.copy(path, tmp_path / "in" / path.name)
    read: list[Path] = []

    def counted(path: Path) -> Tags | None:
        read.append(path)
        return read_identity(path)

    monkeypatch.setattr(series, "read_identity", counted)
    (case,) = find_cohort(tmp_path / "in", segment_lungs=True).cases
    assert len(case.series) == 12
    assert sorted(read) == sorted(case.series)


def test_many_files_that_cannot_be_read_are_one_line(tmp_path: Path) -> None:
    touch(tmp_path, *(f"a/{k:02d}.dcm" for k in range(40)), "b/1.dcm")
    (tmp_path / "a/50.dcm").write_bytes(bytes(128) + b"DICMx")
    damaged = "not a DICOM file, or its beginning is damaged"
    assert reasons(find_cohort(tmp_path, segment_lungs=True), tmp_path) == {
        "a": f"{damaged} (40 files, such as 00.dcm)",
        "a/50.dcm": "the file is damaged or cut off",
        "b/1.dcm": damaged,
    }


def test_a_series_with_a_blank_file_is_not_scored_in_part(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(np.zeros((12, 4, 4), np.int16))
    for path in sorted(write_dicom_series(image, tmp_path / "a").iterdir()):
        path.rename(path.with_name(f"IM{path.stem}"))
    (tmp_path / "a" / "IM0011").write_bytes(b"")
    touch(tmp_path, "a/README", "b/1.nii", "b/done")
    listing = find_cohort(tmp_path, segment_lungs=True)
    assert reasons(listing, tmp_path) == {"a/IM0011": "empty, or its beginning is damaged"}
    assert [case.entity for case in listing.cases] == ["a", "b_1"]
    with pytest.raises(InputError, match="IM0011: empty"):
        read_series(listing.cases[0].ct)


def test_series_that_are_no_scans_are_left_out_with_the_reason(pacs: Path) -> None:
    left = reasons(find_cohort(pacs, segment_lungs=True), pacs)
    assert left == {
        "mixed/study": f"a localiser (2 files, series {series.digest_of('1.2.2')})",
        "no/mpr": "a derived series (DERIVED/SECONDARY/REFORMATTED); a list of cases (CSV) can name it (12 files)",
        "no/mr": "the modality is MR, not CT (12 files)",
        "no/short": "3 slices; expected 10 or more (3 files)",
        "no/short/broken.dcm": "not a DICOM file, or its beginning is damaged",
    }


@pytest.mark.parametrize("modality", ["ct", "CT\\OT"])
def test_a_modality_that_is_read_as_ct_is_scored(tmp_path: Path, modality: str) -> None:
    image = sitk.GetImageFromArray(np.zeros((12, 4, 4), np.int16))
    write_dicom_series(image, tmp_path / "a", tags=lambda _: {"0008|0060": modality})
    assert find_cohort(tmp_path, segment_lungs=True).cases == (CohortCase("a", tmp_path / "a"),)


def test_a_list_names_cases_by_paths_relative_to_it(tmp_path: Path) -> None:
    rows = [("", "a.mha", "a_m.mha"), ("", "sub/b_ct.nii.gz", ""), ("third", "c", "pulmonary-lobes/c.mha")]
    columns = zip(*rows, strict=True)
    names = ("entity", "ct", "lung_mask")
    table = {name: [cell or None for cell in column] for name, column in zip(names, columns, strict=True)}
    parquet.write_table(pa.table(table), tmp_path / "list.parquet")
    (tmp_path / "list.csv").write_text("\n".join(",".join(row) for row in (names, *rows)) + "\n")
    expected = [
        CohortCase("a", tmp_path / "a.mha", tmp_path / "a_m.mha"),
        CohortCase("b", tmp_path / "sub/b_ct.nii.gz", None),
        CohortCase("third", tmp_path / "c", tmp_path / "pulmonary-lobes/c.mha", lobes=True),
    ]
    assert read_list(tmp_path / "list.csv") == expected
    assert read_list(tmp_path / "list.parquet") == expected


def test_a_list_is_refused_with_all_of_its_bad_rows(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("entity,ct,lobes\na,a.mha,\na,b.mha,\n../c,c.mha,\nd,,\ne,e.mha,maybe\n")
    with pytest.raises(InputError) as error:
        find_cohort(tmp_path / "list.csv", segment_lungs=True)
    for part in ("4 rows", "duplicate entity a", "'../c' cannot be a file name", "row 5: no ct", "lobes 'maybe'"):
        assert part in str(error.value)


def test_a_quote_that_is_not_closed_swallows_no_row(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text('entity,ct\na,a.mha\n"b,b.mha\nc,c.mha\n')
    with pytest.raises(InputError, match=r"list\.csv: not a table \(line \d: unexpected end of data\)"):
        read_list(path)
    path.write_text('entity,ct\na,a.mha\n"b,b.mha\nc,c.mha\nd","d.mha"\n')
    with pytest.raises(InputError, match=r"a name of several lines; is a quote not closed\?"):
        read_list(path)


@pytest.mark.parametrize("name", ["missing", "scan.mha"])
def test_an_input_that_is_neither_tree_nor_list_is_refused(tmp_path: Path, name: str) -> None:
    touch(tmp_path, "scan.mha")
    with pytest.raises(InputError, match="expected a folder of scans"):
        find_cohort(tmp_path / name, segment_lungs=True)


def test_of_two_cases_with_one_name_the_first_is_kept(tmp_path: Path) -> None:
    touch(tmp_path, "a_b.mha", "a_b_mask.mha", "a/b.mha", "a/b_mask.mha")
    listing = find_cohort(tmp_path, segment_lungs=False)
    assert [case.ct.name for case in listing.cases] == ["b.mha"]
    assert "has the same name, a_b" in reasons(listing, tmp_path)["a_b.mha"]


def test_links_in_a_circle_and_folders_that_cannot_be_read_end_no_search(tmp_path: Path) -> None:
    touch(tmp_path, "in/a.mha")
    (tmp_path / "in/again").symlink_to(tmp_path)
    (tmp_path / "in/itself").symlink_to("itself")
    (tmp_path / "in/gone.mha").symlink_to(tmp_path / "unmounted/gone.mha")
    listing = find_cohort(tmp_path, segment_lungs=True)
    assert [case.entity for case in listing.cases] == ["in_a"]
    left = reasons(listing, tmp_path)
    assert left.keys() == {"in/itself", "in/gone.mha"}
    assert left["in/gone.mha"] == "a link that leads nowhere"


def test_each_case_is_in_one_shard_whatever_other_cases_there_are() -> None:
    cases = tuple(CohortCase(f"case-{k:03d}", Path(f"{k}.mha")) for k in range(200))
    shards = [Listing(cases).shard(number, 7).cases for number in range(1, 8)]
    assert sorted(case.entity for shard in shards for case in shard) == [case.entity for case in cases]
    assert Listing(cases[::2]).shard(3, 7).cases == tuple(case for case in shards[2] if case in cases[::2])
    assert all(len(shard) > 10 for shard in shards)


def test_the_shard_of_a_case_stays_what_it_is_in_other_versions() -> None:
    """`printf case-000 | sha256sum` begins with 73237ba7856b0058, which is 3 modulo 7."""
    assert shard_of("case-000", 7) == 4


def test_a_name_too_long_for_files_is_cut_and_stays_unlike_others() -> None:
    one, other = entity_of(["x" * 300, "a"]), entity_of(["x" * 300, "b"])
    assert one != other
    assert len(one.encode()) == 250
