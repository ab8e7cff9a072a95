"""An image that cannot be written is an error of the file system that names the file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import SimpleITK as sitk

from model.imaging.native import captured_stderr
from model.imaging.writing import write_image

IMAGE = sitk.Image(6, 5, 4, sitk.sitkInt16)


@pytest.mark.parametrize("suffix", [".mha", ".nii.gz", ".nrrd"])
def test_a_file_that_cannot_be_written_is_named_in_one_line(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"missing/ct{suffix}"
    with captured_stderr(), pytest.raises(OSError, match=rf"^{re.escape(str(path))}: the image cannot be written \(.+\)$"):
        write_image(IMAGE, path)
    with captured_stderr(), pytest.raises(OSError, match=rf"^final{suffix}: the image cannot be written"):
        write_image(IMAGE, path, Path(f"final{suffix}"))


def test_the_reason_is_that_of_the_system(tmp_path: Path) -> None:
    with captured_stderr(), pytest.raises(OSError, match=r"\(No such file or directory\)"):
        write_image(IMAGE, tmp_path / "missing/ct.mha")
