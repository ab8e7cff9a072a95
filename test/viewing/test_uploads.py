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
from model.viewing import uploads
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
        ([Upload(f"{NAME}.txt", b"text")], "CT: 1 files of type .txt"),
        ([whole, whole], "CT: 2 files of type .mha"),
        ([Upload(NAME, b"nonsense")], "CT"),
    ):
        with pytest.raises(InputError) as refusal:
            read_upload(files, "CT")
        assert str(refusal.value).startswith(message)
        assert "DOE" not in str(refusal.value)
        assert str(temporary) not in str(refusal.value)
        assert not list(temporary.iterdir())
    monkeypatch.setattr(uploads, "available_memory", lambda: 1000)
    with pytest.raises(InputError, match=r"CT: the \.zip unpacks to"):
        read_upload([zipped(series)], "CT")


def test_an_upload_shows_neither_name_nor_content() -> None:
    assert "DOE" not in repr(Upload(f"{NAME}.mha", b"DOE"))
