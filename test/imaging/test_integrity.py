"""Files whose header and voxels do not match, or that refer to other files, are never read as a scan."""

from __future__ import annotations

import gzip
import os
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from model.errors import InputError, printable
from model.imaging.integrity import has_checksum, matches_checksum
from model.imaging.readers import read_header, read_volume

PATIENT = "DOE^JANE"


@pytest.fixture(scope="module")
def image() -> sitk.Image:
    return sitk.GetImageFromArray(np.random.default_rng(0).integers(-1000, 1000, (20, 30, 40)).astype(np.int16))


def edited(image: sitk.Image, path: Path, *edits: tuple[str, str], compressed: bool = False) -> Path:
    """Write an image, then replace text in its header."""
    sitk.WriteImage(image, str(path), compressed)
    content = path.read_bytes()
    for old, new in edits:
        assert old.encode() in content, old
        content = content.replace(old.encode(), new.encode(), 1)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    ("suffix", "size"), [(".mha", "DimSize = 40 30 {}"), (".nrrd", "sizes: 40 30 {}"), (".mhd", "DimSize = 40 30 {}")]
)
@pytest.mark.parametrize("slices", [10, 30])
def test_a_header_that_asks_for_other_slices_than_there_are_is_refused(
    image: sitk.Image, tmp_path: Path, suffix: str, size: str, slices: int, compressed: bool
) -> None:
    """The reader was observed to drop further slices without an error, and to fill missing ones with uninitialised memory."""
    path = edited(image, tmp_path / f"ct{suffix}", (size.format(20), size.format(slices)), compressed=compressed)
    with pytest.raises(InputError, match=r"its voxels (are damaged or cut off|cannot be read)"):
        read_volume(path)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_nifti_file_with_more_slices_than_its_header_says_is_refused(image: sitk.Image, tmp_path: Path, suffix: str) -> None:
    sitk.WriteImage(image, str(tmp_path / "whole.nii"))
    content = bytearray((tmp_path / "whole.nii").read_bytes())
    content[46] = 10  # the fourth of eight 16-bit numbers from byte 40 on: slices
    path = tmp_path / f"ct{suffix}"
    path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    with pytest.raises(InputError, match=r"24000 bytes more than the 24352 that its header states"):
        read_volume(path)


def test_an_element_type_of_another_size_is_refused(image: sitk.Image, tmp_path: Path) -> None:
    path = edited(image, tmp_path / "ct.mha", ("MET_SHORT", "MET_CHAR"), compressed=True)
    with pytest.raises(InputError, match="24000 bytes more"):
        read_volume(path)


@pytest.mark.parametrize("field", ["ElementToIntensityFunctionSlope = 2", "ElementToIntensityFunctionOffset = -1024"])
def test_an_intensity_function_that_would_be_ignored_is_refused(image: sitk.Image, tmp_path: Path, field: str) -> None:
    path = edited(image, tmp_path / "ct.mha", ("ElementType", f"{field}\nElementType"))
    with pytest.raises(InputError, match="scales the values by an intensity function"):
        read_volume(path)
    unity = edited(image, tmp_path / "ct.mha", ("ElementType", "ElementToIntensityFunctionSlope = 1\nElementType"))
    assert read_volume(unity).image.GetSize() == (40, 30, 20)


OTHER_FILES = (
    "/dev/zero",
    "/etc/passwd",
    "../voxels.raw",
    "folder/../../voxels.raw",
    "nowhere.raw",
    "part%02d.raw 0 19 1",
    "LIST",
)


@pytest.mark.parametrize("name", OTHER_FILES)
@pytest.mark.parametrize("suffix", [".mhd", ".nrrd"])
def test_voxels_are_read_only_from_a_file_beside_the_header(image: sitk.Image, tmp_path: Path, suffix: str, name: str) -> None:
    folder = tmp_path / "input"
    (folder / "folder").mkdir(parents=True)
    (tmp_path / "voxels.raw").write_bytes(sitk.GetArrayFromImage(image).tobytes())
    for number in range(20):
        (folder / f"part{number:02d}.raw").write_bytes(sitk.GetArrayFromImage(image)[number].tobytes())
    path = folder / f"ct{suffix}"
    if suffix == ".mhd":
        edited(image, path, ("ElementDataFile = ct.raw", f"ElementDataFile = {name}"))
    else:
        sitk.WriteImage(image, str(path))
        header = path.read_bytes().partition(b"\n\n")[0]
        path.write_bytes(header + f"\ndata file: {name}\n\n".encode())
    with pytest.raises(InputError, match="voxel data that lie elsewhere, in several files, or do not exist"):
        read_header(path)


@pytest.mark.parametrize(
    "spelling", ["ElementDataFile: {}", "\tElementDataFile={}", "Comment = ElementDataFile\nElementDataFile = {}"]
)
def test_no_spelling_of_the_field_leads_elsewhere(image: sitk.Image, tmp_path: Path, spelling: str) -> None:
    path = edited(image, tmp_path / "ct.mhd", ("ElementDataFile = ct.raw", spelling.format("/etc/passwd")))
    with pytest.raises(InputError, match="refers to voxel data that lie elsewhere"):
        read_volume(path)


def test_a_named_pipe_is_refused_at_once(image: sitk.Image, tmp_path: Path) -> None:
    path = edited(image, tmp_path / "ct.mhd", ("ct.raw", "pipe.raw"))
    os.mkfifo(tmp_path / "pipe.raw")
    os.mkfifo(tmp_path / "ct.nii")
    with pytest.raises(InputError, match="refers to voxel data that lie elsewhere"):
        read_header(path)
    with pytest.raises(InputError, match="not a file"):
        read_header(tmp_path / "ct.nii")


@pytest.mark.parametrize("name", ["voxels of Jürgen 日本.raw", "a  b.raw"])
def test_voxels_beside_the_header_are_read_whatever_their_name(image: sitk.Image, tmp_path: Path, name: str) -> None:
    path = edited(image, tmp_path / "ct.mhd", ("ct.raw", name))
    (tmp_path / "ct.raw").rename(tmp_path / name)
    assert np.array_equal(sitk.GetArrayFromImage(read_volume(path).image), sitk.GetArrayFromImage(image))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("TransformMatrix = 1 0 0", "TransformMatrix = 0 0 0", "axes that are not at right angles"),
        ("TransformMatrix = 1 0 0", "TransformMatrix = 1 0.5 0", "axes that are not at right angles"),
        ("TransformMatrix = 1 0 0", "TransformMatrix = 2 0 0", "axes that are not at right angles"),
        ("ElementSpacing = 1 1 1", "ElementSpacing = 1 1 1e-9", "a voxel spacing of"),
        ("ElementSpacing = 1 1 1", "ElementSpacing = 1e9 1 1", "a voxel spacing of"),
        ("ElementSpacing = 1 1 1", "ElementSpacing = -1 1 1", "a voxel spacing of"),
    ],
)
def test_a_grid_that_no_scanner_makes_is_refused(image: sitk.Image, tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_header(edited(image, tmp_path / "ct.mha", (old, new)))


@pytest.mark.parametrize("count", ["-1", "0", "2147483648", "4294967297", "9223372036854775808", "3 4", "nan", ""])
def test_a_number_of_dimensions_that_crashes_the_reader_is_refused(image: sitk.Image, tmp_path: Path, count: str) -> None:
    for header in (f"NDims = {count}", f"NDims = {count}\nNDims = 3", f"NDims: {count}"):
        with pytest.raises(InputError, match="an invalid number of dimensions"):
            read_header(edited(image, tmp_path / "ct.mha", ("NDims = 3", header)))


@pytest.mark.parametrize("line", ["{}", "content: {}", "space: {}", "{}: 1", "K: ey:={}"])
def test_an_overlong_field_that_crashes_the_reader_is_refused(image: sitk.Image, tmp_path: Path, line: str) -> None:
    path = edited(image, tmp_path / "ct.nrrd", ("encoding", f"{line.format('A' * 1100)}\nencoding"))
    with pytest.raises(InputError, match="its header has an overlong line"):
        read_header(path)


@pytest.mark.parametrize("line", ["# {}", "Key:={}", "Key:=a: {}"])
def test_a_long_comment_or_pair_is_read(image: sitk.Image, tmp_path: Path, line: str) -> None:
    path = edited(image, tmp_path / "ct.nrrd", ("encoding", f"{line.format('A' * 1100)}\nencoding"))
    assert read_volume(path).image.GetSize() == (40, 30, 20)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("place", [76, 80, 268, 280, 316], ids=["qfac", "voxel size", "qform", "sform x", "sform z"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_position_that_is_no_finite_number_is_refused_before_the_reader_opens_the_file(
    image: sitk.Image, tmp_path: Path, suffix: str, place: int, value: float
) -> None:
    """An infinite sform was observed to keep the reader in a loop."""
    sitk.WriteImage(image, str(tmp_path / "ct.nii"))
    content = bytearray((tmp_path / "ct.nii").read_bytes())
    struct.pack_into("<f", content, place, value)
    path = tmp_path / f"odd{suffix}"
    path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    with pytest.raises(InputError, match="its header states an implausible position or voxel size"):
        read_header(path)


def test_a_nifti_file_is_read_whether_or_not_its_compression_agrees_with_its_name(image: sitk.Image, tmp_path: Path) -> None:
    sitk.WriteImage(image, str(tmp_path / "ct.nii"))
    (tmp_path / "plain.nii.gz").write_bytes((tmp_path / "ct.nii").read_bytes())
    assert np.array_equal(sitk.GetArrayFromImage(read_volume(tmp_path / "plain.nii.gz").image), sitk.GetArrayFromImage(image))


def test_a_file_is_read_as_what_its_name_says_and_nothing_else(image: sitk.Image, tmp_path: Path) -> None:
    sitk.WriteImage(image, str(tmp_path / "ct.vtk"))
    (tmp_path / "ct.vtk").rename(tmp_path / "ct.mha")
    with pytest.raises(InputError, match="not an image that can be read"):
        read_header(tmp_path / "ct.mha")


def test_what_a_reader_quotes_from_a_header_is_not_repeated(image: sitk.Image, tmp_path: Path) -> None:
    path = edited(image, tmp_path / "ct.nrrd", ("type: short", f"type: {PATIENT}"))
    with pytest.raises(InputError, match=r'couldn\'t parse type "\.\.\."') as refused:
        read_header(path)
    assert PATIENT not in str(refused.value)


def test_a_name_that_is_not_utf_8_is_refused_before_it_reaches_the_reader(image: sitk.Image, tmp_path: Path) -> None:
    sitk.WriteImage(image, str(tmp_path / "ct.mha"))
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/scan\xff.mha"))
    (tmp_path / "ct.mha").rename(path)
    for read in (read_header, read_volume):
        with pytest.raises(InputError, match=r"scan\\udcff\.mha: the name is not valid UTF-8"):
            read(path)


def test_an_error_is_one_printable_line_that_keeps_the_names_spaces() -> None:
    message = str(InputError("a  b\n\x1b[31mc\u202e.mha", "two\nlines", "one"))
    assert message == r"a  b\n\x1b[31mc\u202e.mha: two lines; expected one"
    assert printable("Größe 日本.mha") == "Größe 日本.mha"


@pytest.mark.parametrize("suffix", [".mha", ".mhd", ".nrrd"])
def test_whole_compressed_voxels_match_the_checksum_that_the_file_ends_with(
    image: sitk.Image, tmp_path: Path, suffix: str
) -> None:
    sitk.WriteImage(image, str(tmp_path / f"ct{suffix}"), useCompression=True)
    path = tmp_path / f"ct{suffix}"
    assert has_checksum(path)
    voxels = sitk.GetArrayFromImage(image)
    assert matches_checksum(path, voxels)
    assert not matches_checksum(path, voxels[1:].copy())
    voxels[3, 4, 5] += 1
    assert not matches_checksum(path, voxels)


def test_files_without_compression_or_of_other_formats_have_no_checksum(image: sitk.Image, tmp_path: Path) -> None:
    for name in ("ct.mha", "ct.nii.gz"):
        sitk.WriteImage(image, str(tmp_path / name))
        assert not has_checksum(tmp_path / name)
    assert not has_checksum(tmp_path)


def test_every_flipped_byte_of_a_compressed_metaimage_is_found(image: sitk.Image, tmp_path: Path) -> None:
    """The reader alone was observed to accept a third of them."""
    sitk.WriteImage(image, str(tmp_path / "whole.mha"), useCompression=True)
    content = (tmp_path / "whole.mha").read_bytes()
    start = content.index(b"LOCAL\n") + 6
    for place in np.linspace(start, len(content) - 1, 60).astype(int):
        damaged = bytearray(content)
        damaged[place] ^= 1 << (int(place) % 8)
        (tmp_path / "ct.mha").write_bytes(damaged)
        with pytest.raises(InputError, match=r"ct\.mha: its voxels (are damaged|cannot be read)"):
            read_volume(tmp_path / "ct.mha")


def test_what_follows_a_checksum_or_another_order_of_bytes_does_not_make_a_whole_file_damaged(
    image: sitk.Image, tmp_path: Path
) -> None:
    path = tmp_path / "ct.mha"
    sitk.WriteImage(image, str(path), useCompression=True)
    with path.open("ab") as stream:
        stream.write(b"\n")
    assert (sitk.GetArrayFromImage(read_volume(path).image) == sitk.GetArrayFromImage(image)).all()
    swapped = zlib.compress(sitk.GetArrayFromImage(image).astype(">i2").tobytes())
    header = path.read_bytes().partition(b"ElementDataFile")[0].replace(b"ByteOrderMSB = False", b"ByteOrderMSB = True")
    header = re.sub(rb"CompressedDataSize = \d+", b"CompressedDataSize = %d" % len(swapped), header)
    path.write_bytes(header + b"ElementDataFile = LOCAL\n" + swapped)
    assert (sitk.GetArrayFromImage(read_volume(path).image) == sitk.GetArrayFromImage(image)).all()


def without_spacing(image: sitk.Image, path: Path) -> Path:
    """Write an image, and take the distances of its voxels from its header."""
    sitk.WriteImage(image, str(path))
    content = path.read_bytes()
    if path.suffix == ".nii":
        content = content[:80] + bytes(12) + content[92:]
    else:
        content = re.sub(rb"(ElementSpacing|space directions).*\n", b"", content)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("suffix", [".mha", ".mhd", ".nrrd", ".nii"])
def test_a_header_that_states_no_spacing_is_refused(image: sitk.Image, tmp_path: Path, suffix: str) -> None:
    """The readers take 1 mm."""
    path = without_spacing(image, tmp_path / f"ct{suffix}")
    for read in (read_header, read_volume):
        with pytest.raises(InputError, match=rf"ct{suffix}: its header states no voxel spacing; expected spacing in mm"):
            read(path)


@pytest.mark.parametrize(
    ("spacing", "is_stated"),
    [("2 2 5", True), ("2 2 nan", False), ("nan nan nan", False), ("NaN 2 2", False)],
)
def test_spacings_of_nrrd_may_be_unknown(image: sitk.Image, tmp_path: Path, spacing: str, is_stated: bool) -> None:
    path = without_spacing(image, tmp_path / "ct.nrrd")
    content = re.sub(rb"space.*\n", b"", path.read_bytes())
    path.write_bytes(content.replace(b"kinds", f"spacings: {spacing}\nkinds".encode()))
    if is_stated:
        assert read_volume(path).geometry.spacing == (2, 2, 5)
    else:
        with pytest.raises(InputError, match="its header states no voxel spacing"):
            read_header(path)


def test_the_other_name_of_the_spacing_in_a_metaimage_is_read(image: sitk.Image, tmp_path: Path) -> None:
    path = edited(image, tmp_path / "ct.mha", ("ElementSpacing = 1 1 1", "ElementSize = 2 2 5"))
    assert read_volume(path).geometry.spacing == (2, 2, 5)


NO_ORIENTATION = ("the file states no orientation: right and left may be swapped",)


@pytest.mark.parametrize(
    ("space", "warnings"),
    [
        *((f"space: {name}", ()) for name in ("left-posterior-superior", "RAS", "Left-Anterior-Superior")),
        *((line, NO_ORIENTATION) for line in ("space dimension: 3", "space: scanner-xyz", "space: 3D-right-handed")),
    ],
)
def test_a_nrrd_file_whose_space_is_not_the_patients_is_read_with_a_warning(
    image: sitk.Image, tmp_path: Path, space: str, warnings: tuple[str, ...]
) -> None:
    path = edited(image, tmp_path / "ct.nrrd", ("space: left-posterior-superior", space))
    assert (read_volume(path).warnings, read_header(path).warnings) == (warnings, warnings)


def test_a_fourth_axis_in_a_nrrd_file_is_no_reason_for_a_warning(image: sitk.Image, tmp_path: Path) -> None:
    path = tmp_path / "ct.nrrd"
    sitk.WriteImage(sitk.JoinSeries([image]), str(path))
    assert b"space dimension: 4" in path.read_bytes()[:1000]
    assert read_volume(path).warnings == ()


def nifti(image: sitk.Image, path: Path, codes: tuple[int, int], changes: dict[tuple[int, int], float] | None = None) -> Path:
    """Write a NIfTI file with codes for qform and sform, and change numbers of the sform, by row and column."""
    sitk.WriteImage(image, str(path))
    content = bytearray(path.read_bytes())
    struct.pack_into("<2h", content, 252, *codes)
    for (row, column), value in (changes or {}).items():
        struct.pack_into("<f", content, 280 + 16 * row + 4 * column, value)
    path.write_bytes(content)
    return path


MIRRORED = {(0, 0): 1.0, (0, 3): -100.0}
SHEARED = {(1, 2): 0.3}
MOVED = {(2, 3): 350.0}
QFORM, SFORM = (f"the file's qform and sform differ; the {name} was used" for name in ("qform", "sform"))


@pytest.mark.parametrize("direction", [None, (0.8, -0.6, 0, 0.6, 0.8, 0, 0, 0, 1), (0, 0, 1, 1, 0, 0, 0, -1, 0)])
@pytest.mark.parametrize("codes", [(1, 1), (1, 0), (0, 1), (1, 2), (4, 4)])
def test_a_nifti_file_that_states_one_orientation_gives_no_warning(
    image: sitk.Image, tmp_path: Path, codes: tuple[int, int], direction: tuple[float, ...] | None
) -> None:
    turned = sitk.Image(image)
    turned.SetSpacing((0.7, 0.8, 2.5))
    turned.SetOrigin((-170.0, -150.3, 812.5))
    turned.SetDirection(direction or turned.GetDirection())
    assert read_volume(nifti(turned, tmp_path / "ct.nii", codes)).warnings == ()


@pytest.mark.parametrize(
    ("codes", "changes", "warning", "corner"),
    [
        ((0, 0), {}, NO_ORIENTATION[0], (0, 0, 0)),
        ((1, 1), MIRRORED, SFORM, (100, -120, 300)),
        ((1, 2), MIRRORED, QFORM, (-100, -120, 300)),
        ((1, 1), SHEARED, QFORM, (-100, -120, 300)),
        ((1, 1), MOVED, SFORM, (-100, -120, 350)),
        ((1, 2), MOVED, QFORM, (-100, -120, 300)),
        ((0, 1), {(0, 0): -2.0}, "the file's voxel sizes and its sform differ; the voxel sizes were used", (-100, -120, 300)),
    ],
)
def test_a_nifti_file_without_one_orientation_is_read_with_a_warning(
    image: sitk.Image,
    tmp_path: Path,
    codes: tuple[int, int],
    changes: dict[tuple[int, int], float],
    warning: str,
    corner: tuple[int, int, int],
) -> None:
    moved = sitk.Image(image)
    moved.SetOrigin((-100.0, -120.0, 300.0))
    volume = read_volume(nifti(moved, tmp_path / "ct.nii", codes, changes))
    assert volume.warnings == (warning,)
    assert volume.geometry.origin == corner
    if changes == MIRRORED:
        assert volume.geometry.direction[0] == (-1 if warning == SFORM else 1)
