"""What is read as a slice: pictures, DICOM files, slices of volumes; grey or RGB; HU through a window."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from PIL import Image

from model.errors import InputError
from model.slices import images
from model.slices.calibration import BRIGHTEST_AIR
from model.slices.images import LUNG_WINDOW, Window, as_hounsfield, as_picture, read_levels, read_slice
from test.imaging.series import write_dicom_series, write_enhanced_ct
from test.slices.chest import LUNGS, chest

HOUNSFIELD = np.arange(-1350, -1350 + 12 * 20 * 5, 5, dtype=np.int16).reshape(12, 20)


def write_dicom(path: Path, pixels: np.ndarray, **tags: str) -> Path:
    """Write rows x columns of HU (or of grey, if uint8) as one DICOM file."""
    image = sitk.GetImageFromArray(pixels[None])
    for key, value in {"0008|0060": "CT", **tags}.items():
        image.SetMetaData(key, value)
    sitk.WriteImage(image, str(path))
    return path


def test_a_window_runs_from_black_to_white_over_its_width() -> None:
    levels = LUNG_WINDOW.grey(np.array([-3000, -1350, -600, 150, 3000, np.nan]))
    assert levels.tolist() == [0, 0, 128, 255, 255, 0]
    assert Window(40, 400).grey(np.array([-160, 40, 240])).tolist() == [0, 128, 255]
    with pytest.raises(ValueError, match="width is 0"):
        Window(0, 0)


@pytest.mark.parametrize(
    ("suffix", "mode"), [*((".png", mode) for mode in ("L", "LA", "P", "RGB", "RGBA")), (".jpg", "L"), (".jpeg", "RGB")]
)
def test_pictures_are_read_grey_or_in_colour(tmp_path: Path, suffix: str, mode: str) -> None:
    grey = np.full((30, 40), 200, np.uint8)
    Image.fromarray(grey).convert(mode).save(tmp_path / f"slice{suffix}")
    picture = read_slice(tmp_path / f"slice{suffix}")
    assert picture.shape == (30, 40, 3)
    assert picture.dtype == np.uint8
    assert abs(picture.astype(int) - 200).max() <= 2


def test_colours_keep_their_order(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), (250, 120, 10)).save(tmp_path / "slice.png")
    assert read_slice(tmp_path / "slice.png")[0, 0].tolist() == [250, 120, 10]


def test_a_dicom_slice_is_read_in_hounsfield_units_and_shown_through_a_window(tmp_path: Path) -> None:
    level = read_slice(write_dicom(tmp_path / "slice.dcm", HOUNSFIELD))
    np.testing.assert_array_equal(as_hounsfield(level), HOUNSFIELD)
    np.testing.assert_array_equal(as_picture(level, LUNG_WINDOW)[..., 0], LUNG_WINDOW.grey(HOUNSFIELD))
    np.testing.assert_array_equal(as_picture(level, Window(-900, 300))[..., 2], Window(-900, 300).grey(HOUNSFIELD))


@pytest.mark.parametrize("name", ["1.2.840.113619.2.55.12345", "IM.0001", "IM0001", "slice.dicom", "slice.v2", "slice.IMA"])
def test_a_dicom_slice_is_read_whatever_its_name(tmp_path: Path, name: str) -> None:
    write_dicom(tmp_path / "slice.dcm", HOUNSFIELD).rename(tmp_path / name)
    np.testing.assert_array_equal(read_slice(tmp_path / name), HOUNSFIELD)


def test_grey_pictures_are_calibrated_and_colours_refused() -> None:
    hounsfield = chest()
    grey = LUNG_WINDOW.grey(hounsfield)
    for picture in (grey, as_picture(grey, LUNG_WINDOW)):
        assert np.abs(as_hounsfield(picture) - hounsfield)[LUNGS & (hounsfield < -800)].mean() < 15
    with pytest.raises(InputError, match="it is in colours"):
        as_hounsfield(np.stack([grey, grey // 2, 255 - grey], axis=2))


def test_an_overlay_of_little_emphysema_is_refused(tmp_path: Path) -> None:
    """A density mask erases what it marks: red is read as a grey of tissue."""
    grey = as_picture(LUNG_WINDOW.grey(chest()), LUNG_WINDOW)
    grey[150:154, 90:96] = 255, 0, 0
    Image.fromarray(grey).save(tmp_path / "slice.png")
    with pytest.raises(InputError, match="it is in colours; expected grey levels of a CT slice, without an overlay"):
        as_hounsfield(read_slice(tmp_path / "slice.png"))


def test_coloured_text_beside_the_patient_and_the_noise_of_jpeg_are_no_colours(tmp_path: Path) -> None:
    grey = as_picture(LUNG_WINDOW.grey(chest()), LUNG_WINDOW)
    expected = as_hounsfield(grey)
    noisy = grey.astype(int) + np.random.default_rng(0).integers(-8, 9, grey.shape)
    noisy[10:20, 10:60] = 255, 255, 0
    top, left = (int(np.flatnonzero(grey[..., 0].max(axis=axis) > BRIGHTEST_AIR)[0]) for axis in (1, 0))
    noisy[top : top + 8, left : left + 20] = 255, 255, 0  # in the air of a corner that a box around the patient has
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(tmp_path / "slice.jpg", quality=75)
    assert np.abs(as_hounsfield(read_slice(tmp_path / "slice.jpg")) - expected)[LUNGS].mean() < 30


def test_what_a_picture_hides_by_transparency_is_black(tmp_path: Path) -> None:
    grey = np.full((30, 40), 255, np.uint8)
    alpha = np.full_like(grey, 255)
    alpha[:, :20] = 0
    Image.fromarray(np.dstack([grey, grey, grey, alpha])).save(tmp_path / "rgba.png")
    Image.fromarray(np.dstack([grey, alpha])).save(tmp_path / "la.png")
    Image.fromarray(np.where(alpha > 0, grey, 7)).save(tmp_path / "l.png", transparency=7)
    palette = Image.fromarray(alpha // 255, "P")
    palette.putpalette([250, 250, 250, 255, 255, 255])
    palette.save(tmp_path / "p.png", transparency=0)
    for name in ("rgba", "la", "l", "p"):
        picture = read_slice(tmp_path / f"{name}.png")
        assert not picture[:, :20].any(), name
        assert (picture[:, 20:] == 255).all(), name
    Image.fromarray(np.dstack([grey, 0 * alpha])).save(tmp_path / "unused.png")
    assert (read_slice(tmp_path / "unused.png") == 255).all(), "all of it hidden: the channel is not used"


@pytest.mark.parametrize("modality", ["MR", "CR", "PT"])
def test_a_dicom_slice_of_another_modality_is_refused(tmp_path: Path, modality: str) -> None:
    path = write_dicom(tmp_path / "slice.dcm", HOUNSFIELD, **{"0008|0060": modality})
    with pytest.raises(InputError, match=f"an image of modality {modality}; expected an axial CT slice of the chest"):
        read_slice(path)


@pytest.mark.parametrize("modality", ["CT", "OT", "SC", "ct", "CT\\OT"])
def test_a_dicom_slice_or_a_screen_capture_of_it_is_read(tmp_path: Path, modality: str) -> None:
    path = write_dicom(tmp_path / "slice.dcm", HOUNSFIELD, **{"0008|0060": modality})
    np.testing.assert_array_equal(read_slice(path), HOUNSFIELD)


def test_a_volume_of_another_modality_is_refused(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(np.stack([HOUNSFIELD] * 3))
    folder = write_dicom_series(image, tmp_path / "series", tags=lambda _: {"0008|0060": "MR"})
    with pytest.raises(InputError, match="an image of modality MR; expected an axial CT slice of the chest"):
        read_levels(folder)


def test_a_localiser_is_refused(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "slice.dcm", HOUNSFIELD, **{"0008|0008": "ORIGINAL\\PRIMARY\\LOCALIZER"})
    with pytest.raises(InputError, match="a localiser; expected an axial CT slice of the chest"):
        read_slice(path)


def turned(path: Path, orientation: list[float]) -> Path:
    data_set = pydicom.dcmread(path)
    data_set.ImageOrientationPatient = orientation
    data_set.save_as(path)
    return path


@pytest.mark.parametrize("orientation", [[1, 0, 0, 0, 0, -1], [0, 1, 0, 0, 0, -1]], ids=["coronal", "sagittal"])
def test_a_dicom_slice_of_another_plane_is_refused(tmp_path: Path, orientation: list[float]) -> None:
    path = turned(write_dicom(tmp_path / "slice.dcm", HOUNSFIELD), orientation)
    with pytest.raises(InputError, match="a coronal or sagittal slice; expected an axial CT slice of the chest"):
        read_slice(path)


@pytest.mark.parametrize(
    ("stored", "orientation"),
    [
        (HOUNSFIELD[::-1], [1, 0, 0, 0, -1, 0]),
        (HOUNSFIELD[:, ::-1], [-1, 0, 0, 0, 1, 0]),
        (HOUNSFIELD[::-1, ::-1], [-1, 0, 0, 0, -1, 0]),
        (HOUNSFIELD.T, [0, 1, 0, 1, 0, 0]),
        (HOUNSFIELD, [0.996, 0.087, 0, -0.087, 0.996, 0]),
    ],
    ids=["upside-down", "mirrored", "prone", "transposed", "tilted"],
)
def test_a_dicom_slice_is_turned_upright(tmp_path: Path, stored: np.ndarray, orientation: list[float]) -> None:
    path = turned(write_dicom(tmp_path / "slice.dcm", np.ascontiguousarray(stored)), orientation)
    np.testing.assert_array_equal(read_slice(path), HOUNSFIELD)


def test_a_capture_in_colours_is_turned_upright(tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 255, (12, 20, 3), np.uint8)
    image = sitk.GetImageFromArray(np.ascontiguousarray(colours[None, ::-1]), isVector=True)
    sitk.WriteImage(image, str(tmp_path / "colours.dcm"))
    found = read_slice(turned(tmp_path / "colours.dcm", [1, 0, 0, 0, -1, 0]))
    np.testing.assert_array_equal(found, colours)


def test_inverted_grey_levels_are_refused_since_the_reader_negates_them(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "slice.dcm", HOUNSFIELD)
    data_set = pydicom.dcmread(path)
    data_set.PhotometricInterpretation = "MONOCHROME1"
    data_set.save_as(path)
    with pytest.raises(InputError, match="a photometric interpretation MONOCHROME1; expected MONOCHROME2"):
        read_slice(path)


def test_a_screen_capture_in_dicom_is_taken_as_it_is(tmp_path: Path) -> None:
    grey = np.arange(240, dtype=np.uint8).reshape(12, 20)
    np.testing.assert_array_equal(read_slice(write_dicom(tmp_path / "capture.dcm", grey)), grey)
    colours = np.random.default_rng(0).integers(0, 255, (12, 20, 3), np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(colours[None], isVector=True), str(tmp_path / "colours.dcm"))
    np.testing.assert_array_equal(read_slice(tmp_path / "colours.dcm"), colours)


def test_a_dicom_file_may_hold_several_slices_in_order(tmp_path: Path) -> None:
    volume = np.arange(5 * 12 * 20, dtype=np.int16).reshape(5, 12, 20) - 1000
    path = write_enhanced_ct(sitk.GetImageFromArray(volume), tmp_path / "volume.dcm")
    np.testing.assert_array_equal(read_levels(path), volume)
    np.testing.assert_array_equal(read_slice(path, 4), volume[3])
    path = write_enhanced_ct(sitk.GetImageFromArray(volume), tmp_path / "mixed.dcm", order=[0, 2, 4, 1, 3])
    with pytest.raises(InputError, match="order"):
        read_slice(path, 4)


@pytest.mark.parametrize("kind", ["volume", "dicom"])
def test_pixels_that_are_not_square_are_made_so(tmp_path: Path, kind: str) -> None:
    square = np.add.outer(np.arange(30), 10 * np.arange(40)).astype(np.int16) - 1000
    image = sitk.GetImageFromArray(np.stack([square[::3]] * (1 if kind == "dicom" else 4)))
    image.SetSpacing((0.8, 2.4, 5.0))
    path = tmp_path / ("slice.dcm" if kind == "dicom" else "ct.nii.gz")
    image.SetMetaData("0008|0060", "CT")
    sitk.WriteImage(image, str(path))
    read = read_slice(path, 2)
    assert read.shape == (30, 40)
    assert read.dtype == np.int16
    np.testing.assert_allclose(read, square, atol=3)


def test_a_dicom_file_that_would_not_fit_into_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_dicom(tmp_path / "slice.dcm", HOUNSFIELD)
    monkeypatch.setattr(images, "available_memory", lambda: 1000)
    with pytest.raises(InputError, match=r"slice\.dcm: its header asks for .* GiB of memory"):
        read_slice(path)


@pytest.mark.parametrize("orientation", ["LPS", "RAS", "PIR"])
def test_slices_of_a_volume_are_counted_from_the_base(tmp_path: Path, orientation: str) -> None:
    volume = np.stack([np.full((12, 20), -1000 + 100 * level, np.int16) for level in range(5)])
    volume[:, 0, 0] = 150  # the patient's front and right
    sitk.WriteImage(sitk.DICOMOrient(sitk.GetImageFromArray(volume), orientation), str(tmp_path / "ct.nii.gz"))
    level = read_slice(tmp_path / "ct.nii.gz", number=2)
    assert level[5, 5] == -900
    assert level[0, 0] == 150
    assert level.base is None, "it does not keep the whole volume"


def test_what_is_no_slice_is_refused_in_one_line_by_name(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    (tmp_path / "text.dcm").write_bytes(b"no DICOM at all")
    dicom = write_dicom(tmp_path / "cut.dcm", HOUNSFIELD).read_bytes()
    (tmp_path / "cut.dcm").write_bytes(dicom[:-100])
    (tmp_path / "notes.txt").write_text("no picture")
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(tmp_path / "deep.png")
    sitk.WriteImage(sitk.Image(8, 9, 7, sitk.sitkInt16), str(tmp_path / "ct.mha"))
    for name, number, message in (
        ("absent.png", None, "no such file"),
        ("broken.png", None, "not a picture that can be read"),
        ("text.dcm", None, "not a DICOM file"),
        ("cut.dcm", None, "the file is damaged or cut off"),
        ("notes.txt", None, "files of type .txt are not read"),
        ("deep.png", None, "a picture of mode I;16"),
        ("ct.mha", None, "it holds 7 slices; expected a slice from 1"),
        ("ct.mha", 8, "there is no slice 8; expected a slice from 1 (at the base) to 7"),
    ):
        with pytest.raises(InputError, match=re.escape(f"{name}: {message}")) as refusal:
            read_slice(tmp_path / name, number)
        assert "\n" not in str(refusal.value)


def test_a_picture_with_too_many_pixels_is_refused_before_it_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("1", (8193, 8)).save(tmp_path / "wide.png")
    Image.new("1", (13300, 13300)).save(tmp_path / "large.png")
    Image.new("1", (8192, 8)).save(tmp_path / "most.png")
    assert read_slice(tmp_path / "most.png").shape == (8, 8192, 3)
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("it is loaded"))
    for name, size in (("wide.png", "8193 x 8"), ("large.png", "13300 x 13300")):
        with pytest.raises(InputError, match=f"a picture of {size} pixels; expected at most 8192 pixels a side"):
            read_slice(tmp_path / name)


@pytest.mark.parametrize("kind", ["EPS", "BMP", "TIFF"])
def test_only_png_and_jpeg_are_opened_whatever_a_file_is_called(tmp_path: Path, kind: str) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "slice.png", kind)
    with pytest.raises(InputError, match=r"slice\.png: not a picture that can be read \(cannot identify"):
        read_slice(tmp_path / "slice.png")


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_picture_is_turned_as_its_orientation_says(tmp_path: Path, suffix: str) -> None:
    upright = np.zeros((40, 24), np.uint8)
    upright[:16] = 200
    exif = Image.Exif()
    exif[0x0112] = 6  # the first row of the file is the right side of the picture: EXIF 2.3, table 4.6.4
    Image.fromarray(np.rot90(upright)).save(tmp_path / f"slice{suffix}", exif=exif)
    np.testing.assert_allclose(read_slice(tmp_path / f"slice{suffix}")[..., 0], upright, atol=30)


def test_a_picture_whose_orientation_is_damaged_is_refused(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((40, 24), np.uint8)).save(tmp_path / "slice.jpg", exif=exif)
    content = (tmp_path / "slice.jpg").read_bytes()
    entry = b"\x12\x01\x03\x00\x01\x00\x00\x00" if b"II*\x00" in content else b"\x01\x12\x00\x03\x00\x00\x00\x01"
    assert entry in content
    (tmp_path / "slice.jpg").write_bytes(content.replace(entry, entry.replace(b"\x01\x00\x00\x00", b"\xff\xff\x00\x00")[:8]))
    if b"MM\x00*" in content:
        (tmp_path / "slice.jpg").write_bytes(content.replace(entry, entry[:4] + b"\x00\x00\xff\xff"))
    with pytest.raises(InputError, match=r"slice\.jpg: its orientation \(EXIF\) is damaged"):
        read_slice(tmp_path / "slice.jpg")


def test_a_dicom_file_whose_name_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "slice.dcm", HOUNSFIELD).rename(tmp_path / "slice\udcff.dcm")
    code = "import os, sys; from model.slices.images import read_slice; read_slice(os.fsdecode(os.fsencode(sys.argv[1])))"
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1, "it would be negative, had the library ended the process"
    assert r"slice\udcff.dcm: the name is not valid UTF-8; expected a name in UTF-8" in done.stderr
