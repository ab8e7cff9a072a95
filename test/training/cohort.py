"""Small cohorts of phantoms with a lesion each, written as files with a manifest: what the training tests learn from."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from test.phantom import Phantom, make_phantom

CENTRE_MM = (120.0, 126.0, 93.0)
"""Somewhere inside the phantom's right lung, from its first voxel."""


def write_volume(path: Path, array: npt.NDArray[np.generic], spacing: Sequence[float], origin: float = 0.0) -> Path:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing([float(distance) for distance in reversed(spacing)])
    image.SetOrigin((origin, origin, origin))
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path), useCompression=True)
    return path


def write_phantom(folder: Path, entity: str, radius_mm: float, noise_seed: int = 0) -> npt.NDArray[np.bool_]:
    """Write `entity`_ct.mha, _lung.mha, _cle.mha (a sphere of that radius) and _pse.mha (empty); return the sphere."""
    phantom: Phantom = make_phantom()
    phantom, lesion = phantom.with_lesion(CENTRE_MM, radius_mm)
    noise = np.random.default_rng(noise_seed).normal(0, 15, phantom.hounsfield.shape)
    hounsfield = np.clip(phantom.hounsfield + noise, -1024, 3071).astype(np.int16)
    lesion &= phantom.lungs > 0
    write_volume(folder / f"{entity}_ct.mha", hounsfield, phantom.spacing)
    write_volume(folder / f"{entity}_lung.mha", phantom.lungs, phantom.spacing)
    write_volume(folder / f"{entity}_cle.mha", lesion.astype(np.uint8), phantom.spacing)
    write_volume(folder / f"{entity}_pse.mha", np.zeros(lesion.shape, np.uint8), phantom.spacing)
    return lesion


def row(entity: str, centrilobular: object, paraseptal: object, split: str, *, truth: bool = True) -> dict[str, str]:
    """A row of a manifest for a case of `write_phantom`."""
    return {
        "entity": entity,
        "ct": f"{entity}_ct.mha",
        "lung_mask": f"{entity}_lung.mha",
        "centrilobular": str(centrilobular),
        "paraseptal": str(paraseptal),
        "split": split,
    } | ({"centrilobular_truth": f"{entity}_cle.mha", "paraseptal_truth": f"{entity}_pse.mha"} if truth else {})


def write_manifest(path: Path, rows: Sequence[dict[str, str]], delimiter: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_cohort(folder: Path) -> Path:
    """Four phantoms to train on and two to validate on; returns the manifest."""
    cases = [
        ("a", 0.0, 0, "train"),
        ("b", 25.0, 1, "train"),
        ("c", 36.0, 2, "train"),
        ("d", 42.0, 3, "train"),
        ("e", 0.0, 0, "validation"),
        ("f", 36.0, 2, "validation"),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for seed, (entity, radius_mm, score, split) in enumerate(cases):
        write_phantom(folder, entity, radius_mm, seed)
        rows.append(row(entity, score, 0, split))
    return write_manifest(folder / "cohort.csv", rows)
