"""A mask that cannot be the lungs' is scored, and `results.json` says what is wrong with it, with the numbers that tell.

`test/lungs/test_plausibility.py` holds what each warning measures; here they go through the whole road.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import process
from test.phantom import Phantom, make_phantom, write_case

AIR_HU = -1000


@pytest.fixture(scope="module")
def chest() -> Phantom:
    """Two lungs, a trachea between them from their middle to the top, and a table below the back."""
    phantom = make_phantom((60, 66, 80), (4.0, 4.0, 4.0))
    hounsfield = phantom.hounsfield.copy()
    hounsfield[30:, 28:33, 38:43] = AIR_HU
    hounsfield[:, 64, 4:76] = -200
    return dataclasses.replace(phantom, hounsfield=hounsfield)


def one_lung(lungs: np.ndarray) -> None:
    lungs[lungs == 2] = 0


def airways(lungs: np.ndarray) -> None:
    lungs[30:, 28:33, 38:43] = 1


def table(lungs: np.ndarray) -> None:
    lungs[:, 64, 4:76] = 1


def another_patient(lungs: np.ndarray) -> None:
    """Whose lungs lie 40 mm higher and 24 mm farther to the front."""
    lungs[:] = np.roll(lungs, (10, -6), axis=(0, 1))


def pieces(lungs: np.ndarray) -> None:
    """Every lung cut into slabs."""
    lungs[::6] = 0


WARNINGS: list[tuple[Callable[[np.ndarray], None], str]] = [
    (one_lung, r"the mask covers one lung only: \d+% of it lies on the patient's right, and \d+% of the air inside the body"),
    (airways, r"the mask covers airways: it holds a tube of air, \d+ mm long"),
    (table, r"the mask covers the table or the air around the patient: \d+% of it lies outside the body"),
    (another_patient, r"the mask does not fit the scan and may be another patient's: \d+% of it lies above -300 HU"),
    (pieces, r"the mask consists of \d+ pieces, and \d+% of it lies outside the two largest"),
]


@pytest.mark.parametrize(("change", "expected"), WARNINGS, ids=[change.__name__ for change, _ in WARNINGS])
def test_results_say_what_is_wrong_with_a_mask(
    chest: Phantom,
    bundle: Path,
    tmp_path: Path,
    change: Callable[[np.ndarray], None],
    expected: str,
) -> None:
    lungs = chest.lungs.copy()
    change(lungs)
    found = warnings_of(dataclasses.replace(chest, lungs=lungs), bundle, tmp_path)
    assert [text for text in found if re.match(expected, text)], found


def test_of_the_lungs_own_mask_results_say_nothing(chest: Phantom, bundle: Path, tmp_path: Path) -> None:
    assert warnings_of(chest, bundle, tmp_path) == []


def warnings_of(patient: Phantom, bundle: Path, folder: Path) -> list[str]:
    """What `results.json` warns of, beside scores."""
    write_case(folder, *patient.images())
    assert process.main(["--input", str(folder), "--output", str(folder / "output"), "--weights", str(bundle)]) == 0
    (result,) = json.loads((folder / "output/results.json").read_text())
    assert result["metrics"]["cle_severity_score"] in range(6)
    warnings: list[str] = result["warnings"]
    return warnings
