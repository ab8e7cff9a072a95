"""A scan at full size, 512 x 512 x 630: it runs, and in the memory of a small machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from model.weights import untrained_bundle, write_bundle
from test.conftest import ROOT
from test.phantom import BODY_HU, LUNG_HU, write_case


@pytest.mark.slow
def test_a_full_size_scan_runs_in_under_6_gb(shared: Path, tmp_path: Path) -> None:
    """The lungs of a COPD patient, filled with noise, through the full network (ResNet-34, base width 64)."""
    mask = sitk.ReadImage(str(shared / "data" / "copd-lungs-10002k" / "lungs.mha"))
    lungs = sitk.GetArrayViewFromImage(mask)
    noise = np.random.default_rng(0).standard_normal(lungs.shape, np.float32) * 30
    ct = sitk.GetImageFromArray((np.where(lungs > 0, LUNG_HU, BODY_HU) + noise).astype(np.int16))
    ct.CopyInformation(mask)
    write_case(tmp_path / "input", ct, mask, mask_folder="lungs")
    write_bundle(tmp_path / "weights", *untrained_bundle(base_width=64, seed=0))
    options = [f"--{name}={tmp_path / name}" for name in ("input", "output", "weights")]
    process = subprocess.Popen([sys.executable, ROOT / "process.py", *options], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert usage.ru_maxrss < 6e6  # in kB
