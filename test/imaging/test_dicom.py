"""DICOM series: what the library's reader accepts without an error is refused or reported."""

from __future__ import annotations

import itertools
import logging
import os
import struct
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from model.container.grand_challenge import Case
from model.container.reading import read_case
from model.errors import InputError
from model.imaging.dicom import IMAGE_TYPE, check_slices, is_localiser, is_slice, read_series, read_tags
from model.imaging.geometry import ImageGeometry
from model.imaging.readers import read_header, read_volume
from model.imaging.scan import Scan
from test.imaging.series import ENHANCED_CT, item, locale_kept, write_dicom_series, write_enhanced_ct
from test.phantom import Phantom

POSITION, ORIENTATION, PIXEL_SPACING, INTERCEPT, SLOPE = "0020|0032", "0020|0037", "0028|0030", "0028|1052", "0028|1053"


def slices(count: int = 5, *, aside_mm: float = 0.0) -> list[dict[str, str]]:
    """Tags of slices 2 mm apart, each shifted by `aside_mm` towards the back, as gantry tilt does."""
    return [
        {
            "0010|0020": "4711",
            "0020|000d": "1.2.3",
            "0020|0052": "1.2.4",
            POSITION: f"-150\\{-120 + aside_mm * index}\\{2 * index}",
            ORIENTATION: "1\\0\\0\\0\\1\\0",
            PIXEL_SPACING: "0.7\\0.7",
            INTERCEPT: "-1024",
            SLOPE: "1",
        }
        for index in range(count)
    ]


def test_evenly_spaced_slices_of_one_scan_pass() -> None:
    assert check_slices(Path("series"), slices()) == []
    plain = [{tag: section[tag] for tag in (POSITION, ORIENTATION, PIXEL_SPACING)} for section in slices()]
    assert check_slices(Path("series"), plain) == []


@pytest.mark.parametrize(
    ("tag", "value", "message"),
    [
        ("0010|0020", "4712", "slices of more than one patient"),
        ("0020|000d", "1.2.9", "slices of more than one study"),
        ("0020|0052", "1.2.9", "slices of more than one frame of reference"),
        (PIXEL_SPACING, "0.8\\0.8", "slices that differ in their pixel spacing"),
        (SLOPE, "2", "slices that differ in their rescale slope"),
        (INTERCEPT, "-1000", "slices that differ in their rescale intercept"),
        (ORIENTATION, "0\\1\\0\\1\\0\\0", "slices that differ in their orientation"),
        (PIXEL_SPACING, "", "slices whose pixel spacing is missing or cannot be read"),
        (PIXEL_SPACING, "0.7", "slices whose pixel spacing is missing or cannot be read"),
        (SLOPE, "one", "slices whose rescale slope is missing or cannot be read"),
        (INTERCEPT, "nan", "slices whose rescale intercept is missing or cannot be read"),
        (ORIENTATION, "", "slices whose orientation is missing or cannot be read"),
        (POSITION, "0\\0", "slices whose position is missing or cannot be read"),
        (POSITION, "-150\\-120\\5", r"slice distances from 1\.00 to 3\.00 mm; expected evenly spaced slices"),
    ],
)
def test_a_slice_of_another_scan_or_without_a_position_is_refused(tag: str, value: str, message: str) -> None:
    odd = slices()
    odd[2][tag] = value
    with pytest.raises(InputError, match=f"^series: {message}") as refused:
        check_slices(Path("series"), odd)
    assert "4711" not in str(refused.value)
    assert "4712" not in str(refused.value)


@pytest.mark.parametrize(
    ("tag", "value", "message"),
    [
        (SLOPE, "0", "a rescale slope of 0"),
        (ORIENTATION, "1\\0\\0\\0.5\\0.8\\0", "an orientation whose axes are not at right angles"),
        (ORIENTATION, "0\\0\\0\\0\\0\\0", "an orientation whose axes are not at right angles"),
    ],
)
def test_invalid_tags_of_all_slices_are_refused(tag: str, value: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_slices(Path("series"), [section | {tag: value} for section in slices()])


@pytest.mark.parametrize(("text", "thickness"), [("2.5", 2.5), ("", None), ("thin", None), ("-1", None), ("nan", None)])
def test_the_slice_thickness_comes_with_the_series(
    phantom: Phantom, tmp_path: Path, text: str, thickness: float | None
) -> None:
    folder = write_dicom_series(phantom.images()[0][:, :, :3], tmp_path / "series", tags=lambda _: {"0018|0050": text})
    assert read_volume(folder).slice_thickness_mm == thickness


def test_gantry_tilt_is_reported_with_its_angle() -> None:
    (warning,) = check_slices(Path("series"), slices(aside_mm=2 * np.tan(np.deg2rad(12))))
    assert "tilted by 12.0 degrees" in warning
    assert check_slices(Path("series"), slices(aside_mm=2 * np.tan(np.deg2rad(0.4)))) == []


@pytest.mark.parametrize("place", [0, 10, -1])
@pytest.mark.parametrize("share", [0, 0.02, 0.5])
def test_a_series_of_which_one_file_was_copied_in_part_is_refused(
    phantom: Phantom, tmp_path: Path, place: int, share: float
) -> None:
    """At either end of a series, only the file itself shows that a slice is missing."""
    folder = write_dicom_series(phantom.images()[0], tmp_path / "series")
    path = sorted(folder.iterdir())[place]
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match=r"\.dcm: (the file is damaged or cut off|not a DICOM file)"):
        read_header(folder)


@pytest.mark.parametrize("target", ["/dev/zero", "nowhere", "pipe"])
def test_devices_broken_links_and_pipes_are_refused_at_once(phantom: Phantom, tmp_path: Path, target: str) -> None:
    folder = write_dicom_series(phantom.images()[0], tmp_path / "series")
    if target == "pipe":
        os.mkfifo(folder / "0099.dcm")
    else:
        (folder / "0099.dcm").symlink_to(target)
    with pytest.raises(InputError, match=r"0099\.dcm: not a file, or a broken link"):
        read_header(folder)


@pytest.mark.parametrize("content", [b"", bytes(50), bytes(100_000)], ids=["empty", "shorter than a preamble", "zeros"])
def test_a_slice_without_a_suffix_that_an_interrupted_copy_left_blank_is_refused(
    phantom: Phantom, tmp_path: Path, content: bytes
) -> None:
    folder = write_dicom_series(phantom.images()[0], tmp_path / "series")
    for path in sorted(folder.iterdir()):
        path.rename(folder / f"IM{path.stem}")
    assert len(read_series(folder).files) == phantom.lungs.shape[0]
    (folder / "IM0000").write_bytes(content)
    with pytest.raises(InputError, match="IM0000: empty, or its beginning is damaged"):
        read_header(folder)


def test_a_series_of_which_a_part_lies_in_a_subfolder_is_refused(phantom: Phantom, tmp_path: Path) -> None:
    folder = write_dicom_series(phantom.images()[0], tmp_path / "series")
    other = write_dicom_series(phantom.images()[0][:, :, :3], folder / "dose", tags=lambda _: {"0020|000e": "1.2.3"})
    (other / "0000.dcm").write_bytes(bytes(128) + b"DICMx")
    assert len(read_series(folder).files) == phantom.lungs.shape[0], "another series beside it"
    (folder / "2" / "more").mkdir(parents=True)
    last = sorted(folder.glob("*.dcm"))[-1]
    last.rename(folder / "2" / "more" / last.name)
    with pytest.raises(
        InputError, match=rf"more/{last.name}: of the same series as the files in .*series; expected all slices"
    ):
        read_header(folder)


def test_files_that_are_no_slices_may_lie_in_the_folder(phantom: Phantom, tmp_path: Path) -> None:
    folder = write_dicom_series(phantom.images()[0], tmp_path / "series")
    for name in ("README", ".hidden.dcm", "notes.txt"):
        (folder / name).write_text("not a slice")
    (folder / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    assert len(read_series(folder).files) == phantom.lungs.shape[0]


def test_slices_named_by_their_identifiers_are_read(phantom: Phantom, tmp_path: Path) -> None:
    folder = write_dicom_series(phantom.images()[0], tmp_path / "series")
    for path in sorted(folder.iterdir()):
        path.rename(folder / f"1.2.840.113619.2.55.{int(path.stem)}")
    assert np.array_equal(sitk.GetArrayFromImage(read_volume(folder).image), phantom.hounsfield)


def test_a_file_is_a_slice_by_its_suffix_or_beginning_even_if_damaged(phantom: Phantom, tmp_path: Path) -> None:
    whole = (write_dicom_series(phantom.images()[0], tmp_path / "series") / "0000.dcm").read_bytes()
    for name, content, expected in (
        ("IM1", whole, True),
        ("IM2", whole[:200], True),
        ("text.dcm", b"no DICOM at all", True),
        ("slice.v2", whole, True),
        ("DICOMDIR", whole, False),
        ("LICENSE", b"no slice", False),
        ("empty", b"", False),
    ):
        (tmp_path / name).write_bytes(content)
        assert is_slice(tmp_path / name) == expected, name
        assert is_slice(tmp_path / name, unreadable=True) == expected, name
    assert not is_slice(tmp_path / "series")
    for name, may_be_one in (("IM3", True), ("notes.txt", False)):
        (tmp_path / name).symlink_to("/proc/self/mem")  # reading its beginning is an error of input and output
        assert not is_slice(tmp_path / name)
        assert is_slice(tmp_path / name, unreadable=True) == may_be_one


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("ORIGINAL\\PRIMARY\\LOCALIZER", True),
        ("ORIGINAL\\PRIMARY\\ scout ", True),
        ("DERIVED\\SECONDARY\\AXIAL\\Topogram", True),
        ("ORIGINAL\\PRIMARY\\AXIAL", False),
        ("", False),
    ],
)
def test_a_localiser_is_recognised_by_its_image_type(phantom: Phantom, tmp_path: Path, kind: str, expected: bool) -> None:
    folder = write_dicom_series(phantom.images()[0], tmp_path / "series", tags=lambda _: {IMAGE_TYPE: kind})
    tags = read_tags(folder / "0000.dcm")
    assert tags is not None
    assert is_localiser(tags) == expected


def with_sequences(data_set: pydicom.Dataset, *, undefined: bool) -> None:
    """Add sequences in sequences, of known or of undefined length, and an element of an unknown type."""
    inner = pydicom.Dataset()
    inner.PatientID = "in the depth"
    inner.ImagePositionPatient = [9, 9, 9]
    middle = pydicom.Dataset()
    middle.ReferencedImageSequence = [inner, pydicom.Dataset()]
    middle["ReferencedImageSequence"].is_undefined_length = undefined
    middle.is_undefined_length_sequence_item = undefined
    data_set.RequestAttributesSequence = [middle, middle]
    data_set["RequestAttributesSequence"].is_undefined_length = undefined
    data_set.add_new(0x00091001, "UN", b"private")


SYNTAXES = ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.5"]


@pytest.mark.parametrize("undefined", [False, True])
@pytest.mark.parametrize("syntax", SYNTAXES, ids=["implicit", "explicit", "big endian", "compressed"])
def test_every_encoding_is_parsed_and_read(phantom: Phantom, tmp_path: Path, syntax: str, undefined: bool) -> None:
    folder = write_dicom_series(phantom.images()[0], tmp_path / "series", tags=lambda _: {"0010|0020": "4711"})
    for path in folder.iterdir():
        data_set = pydicom.dcmread(path)
        with_sequences(data_set, undefined=undefined)
        if syntax == "1.2.840.10008.1.2.5":
            data_set.compress(syntax)
            pydicom.dcmwrite(path, data_set)
            continue
        if syntax == SYNTAXES[2]:
            data_set.PixelData = data_set.pixel_array.astype(">i2").tobytes()
        data_set.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
        pydicom.dcmwrite(path, data_set, implicit_vr=syntax == SYNTAXES[0], little_endian=syntax != SYNTAXES[2])
    tags = read_tags(folder / "0003.dcm")
    assert tags is not None
    assert tags["0010|0020"] == "4711"
    assert [float(part) for part in tags[POSITION].split("\\")] == [-150, -120, 715]
    assert np.array_equal(sitk.GetArrayFromImage(read_volume(folder).image), phantom.hounsfield)


@pytest.mark.parametrize("length", [2**31, 2**32 - 2, 10**6])
def test_an_element_that_claims_to_be_longer_than_its_file_is_refused_at_once(
    phantom: Phantom, tmp_path: Path, length: int
) -> None:
    """The library's reader was observed to allocate that much."""
    folder = write_dicom_series(phantom.images()[0], tmp_path / "series")
    path = folder / "0004.dcm"
    data = path.read_bytes()
    place = data.index(b"\xe0\x7f\x10\x00")
    path.write_bytes(data[:place] + struct.pack("<HH2s2xI", 0x9, 0x1001, b"OB", length) + data[place:])
    with pytest.raises(InputError, match=r"0004\.dcm: the file is damaged or cut off"):
        read_header(folder)
    with pytest.raises(InputError, match="the file is damaged or cut off"):
        read_header(path)


@pytest.mark.parametrize("tag", ["Rows", "Columns", "BitsAllocated", "NumberOfFrames"])
def test_a_file_with_fewer_pixels_than_it_states_is_refused(phantom: Phantom, tmp_path: Path, tag: str) -> None:
    """The library's reader was observed to fill them with uninitialised memory, or to allocate gigabytes."""
    folder = write_dicom_series(phantom.images()[0], tmp_path / "series")
    path = folder / "0004.dcm"
    data_set = pydicom.dcmread(path)
    assert read_tags(path) is not None
    setattr(data_set, tag, 2 * int(data_set.get(tag, 1)))
    pydicom.dcmwrite(path, data_set)
    with pytest.raises(InputError, match=r"0004\.dcm: the file is damaged or cut off"):
        read_header(folder)


def test_a_data_set_that_is_compressed_as_a_whole_is_refused(phantom: Phantom, tmp_path: Path) -> None:
    folder = write_dicom_series(phantom.images()[0], tmp_path / "series")
    path = folder / "0000.dcm"
    data_set = pydicom.dcmread(path)
    data_set.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    pydicom.dcmwrite(path, data_set)
    with pytest.raises(InputError, match=r"0000\.dcm: its data set is deflated, which is not read"):
        read_header(folder)


def test_deeply_nested_sequences_are_refused(tmp_path: Path) -> None:
    item = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF) + struct.pack("<HH2s2xI", 0x40, 0x275, b"SQ", 0xFFFFFFFF)
    meta = struct.pack("<HH2sH", 2, 0x10, b"UI", 20) + b"1.2.840.10008.1.2.1\0"
    start = struct.pack("<HH2s2xI", 0x40, 0x275, b"SQ", 0xFFFFFFFF)
    (tmp_path / "a.dcm").write_bytes(bytes(128) + b"DICM" + meta + start + item * 100_000)
    with pytest.raises(InputError, match="the file is damaged or cut off"):
        read_tags(tmp_path / "a.dcm")


@pytest.mark.parametrize("rescale", ["shared", "frame", "file"])
@pytest.mark.parametrize("sop_class", [ENHANCED_CT, "1.2.840.10008.5.1.4.1.1.2.2"], ids=["enhanced", "legacy converted"])
@pytest.mark.parametrize("headwards", [True, False])
def test_one_file_with_several_frames_is_read_as_the_same_slices(
    phantom: Phantom, tmp_path: Path, headwards: bool, sop_class: str, rescale: str
) -> None:
    ct, mask = phantom.with_lesion((160.0, 100.0, 80.0), 25.0)[0].images()
    order = range(ct.GetDepth())[:: 1 if headwards else -1]
    path = write_enhanced_ct(ct, tmp_path / "ct.dcm", order=order, sop_class=sop_class, rescale=rescale)
    volume = read_volume(path)
    expected = ct if headwards else ct[:, :, ::-1]
    assert np.array_equal(sitk.GetArrayFromImage(volume.image), sitk.GetArrayFromImage(expected))
    assert volume.geometry.same_grid(ImageGeometry.of(expected))
    assert volume.geometry.spacing == (4.0, 4.0, 5.0)
    assert volume.slice_thickness_mm == 2.5
    sitk.WriteImage(mask, str(tmp_path / "mask.mha"))
    assert np.array_equal(Scan.read(path, tmp_path / "mask.mha").hounsfield, sitk.GetArrayFromImage(ct))


@pytest.mark.parametrize("turned", ["PIR", "RSA"])
def test_frames_in_another_plane_lie_where_the_slices_do(phantom: Phantom, tmp_path: Path, turned: str) -> None:
    ct, _ = phantom.images(turned)
    write_enhanced_ct(ct, tmp_path / "one file/ct.dcm")
    volume = read_volume(tmp_path / "one file")
    assert volume.geometry.same_grid(ImageGeometry.of(ct))
    assert np.array_equal(sitk.GetArrayFromImage(volume.image), sitk.GetArrayFromImage(ct))


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ([*range(20), *range(21, 50)], r"slice distances from 5\.00 to 10\.00 mm; expected evenly spaced slices"),
        ([*range(20), 19, *range(20, 50)], r"slice distances from 0\.00 to 5\.00 mm; expected evenly spaced slices"),
        ([*range(10), *range(30, 50)], r"slice distances from 5\.00 to 105\.00 mm; expected evenly spaced slices"),
        ([*range(0, 50, 2), *range(1, 50, 2)], "frames that are not in the order of their positions; expected one stack"),
        ([*range(50), *range(50)], "frames that are not in the order of their positions; expected one stack"),
        ([place for place in range(50) for _ in range(2)], r"slice distances from 0\.00 to 5\.00 mm; expected evenly"),
    ],
    ids=["missing", "repeated", "gap", "odd and even", "two phases", "interleaved phases"],
)
def test_frames_that_are_no_whole_stack_in_order_are_refused(
    phantom: Phantom, tmp_path: Path, order: Sequence[int], message: str
) -> None:
    """The library's reader was observed to keep their order, with a spacing of 1 mm."""
    path = write_enhanced_ct(phantom.images()[0], tmp_path / "ct.dcm", order=order)
    for read in (read_header, read_volume):
        with pytest.raises(InputError, match=rf"ct\.dcm: {message}"):
            read(path)


def remove_the_groups_of_the_last_frame(data_set: pydicom.Dataset) -> None:
    data_set.PerFrameFunctionalGroupsSequence = data_set.PerFrameFunctionalGroupsSequence[:-1]


def remove_all_groups(data_set: pydicom.Dataset) -> None:
    del data_set.PerFrameFunctionalGroupsSequence, data_set.SharedFunctionalGroupsSequence
    data_set.ImagePositionPatient, data_set.ImageOrientationPatient = [0, 0, 0], [1, 0, 0, 0, 1, 0]
    data_set.PixelSpacing = [1, 1]


def add_a_second_stack(data_set: pydicom.Dataset) -> None:
    for number, groups in enumerate(data_set.PerFrameFunctionalGroupsSequence):
        groups.FrameContentSequence = [item(StackID=str(1 + number // 25))]


def turn_a_frame(data_set: pydicom.Dataset) -> None:
    orientation = [item(ImageOrientationPatient=[0, 1, 0, 1, 0, 0])]
    data_set.PerFrameFunctionalGroupsSequence[20].PlaneOrientationSequence = orientation


def rescale_a_frame(data_set: pydicom.Dataset) -> None:
    transformation = [item(RescaleSlope="2", RescaleIntercept="-1024")]
    data_set.PerFrameFunctionalGroupsSequence[20].PixelValueTransformationSequence = transformation


def rescale_all_frames_twice(data_set: pydicom.Dataset) -> None:
    """The library's reader applies what all frames share."""
    for groups in data_set.PerFrameFunctionalGroupsSequence:
        groups.PixelValueTransformationSequence = [item(RescaleSlope="2", RescaleIntercept="-1024")]


def enlarge_a_frame(data_set: pydicom.Dataset) -> None:
    data_set.PerFrameFunctionalGroupsSequence[20].PixelMeasuresSequence = [item(PixelSpacing=[5, 5])]


def remove_a_position(data_set: pydicom.Dataset) -> None:
    del data_set.PerFrameFunctionalGroupsSequence[20].PlanePositionSequence


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            remove_the_groups_of_the_last_frame,
            "several frames, and the positions of 49; expected one stack of frames, each with",
        ),
        (remove_all_groups, "several frames without their positions; expected one stack of frames, each with its position"),
        (add_a_second_stack, "frames of more than one stack; expected the frames of one stack"),
        (turn_a_frame, "slices that differ in their orientation"),
        (rescale_a_frame, "frames with another rescale slope or intercept than all frames share"),
        (rescale_all_frames_twice, "frames with another rescale slope or intercept than all frames share"),
        (enlarge_a_frame, "slices that differ in their pixel spacing"),
        (remove_a_position, "slices whose position is missing or cannot be read"),
    ],
)
def test_frames_that_differ_or_have_no_position_are_refused(
    phantom: Phantom, tmp_path: Path, change: Callable[[pydicom.Dataset], None], message: str
) -> None:
    path = write_enhanced_ct(phantom.images()[0], tmp_path / "ct.dcm", change=change)
    with pytest.raises(InputError, match=rf"ct\.dcm: {message}"):
        read_volume(path)


def test_frames_that_differ_in_their_own_slope_are_refused(phantom: Phantom, tmp_path: Path) -> None:
    """The library's reader was observed to apply that of the first frame to all."""
    path = write_enhanced_ct(phantom.images()[0], tmp_path / "ct.dcm", rescale="frame", change=rescale_a_frame)
    with pytest.raises(InputError, match=r"ct\.dcm: slices that differ in their rescale slope"):
        read_volume(path)


@pytest.mark.parametrize("rescale", ["shared", "frame"])
def test_slope_and_intercept_of_frames_that_would_not_be_applied_are_refused(
    phantom: Phantom, tmp_path: Path, rescale: str
) -> None:
    """The library's reader applies those of the frames in Enhanced CT only."""
    capture = "1.2.840.10008.5.1.4.1.1.7.3"
    ct, _ = phantom.images()
    path = write_enhanced_ct(ct, tmp_path / "ct.dcm", sop_class=capture, rescale=rescale)
    with pytest.raises(
        InputError, match=r"ct\.dcm: frames with a rescale slope or intercept of their own, which is not applied"
    ):
        read_volume(path)
    whole = read_volume(write_enhanced_ct(ct, tmp_path / "ct.dcm", sop_class=capture, rescale="file"))
    assert np.array_equal(sitk.GetArrayFromImage(whole.image), phantom.hounsfield)


@pytest.mark.parametrize("length", [0, 8])
def test_damaged_functional_groups_are_refused_without_a_word_of_them(
    phantom: Phantom, tmp_path: Path, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder, length: int
) -> None:
    """The name stands in a position; and in a sequence that is none, on which pydicom fails."""

    def damage(data_set: pydicom.Dataset) -> None:
        if length:
            data_set.PerFrameFunctionalGroupsSequence[20].PlanePositionSequence[0].ImagePositionPatient = [1, 2, 99999.125]
        else:
            data_set.add_new(0x52009230, "LO", "Zweistein^Ottilie")

    path = write_enhanced_ct(phantom.images()[0], tmp_path / "ct.dcm", change=damage)
    path.write_bytes(path.read_bytes().replace(b"99999.125", b"Zweistein"))
    assert b"Zweistein" in path.read_bytes()
    with pytest.raises(InputError, match=r"ct\.dcm: (slices whose position|its functional groups) .*cannot be read") as refused:
        read_volume(path)
    assert "Zweistein" not in f"{refused.value} {capfd.readouterr()} {[str(found.message) for found in recwarn]}"


def test_reading_functional_groups_in_several_threads_leaves_logs_and_warnings_as_they_were(
    phantom: Phantom, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_enhanced_ct(phantom.images()[0][:, :, :4], tmp_path / "ct.dcm")
    before = logging.getLogger("pydicom").level, list(warnings.filters)
    read, calls = pydicom.dcmread, itertools.count(1)

    def slow(*args: Any, **options: Any) -> pydicom.Dataset:
        time.sleep(0.1 * next(calls))  # the first ends first, while the others are within
        return read(*args, **options)

    monkeypatch.setattr(pydicom, "dcmread", slow)
    with ThreadPoolExecutor(3) as threads:
        assert len(list(threads.map(read_header, [path] * 3))) == 3
    assert (logging.getLogger("pydicom").level, list(warnings.filters)) == before


def test_two_files_with_several_frames_each_are_refused(phantom: Phantom, tmp_path: Path) -> None:
    ct, _ = phantom.images()
    write_enhanced_ct(ct[:, :, :25], tmp_path / "series/a.dcm")
    write_enhanced_ct(ct[:, :, 25:], tmp_path / "series/b.dcm")
    with pytest.raises(InputError, match=r"a\.dcm: several frames in one of several files"):
        read_volume(tmp_path / "series")


def changed_series(
    phantom: Phantom, folder: Path, change: Callable[[pydicom.Dataset], None], number: int | None = None
) -> Path:
    """A series of which all files, or one, are changed."""
    for place, path in enumerate(sorted(write_dicom_series(phantom.images()[0], folder).iterdir())):
        if number in (None, place):
            data_set = pydicom.dcmread(path)
            change(data_set)
            pydicom.dcmwrite(path, data_set)
    return folder


@pytest.mark.parametrize(
    ("interpretation", "named"), [("MONOCHROME1", "MONOCHROME1"), ("RGB", "RGB"), ("ZWEISTEIN", "that is unknown")]
)
def test_a_photometric_interpretation_other_than_monochrome2_is_refused(
    phantom: Phantom, tmp_path: Path, interpretation: str, named: str
) -> None:
    """The library's reader was observed to turn inverted values into -1 - HU."""

    def change(data_set: pydicom.Dataset) -> None:
        data_set.PhotometricInterpretation = interpretation

    message = rf"\.dcm: a photometric interpretation {named}; expected MONOCHROME2$"
    for path in (
        changed_series(phantom, tmp_path / "all", change),
        changed_series(phantom, tmp_path / "one", change, 7),
        write_enhanced_ct(phantom.images()[0], tmp_path / "ct.dcm", change=change),
    ):
        with pytest.raises(InputError, match=message):
            read_volume(path)


@pytest.mark.parametrize("stated", ["-7.45", "7.45", "1000"])
def test_a_spacing_between_slices_does_not_count_where_there_are_positions(
    phantom: Phantom, tmp_path: Path, stated: str
) -> None:
    def change(data_set: pydicom.Dataset) -> None:
        data_set.SpacingBetweenSlices = stated

    volume = read_volume(changed_series(phantom, tmp_path / "series", change))
    assert volume.geometry.same_grid(ImageGeometry.of(phantom.images()[0]))
    assert np.array_equal(sitk.GetArrayFromImage(volume.image), phantom.hounsfield)


def test_positions_too_far_apart_are_refused_whatever_the_spacing_between_slices(phantom: Phantom, tmp_path: Path) -> None:
    def change(data_set: pydicom.Dataset) -> None:
        data_set.SpacingBetweenSlices = "5"
        data_set.ImagePositionPatient = [0, 0, 150 * int(data_set.InstanceNumber)]

    with pytest.raises(InputError, match=r"series: a voxel spacing of \(4\.0, 4\.0, 150\.0\)"):
        read_volume(changed_series(phantom, tmp_path / "series", change))


def test_a_spacing_between_slices_of_0_is_refused_by_its_name(phantom: Phantom, tmp_path: Path) -> None:
    """The library's reader fails on it."""

    def change(data_set: pydicom.Dataset) -> None:
        data_set.SpacingBetweenSlices = "0"

    with pytest.raises(InputError, match=r"0007\.dcm: a spacing between slices \(0018,0088\) of 0; expected the distance"):
        read_volume(changed_series(phantom, tmp_path / "series", change, 7))


@pytest.mark.parametrize(
    ("sop_class", "modality"),
    [("1.2.840.10008.5.1.4.1.1.66.4", ""), ("1.2.840.10008.5.1.4.1.1.66.7", "SEG"), (ENHANCED_CT, "SEG")],
)
@pytest.mark.parametrize("as_folder", [False, True])
def test_a_dicom_segmentation_is_refused_as_such(
    phantom: Phantom, tmp_path: Path, sop_class: str, modality: str, as_folder: bool
) -> None:
    def change(data_set: pydicom.Dataset) -> None:
        data_set.Modality = modality

    path = write_enhanced_ct(phantom.images()[0], tmp_path / "mask/mask.dcm", sop_class=sop_class, change=change)
    message = r"mask\.dcm: a DICOM segmentation; expected the lung mask as \.mha, \.mhd, \.nii, \.nii\.gz or \.nrrd$"
    with pytest.raises(InputError, match=message):
        read_volume(path.parent if as_folder else path)


def test_a_slice_of_another_size_is_refused_with_both_sizes(phantom: Phantom, tmp_path: Path) -> None:
    folder = write_dicom_series(phantom.images()[0], tmp_path / "series")
    small = write_dicom_series(phantom.images()[0][:40, :32, :], tmp_path / "small")
    (small / "0030.dcm").replace(folder / "0030.dcm")
    with pytest.raises(
        InputError, match=r"series: slices of 64 x 80 and of 32 x 40 pixels \(rows x columns\); expected slices of"
    ):
        read_volume(folder)


@pytest.mark.parametrize("undefined", [False, True])
def test_a_modality_lut_instead_of_slope_and_intercept_is_refused(phantom: Phantom, tmp_path: Path, undefined: bool) -> None:
    """The library's reader was observed to take stored values for HU."""

    def change(data_set: pydicom.Dataset) -> None:
        del data_set.RescaleSlope, data_set.RescaleIntercept
        table = item(ModalityLUTType="HU", LUTData=b"\0\0\1\0")
        table.add_new(0x00283002, "US", [2, 0, 16])
        data_set.ModalityLUTSequence = [table]
        data_set["ModalityLUTSequence"].is_undefined_length = undefined

    with pytest.raises(
        InputError, match=r"\.dcm: a Modality LUT \(0028,3000\), which is not applied; expected a rescale slope"
    ):
        read_volume(changed_series(phantom, tmp_path / "series", change))


@pytest.mark.parametrize(("modality", "named"), [("MR", "MR"), ("PT", "PT"), ("ZWEISTEIN", "unknown")])
def test_images_of_another_modality_are_no_ct_but_may_be_a_mask(
    phantom: Phantom, tmp_path: Path, modality: str, named: str
) -> None:
    ct, mask = phantom.images()
    sitk.WriteImage(mask, str(tmp_path / "mask.mha"))
    series = write_dicom_series(ct, tmp_path / "series", tags=lambda _: {"0008|0060": modality})
    message = f"series: images of modality {named}; expected a CT in HU"
    with pytest.raises(InputError, match=message):
        Scan.read(series, tmp_path / "mask.mha")
    with pytest.raises(InputError, match=message):
        read_case(Case("series", series, None, segment_lungs=True))
    stored = write_dicom_series(mask, tmp_path / "mask", tags=lambda _: {"0008|0060": modality})
    assert np.array_equal(Scan.read(write_dicom_series(ct, tmp_path / "ct"), stored).lung, phantom.lungs > 0)


@pytest.mark.parametrize("modality", [None, "OT"])
def test_a_ct_that_states_no_modality_or_another_than_the_known_is_read(
    phantom: Phantom, tmp_path: Path, modality: str | None
) -> None:
    def change(data_set: pydicom.Dataset) -> None:
        if modality is None:
            del data_set.Modality
        else:
            data_set.Modality = modality

    sitk.WriteImage(phantom.images()[1], str(tmp_path / "mask.mha"))
    scan = Scan.read(changed_series(phantom, tmp_path / "series", change), tmp_path / "mask.mha")
    assert np.array_equal(scan.hounsfield, phantom.hounsfield)


def test_a_mask_in_one_file_with_several_frames_is_read(phantom: Phantom, tmp_path: Path) -> None:
    """As SimpleITK writes it: a secondary capture of modality OT, with the positions of its frames."""
    ct, mask = phantom.images()
    with locale_kept():
        sitk.WriteImage(mask, str(tmp_path / "mask.dcm"))
    sitk.WriteImage(ct, str(tmp_path / "ct.mha"))
    scan = Scan.read(tmp_path / "ct.mha", tmp_path / "mask.dcm")
    assert np.array_equal(scan.lung, phantom.lungs > 0)
    assert scan.warnings == ()


@pytest.mark.parametrize("implicit", [True, False])
def test_a_data_set_without_the_preamble_is_refused_with_the_cause(phantom: Phantom, tmp_path: Path, implicit: bool) -> None:
    folder = write_dicom_series(phantom.images()[0], tmp_path / "series")
    path = folder / "0004.dcm"
    data_set = pydicom.dcmread(path)
    del data_set.file_meta
    data_set.preamble = None
    pydicom.dcmwrite(path, data_set, implicit_vr=implicit, little_endian=True, enforce_file_format=False)
    message = r"0004(\.dcm)?: a DICOM data set without the preamble of a file; expected DICOM files"
    for place in (folder, path):
        with pytest.raises(InputError, match=message):
            read_header(place)
    path.rename(folder / "0004")
    with pytest.raises(InputError, match=message):
        read_header(folder)
    if implicit:  # with the length of group 8, as old files have it
        (folder / "0004").write_bytes(struct.pack("<HHII", 8, 0, 4, 300) + (folder / "0004").read_bytes())
        with pytest.raises(InputError, match=message):
            read_header(folder)


@pytest.mark.parametrize(
    "start",
    [(8, 512, 512, 100), (2, 512, 512, 1), (8, 4, 4, 4), (8, 4, 9, 0x00050008, 0xFFFF), (0x00050008, 10, 1, 2), (8, 4)],
    ids=str,
)
def test_integers_that_look_like_the_first_element_of_a_data_set_are_no_slice(
    phantom: Phantom, tmp_path: Path, start: Sequence[int]
) -> None:
    folder = write_dicom_series(phantom.images()[0], tmp_path / "series")
    for fill in (0, 1, 1000, 0xFFFF):
        (folder / "table").write_bytes(np.array(start, "<u4").tobytes() + np.full(2000, fill, "<u2").tobytes())
        assert len(read_series(folder).files) == phantom.lungs.shape[0]
