from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.slices import CLASSES
from model.slices.dataset import PATIENTS_FILE

PATIENTS, SLICES_EACH = 5, 2


@pytest.fixture(scope="session")
def slices_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty slices of twenty patients; each class has stripes of its own width or direction, to be learnt in a few steps."""
    folder = tmp_path_factory.mktemp("slices")
    rng = np.random.default_rng(0)
    rows = []
    for index, label in enumerate(CLASSES):
        (folder / label).mkdir()
        stripes = np.indices((64, 64))[index % 2] // (2, 8)[index // 2] % 2
        for patient in range(PATIENTS):
            for number in range(SLICES_EACH):
                grey = (40 + 160 * stripes + rng.integers(0, 40, (64, 64))).astype(np.uint8)
                name = f"{label}/p{patient}-{number}.png"
                Image.fromarray(grey).save(folder / name)
                rows.append((name, f"{label}-{patient}"))
    with (folder / PATIENTS_FILE).open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("file", "patient"), *rows])
    return folder
