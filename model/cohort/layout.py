"""Where the files of a cohort lie: its reference, and a folder for each case, laid out as the platform does.

    COHORT/reference.csv
    COHORT/ENTITY/images/ct/ENTITY.mha
    COHORT/ENTITY/images/lung-mask/ENTITY.mha
    COHORT/ENTITY/truth/centrilobular.mha, paraseptal.mha

A simulated cohort has all of it, so that one case is scored with `process.py --input COHORT/ENTITY`. The ground truth of a
challenge has `reference.csv`, and `ENTITY/truth` for cases whose voxels are known.
"""

from __future__ import annotations

import os
from pathlib import Path

from ..container.grand_challenge import CT_FOLDER, LONGEST_ENTITY, MASK_FOLDERS
from ..fleischner import SUBTYPES

REFERENCE_FILE = "reference.csv"
TRUTH_FOLDER = "truth"


def is_file_name(entity: str, longest: int = LONGEST_ENTITY) -> bool:
    """Whether files can be named so, with at most `longest` bytes, without leaving their folder."""
    fits = 0 < len(os.fsencode(entity)) <= longest
    return fits and Path(entity).name == entity and not entity.startswith(".")


def ct_path(case: Path, entity: str) -> Path:
    """The CT in a case's folder."""
    return case / CT_FOLDER / f"{entity}.mha"


def lung_mask_path(case: Path, entity: str) -> Path:
    """The lung mask in a case's folder."""
    return case / MASK_FOLDERS[0] / f"{entity}.mha"


def truth_path(case: Path, subtype: str) -> Path:
    """The map of one subtype's voxels in a case's folder, on the CT's grid."""
    return case / TRUTH_FOLDER / f"{subtype}.mha"


def truth_paths(cohort: Path, entity: str) -> tuple[Path, ...]:
    """The truth of one case, one file for each of `model.fleischner.SUBTYPES`."""
    return tuple(truth_path(cohort / entity, subtype.name) for subtype in SUBTYPES)
