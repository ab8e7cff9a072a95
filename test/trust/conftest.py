from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from test.phantom import LESION_HU, Phantom, make_phantom, write_case


@pytest.fixture(scope="session")
def noisy() -> Phantom:
    """A coarse phantom without symmetry and with noise: a dark part in the right lung, and maps that do not compress away."""
    phantom = make_phantom((40, 51, 64), (6.25, 5.0, 5.0))
    noise = np.random.default_rng(7).normal(0, 25, phantom.lungs.shape)
    hounsfield = (phantom.hounsfield + noise).astype(np.int16)
    dark = np.zeros(phantom.lungs.shape, bool)
    dark[18:26, :24] = True
    hounsfield[dark & (phantom.lungs == 1)] = LESION_HU
    return dataclasses.replace(phantom, hounsfield=hounsfield)


@pytest.fixture
def case(noisy: Phantom, tmp_path: Path) -> Path:
    """That phantom as an input folder of one case named `scan`."""
    return write_case(tmp_path / "input", *noisy.images())
