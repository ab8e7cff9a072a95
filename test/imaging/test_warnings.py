"""A warning about a file reaches the result on every road: with a mask, with segmented lungs, and from an upload."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import SimpleITK as sitk

from model.container.command import main
from model.imaging.readers import read_volume
from model.imaging.scan import Scan
from model.lungs.segmentation import segment_lungs
from model.subtyping import EmphysemaSubtyper
from model.viewing.case import score_uploads
from model.viewing.uploads import Upload
from test.imaging.series import write_dicom_series
from test.phantom import Phantom

TILT = "the slices are tilted by 11.3 degrees"
"""arctan(1 mm / 5 mm)."""


@pytest.fixture(scope="module")
def tilted(phantom: Phantom, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `series`, whose slices are 5 mm apart and each 1 mm behind the one before, and `mask.mha`."""
    folder = tmp_path_factory.mktemp("tilted")
    ct, mask = phantom.images()
    sitk.WriteImage(mask, str(folder / "mask.mha"))
    write_dicom_series(ct, folder / "series", tags=lambda index: {"0020|0032": f"-150\\{-120 + index}\\{700 + 5 * index}"})
    return folder


def result_of_command(*arguments: str | Path) -> list[str]:
    """The warnings in `results.json` after a run of the command; `--output` is the last argument."""
    assert main([str(argument) for argument in arguments]) == 0
    (result,) = json.loads((Path(arguments[-1]) / "results.json").read_text())
    return list(result["warnings"])


def uploads(path: Path) -> list[Upload]:
    return [Upload(file.name, file.read_bytes()) for file in (sorted(path.iterdir()) if path.is_dir() else [path])]


def test_the_tilt_of_a_series_comes_with_its_volume_and_its_scan(tilted: Path) -> None:
    volume = read_volume(tilted / "series")
    (warning,) = volume.warnings
    assert warning.startswith(TILT)
    assert Scan.read(tilted / "series", tilted / "mask.mha").warnings[0] == warning
    assert Scan.read(tilted / "series").warnings == (warning,)
    assert Scan.of(volume, segment_lungs(volume)).warnings == (warning,)


def test_the_command_reports_it_with_a_mask_and_with_segmented_lungs(tilted: Path, bundle: Path, tmp_path: Path) -> None:
    weights = ("--weights", bundle)
    given = result_of_command(
        "--ct", tilted / "series", "--lung-mask", tilted / "mask.mha", *weights, "--output", tmp_path / "given"
    )
    assert given[0].startswith(TILT)
    found = result_of_command("--ct", tilted / "series", "--segment-lungs", *weights, "--output", tmp_path / "found")
    assert found[0].startswith(TILT)


@pytest.mark.parametrize("with_mask", [True, False])
def test_the_viewer_reports_it_of_an_upload(tilted: Path, bundle: Path, with_mask: bool) -> None:
    subtyper = EmphysemaSubtyper.from_bundle(bundle)
    mask = uploads(tilted / "mask.mha") if with_mask else []
    case = score_uploads(subtyper, uploads(tilted / "series"), mask)
    assert case.result.warnings[0].startswith(TILT)
