"""What messages say of files that cannot be read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model.cohort.summary import read_columns
from model.container.results import parse_results
from model.errors import InputError, reason
from model.evaluation.challenge import read_submission
from model.slices.dataset import PATIENTS_FILE
from model.training.options import RunOptions
from model.training.patches_cohort import read_class_patches
from model.training.slices_cohort import listed_slices, patients_in
from model.viewing.access import password_in


def test_a_reason_does_not_name_the_file() -> None:
    assert reason(FileNotFoundError(2, "No such file or directory", "scan.mha")) == "No such file or directory"
    assert reason(FileNotFoundError(2, "Failed to open local file 'scan.parquet'")) == "No such file or directory"
    assert reason(OSError("not a gzip file")) == "not a gzip file"
    assert reason(ValueError("line 1 is empty")) == "line 1 is empty"
    assert reason(EOFError()) == "EOFError"


@pytest.mark.parametrize(
    "read",
    [
        lambda path: read_class_patches(path, "first"),
        lambda path: listed_slices(path.parent, ["CLE"]),
        patients_in,
        lambda path: RunOptions.read(path.parent),
        parse_results,
        lambda path: read_submission(path.parent, None, 1),
        lambda path: read_columns(path, ["ct"]),
        password_in,
    ],
)
def test_a_file_that_is_missing_is_named_once(read: Callable[[Path], Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\(No such file or directory\); expected") as caught:
        read(tmp_path / PATIENTS_FILE)
    assert str(caught.value).count(str(tmp_path)) == 1
