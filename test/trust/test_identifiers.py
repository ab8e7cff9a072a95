"""What a file says of the patient stays in it: no log, result or picture repeats it, whether the run ends well or not.

The one exception is what `--dicom` asks for: objects derived from a DICOM series name its patient, and nothing else does.

Files are named by the user, and results after them: these names are not looked for here.
"""

from __future__ import annotations

import gzip
import logging
from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest
import SimpleITK as sitk

import process
from test.imaging.series import write_dicom_series
from test.phantom import Phantom, make_phantom

NAME, NUMBER, BIRTH_DATE, HOSPITAL = "Zweistein^Ottilie", "4711-0815", "19551105", "Sankt-Nirgendwo"
SECRETS = (*NAME.split("^"), NUMBER, BIRTH_DATE, HOSPITAL)

DICOM_TAGS = {
    "0010|0010": NAME,
    "0010|0020": NUMBER,
    "0010|0030": BIRTH_DATE,
    "0010|4000": f"{NAME} {NUMBER}",
    "0008|0050": NUMBER,
    "0008|0080": HOSPITAL,
    "0008|0090": NAME,
    "0008|1030": f"CT of {NAME}",
    "0008|103e": f"Thorax {NAME}",
    "0020|0010": NUMBER,
    "0020|4000": NAME,
    "0020|0052": "1.2.826.0.1.3680043.2.1125.9",
}
"""Patient's name, number, date of birth and comments; accession number, institution, physician, descriptions, study number."""

KEYS = {"PatientName": NAME, "PatientID": NUMBER, "Comment": f"{NAME} {BIRTH_DATE}", "InstitutionName": HOSPITAL}

# Each writes the CT at a place and returns its file, or the first of them.
Writer = Callable[[sitk.Image, Path], Path]


def with_keys(suffix: str) -> Writer:
    def write(image: sitk.Image, folder: Path) -> Path:
        image = sitk.Image(image)
        for key, value in KEYS.items():
            image.SetMetaData(key, value)
        sitk.WriteImage(image, str(folder / f"scan{suffix}"))
        return folder / f"scan{suffix}"

    return write


def nifti(image: sitk.Image, folder: Path) -> Path:
    """Texts stand in db_name, descrip, aux_file and intent_name."""
    path = folder / "scan.nii"
    sitk.WriteImage(image, str(path))
    data = bytearray(path.read_bytes())
    for place, secret in zip((14, 148, 228, 328), (NUMBER, NAME, HOSPITAL, BIRTH_DATE), strict=True):
        data[place : place + len(secret)] = secret.encode()
    path.unlink()
    path = folder / "scan.nii.gz"
    path.write_bytes(gzip.compress(bytes(data), 1))
    return path


def dicom(image: sitk.Image, folder: Path) -> Path:
    return min(write_dicom_series(image, folder / "series", tags=lambda _: DICOM_TAGS).iterdir())


WRITERS: dict[str, Writer] = {"mha": with_keys(".mha"), "nrrd": with_keys(".nrrd"), "nii.gz": nifti, "dicom": dicom}


def untouched(_: Path) -> None:
    pass


def cut_off(path: Path) -> None:
    """In the middle of the voxels, or of a compressed stream."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def misspelt(path: Path) -> None:
    """The header breaks: sizes become text, and a value that the reader may quote is the patient's name."""
    data = path.read_bytes()
    if path.name.endswith(".gz"):
        data = gzip.compress(gzip.decompress(data)[:148] + NAME.encode() * 40, 1)
    elif path.suffix == ".dcm":
        series = pydicom.dcmread(path)
        series.PatientID = f"{NAME} {NUMBER} the second"
        series.save_as(path)
        return
    for field in (b"DimSize = ", b"sizes: ", b"ElementType = ", b"type: "):
        data = data.replace(field, field + NAME.encode() + b" ", 1)
    path.write_bytes(data)


@pytest.fixture(scope="module")
def patient() -> Phantom:
    return make_phantom((16, 20, 26), (16.0, 13.0, 12.5))


@pytest.mark.parametrize("damage", [untouched, cut_off, misspelt], ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("kind", WRITERS)
def test_nothing_that_names_the_patient_comes_out(
    patient: Phantom,
    bundle: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    damage: Callable[[Path], None],
) -> None:
    ct, mask = patient.images()
    for place in ("ct", "lung-mask"):
        (tmp_path / "input/images" / place).mkdir(parents=True)
    path = WRITERS[kind](ct, tmp_path / "input/images/ct")
    assert all(secret.encode() in holding_bytes(path) for secret in SECRETS), "the test's own file holds them"
    with_keys(".mha")(mask, tmp_path / "input/images/lung-mask")
    damage(path)
    output = tmp_path / "output"
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's own; process.main sets its up only where there are none
    options = ["--input", f"{tmp_path}/input", "--output", str(output), "--weights", str(bundle)]
    code = process.main([*options, "--preview", "--report", "--save-lung-mask", "--dicom"])
    assert code == (0 if damage is untouched else 2)
    logs = "".join(capfd.readouterr())
    assert "running on" in logs
    files = [path for path in output.rglob("*") if path.is_file()]
    derived = [path for path in files if path.is_relative_to(output / "dicom")]
    assert len(derived) == (3 if code == 0 and kind == "dicom" else 0)
    assert all(identifier.encode() in path.read_bytes() for path in derived for identifier in (NAME, NUMBER, BIRTH_DATE))
    written = [path for path in files if path not in derived]
    assert len(written) == (11 if code == 0 else 1)
    for secret in SECRETS:
        assert secret not in logs
        assert not [path for path in written if secret.encode() in path.read_bytes() or secret in path.name]


def holding_bytes(path: Path) -> bytes:
    data = path.read_bytes()
    return gzip.decompress(data) if path.suffix == ".gz" else data
