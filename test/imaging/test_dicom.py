"""DICOM series: what the library's reader accepts without an error is refused or reported."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from model.errors import InputError
from model.imaging.dicom import check_slices, read_series, read_tags
from model.imaging.readers import read_header, read_volume
from test.imaging.series import write_dicom_series
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
