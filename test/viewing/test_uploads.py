"""What becomes of uploads: read from a private folder that is gone at once, under names that are not the user's."""

from __future__ import annotations

import contextlib
import io
import stat
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from model.errors import InputError
from model.imaging.scan import Scan
from model.viewing import uploads
from model.viewing.case import unpacked_output
from model.viewing.uploads import Upload, private_folder, read_upload
from test.phantom import Phantom

NAME = "DOE^JANE_1960"


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where private folders are made."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def upload_of(image: sitk.Image, tmp_path: Path, suffix: str) -> Upload:
    path = tmp_path / f"image{suffix}"
    sitk.WriteImage(image, str(path))
    return Upload(f"{NAME}{suffix}", path.read_bytes())


def dicom_series(image: sitk.Image, tmp_path: Path) -> list[Upload]:
    """The slices of an image as DICOM files of one series, with a patient's name in them."""
    files = []
    for level in range(image.GetDepth()):
        one = image[:, :, level : level + 1]
        position = "\\".join(str(value) for value in image.TransformIndexToPhysicalPoint((0, 0, level)))
        tags = {"0020|000d": "1.2.3.1", "0020|000e": "1.2.3.2", "0020|0032": position, "0020|0013": str(level)}
        for key, value in {"0010|0010": NAME, "0008|0060": "CT", "0008|0018": f"1.2.3.3.{level}", **tags}.items():
            one.SetMetaData(key, value)
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetFileName(str(tmp_path / f"{level}.dcm"))
        writer.Execute(one)
        files.append(Upload(f"{NAME}.{level}", (tmp_path / f"{level}.dcm").read_bytes()))
    return files


def zipped(files: list[Upload]) -> Upload:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            archive.writestr(f"../../{NAME}/{file.name}", file.content)
    return Upload(f"{NAME}.zip", buffer.getvalue())


@pytest.mark.parametrize("suffix", [".mha", ".nii", ".nii.gz", ".nrrd", ".NII.GZ"])
def test_a_volume_is_read_from_one_file(phantom: Phantom, tmp_path: Path, temporary: Path, suffix: str) -> None:
    ct = phantom.images()[0]
    upload = upload_of(ct, tmp_path, suffix.lower())
    volume = read_upload([Upload(f"{NAME}{suffix}", upload.content)], "CT")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(volume.image), phantom.hounsfield)
    assert not list(temporary.iterdir())


@pytest.mark.parametrize("how", ["files", "zip"])
def test_a_dicom_series_is_read_from_its_files_or_a_zip(phantom: Phantom, tmp_path: Path, temporary: Path, how: str) -> None:
    files = dicom_series(phantom.images()[0][:, :, :5], tmp_path)
    volume = read_upload([zipped(files)] if how == "zip" else files[::-1], "CT")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(volume.image), phantom.hounsfield[:5])
    assert not list(temporary.iterdir())
    assert not any((folder / NAME).exists() for folder in (temporary, tmp_path, tmp_path.parent)), "it was unpacked elsewhere"


BESIDE = {
    f"__MACOSX/{NAME}/._0": b"\0\5\x16\7",
    f"{NAME}/.DS_Store": b"\0\0\0\1Bud1",
    f"{NAME}/README.txt": b"text",
    f"{NAME}/LOCKFILE": b"",
    f"{NAME}/DICOMDIR": b"\0" * 128 + b"DICM",
}
"""What archives of DICOM files hold beside them."""


@pytest.mark.parametrize("how", ["files", "zip"])
def test_what_lies_beside_the_files_of_a_series_is_passed_over(phantom: Phantom, tmp_path: Path, how: str) -> None:
    files = dicom_series(phantom.images()[0][:, :, :5], tmp_path)
    files[0] = Upload(f"{NAME}.dcm", files[0].content)
    if how == "zip":
        uploaded = [zipped([*(Upload(name, content) for name, content in BESIDE.items()), *files])]
    else:
        names = {Path(name).name: content for name, content in BESIDE.items() if "README" not in name}
        uploaded = [*(Upload(name, content) for name, content in names.items()), *files]
    volume = read_upload(uploaded, "CT")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(volume.image), phantom.hounsfield[:5])


def test_a_file_that_is_called_dicom_and_is_none_is_refused(phantom: Phantom, tmp_path: Path) -> None:
    files = dicom_series(phantom.images()[0][:, :, :3], tmp_path)
    with pytest.raises(InputError, match=r"CT/00003\.dcm: not a DICOM file"):
        read_upload([zipped([*files, Upload("broken.DCM", b"text")])], "CT")


def damaged_zip(name: str, kind: int) -> Upload:
    """A .zip of one file whose compressed bytes are overwritten."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", kind) as archive:
        archive.writestr(name, np.random.default_rng(0).bytes(5000))
    content = bytearray(buffer.getvalue())
    content[30 + len(name) : 30 + len(name) + 200] = b"\xff" * 200  # behind the local header
    return Upload(f"{NAME}.zip", bytes(content))


@pytest.mark.parametrize("kind", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2, zipfile.ZIP_STORED])
def test_a_damaged_zip_is_refused_however_it_is_compressed(kind: int) -> None:
    with pytest.raises(InputError, match=r"^CT: the \.zip cannot be unpacked"):
        read_upload([damaged_zip("1.dcm", kind)], "CT")
    with (
        pytest.raises(InputError, match=r"^upload: the \.zip cannot be unpacked"),
        unpacked_output(damaged_zip("results.json", kind)),
    ):
        pass


def test_the_folder_is_private_and_goes_whatever_happens(temporary: Path) -> None:
    with private_folder() as folder:
        assert folder.parent == temporary
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        (folder / "file").write_bytes(b"content")
    assert not list(temporary.iterdir())
    with contextlib.suppress(RuntimeError), private_folder() as folder:
        (folder / "file").write_bytes(b"content")
        raise RuntimeError
    assert not list(temporary.iterdir())


def test_what_cannot_be_read_is_refused_without_a_name_of_the_users(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch, phantom: Phantom
) -> None:
    whole = upload_of(phantom.images()[0], tmp_path, ".mha")
    series = dicom_series(phantom.images()[0][:, :, :3], tmp_path)
    for files, message in (
        ([Upload(f"{NAME}.mha", b"nonsense")], "CT.mha: "),
        ([Upload(f"{NAME}.nii.gz", b"")], "CT.nii.gz: the file is empty"),
        ([Upload(f"{NAME}.mha", whole.content[:3000])], "CT.mha: "),
        ([Upload(f"{NAME}.zip", b"nonsense")], "CT: the .zip cannot be unpacked"),
        ([Upload(f"{NAME}.txt", b"text")], "CT: 1 file of type .txt"),
        ([whole, whole], "CT: 2 files of type .mha"),
        ([Upload(NAME, b"nonsense")], "CT"),
    ):
        with pytest.raises(InputError) as refusal:
            read_upload(files, "CT")
        assert str(refusal.value).startswith(message)
        assert "DOE" not in str(refusal.value)
        assert ".mhd" not in str(refusal.value), "the page does not take it"
        assert "folder that" not in str(refusal.value)
        assert str(temporary) not in str(refusal.value)
        assert not list(temporary.iterdir())
    monkeypatch.setattr(uploads, "available_memory", lambda: 1000)
    with pytest.raises(InputError, match=r"CT: the \.zip unpacks to"):
        read_upload([zipped(series)], "CT")


def test_an_upload_shows_neither_name_nor_content() -> None:
    assert "DOE" not in repr(Upload(f"{NAME}.mha", b"DOE"))


def test_a_mask_on_another_grid_is_said_with_the_share_of_it_that_lies_in_the_ct(phantom: Phantom, tmp_path: Path) -> None:
    ct, lungs = phantom.images()
    scan = Scan.of(
        read_upload([upload_of(ct, tmp_path, ".mha")], "CT"), read_upload([upload_of(lungs[::2], tmp_path, ".nrrd")], "mask")
    )
    warning = next(warning for warning in scan.warnings if "another grid" in warning)
    share = 100 * np.count_nonzero(scan.lung) / np.count_nonzero(phantom.lungs)
    assert warning.endswith(f"resampled onto it; its volume there is {share:.1f} % of before"), warning
