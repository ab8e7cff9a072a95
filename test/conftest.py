from __future__ import annotations

import dataclasses
import locale
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from test.phantom import COARSE_INPUT, HALF_INPUT, LESION_HU, Phantom, make_phantom, write_dark_detector

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
REQUIRE_ALL = "REQUIRE_ALL"
"""Environment variable that `.ci/run` sets: what a test needs must be there, and the test fails where it is not."""


def need(available: bool, what: str) -> None:
    """Skip the running test where the machine lacks what it needs; with `REQUIRE_ALL=1` fail it."""
    if not available:
        outcome = pytest.fail if os.environ.get(REQUIRE_ALL) == "1" else pytest.skip
        outcome(f"needs {what}")


@pytest.fixture(autouse=True)
def _locale_as_it_was() -> Iterator[None]:
    """SimpleITK's writer of DICOM switches the process's locale to C, and so what files are read as."""
    before = locale.setlocale(locale.LC_ALL)
    yield
    locale.setlocale(locale.LC_ALL, before)


@pytest.fixture(autouse=True)
def _threads_as_they_were() -> Iterator[None]:
    """Commands and scripts set how many threads torch uses, for the whole process; sums of floats depend on it."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def phantom() -> Phantom:
    return make_phantom()


@pytest.fixture(scope="session")
def lesioned() -> Phantom:
    """A finer phantom: about a quarter of the right lung's height is emphysema, the left lung is sound."""
    phantom = make_phantom((100, 128, 160), (2.5, 2.0, 2.0))
    hounsfield = phantom.hounsfield.copy()
    hounsfield[42:62][phantom.lungs[42:62] == 1] = LESION_HU
    return dataclasses.replace(phantom, hounsfield=hounsfield)


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dark detector with the paper's profile, on a coarse input."""
    return write_dark_detector(tmp_path_factory.mktemp("bundle") / "dark", input_shape=COARSE_INPUT)


@pytest.fixture(scope="session")
def fine_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same on an input of half of the paper's size in each direction."""
    return write_dark_detector(tmp_path_factory.mktemp("bundle") / "dark", input_shape=HALF_INPUT)


@pytest.fixture(scope="session")
def full_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same on the paper's input, for percentages and maps that are held to the scan's own voxels."""
    return write_dark_detector(tmp_path_factory.mktemp("bundle") / "dark")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Reference data that does not come with the repository."""
    need(SHARED.is_dir(), "the reference data in ../shared, which does not come with the repository")
    return SHARED
