from __future__ import annotations

from pathlib import Path

import pytest

from model.cohort.manifest import TrainingCase, read_manifest
from test.training.cohort import write_cohort


@pytest.fixture(scope="session")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four phantoms to train on and two to validate on, with truth maps."""
    return write_cohort(tmp_path_factory.mktemp("cohort"))


@pytest.fixture(scope="session")
def lesioned(manifest: Path) -> TrainingCase:
    """A phantom with a sphere of 36 mm radius."""
    return next(case for case in read_manifest(manifest).cases if case.entity == "c")
