from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.slices import CLASSES
from model.slices.dataset import PATIENTS_FILE
from model.slices.images import LUNG_WINDOW
from test.slices.chest import LUNGS, chest

PATIENTS, SLICES_EACH = 5, 2


@pytest.fixture(scope="session")
def slices_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty chests of twenty patients; the lungs of each class have stripes of their own, to be learnt in a few steps."""
    folder = tmp_path_factory.mktemp("slices")
    rng = np.random.default_rng(0)
    rows = []
    for index, label in enumerate(CLASSES):
        (folder / label).mkdir()
        stripes = np.indices((320, 320))[index % 2] // (8, 30)[index // 2] % 2
        for patient in range(PATIENTS):
            for number in range(SLICES_EACH):
                hounsfield = chest()
                hounsfield[LUNGS] = -960 + 200 * stripes[LUNGS] + rng.normal(0, 15, np.count_nonzero(LUNGS))
                name = f"{label}/p{patient}-{number}.png"
                Image.fromarray(LUNG_WINDOW.grey(hounsfield)).save(folder / name)
                rows.append((name, f"{label}-{patient}"))
    with (folder / PATIENTS_FILE).open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("file", "patient"), *rows])
    return folder
