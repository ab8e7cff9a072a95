"""The slice bundle that ships: the same answer in every window, a place that it looked at, and what it says of itself."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from model.slices import CLASSES
from model.slices.__main__ import SHIPPED_BUNDLE
from model.slices.bundle import SliceClassifier
from model.slices.images import as_hounsfield, read_slice
from model.slices.report import WINDOWS, keeps_class, near_pleura
from model.slices.simulated import slices_of_patient
from test.conftest import need
from test.slices.chest import chest


@pytest.fixture(scope="module")
def classifier() -> SliceClassifier:
    return SliceClassifier.from_bundle(SHIPPED_BUNDLE)


def test_it_says_what_it_was_trained_on_and_how_often_it_is_right(classifier: SliceClassifier) -> None:
    metadata = classifier.metadata
    assert "github.com/muhammedtalo/Emphysema" in metadata.trained_on
    assert metadata.performance["accuracy"]["percent"] > 85
    assert min(rate["percent"] for rate in metadata.performance["class_recall"].values()) > 75
    assert 0.25 < metadata.uncertain_below < 0.95
    assert sum(path.stat().st_size for path in SHIPPED_BUNDLE.iterdir()) < 60e6


@pytest.mark.slow
def test_a_chest_keeps_its_class_over_ten_windows_and_the_network_looked_at_something(classifier: SliceClassifier) -> None:
    assert len(WINDOWS) == 10
    assert keeps_class(classifier, chest().astype(np.float32))
    answer = classifier.predict(chest().astype(np.float32))
    assert answer.attention.shape == (320, 320)
    assert answer.attention.max() > 0.5
    assert sum(answer.probabilities.values()) == pytest.approx(1, abs=1e-4)


@pytest.mark.slow
def test_simulated_slices_that_get_a_class_keep_it_over_ten_windows(classifier: SliceClassifier) -> None:
    kept = []
    for label in CLASSES:
        for one in slices_of_patient(seed=5, label=label, number=0, count=5):
            answer = classifier.predict(one.picture)
            assert answer.attention.any()
            if not answer.uncertain:
                kept.append(keeps_class(classifier, as_hounsfield(one.picture)))
    assert len(kept) >= 12
    assert np.mean(kept) >= 0.95


@pytest.mark.slow
def test_what_it_looked_at_on_real_paraseptal_slices_lies_nearer_to_the_pleura(
    shared: Path, classifier: SliceClassifier
) -> None:
    folder = shared / "data" / "real-slices"
    need(folder.is_dir(), "the slices in ../shared/data/real-slices")
    with (folder / "patients.csv").open(newline="") as stream:
        files = [row["file"] for row in csv.DictReader(stream)]
    shares: dict[str, list[float]] = {"PSE": [], "PLE": []}
    for label, found in shares.items():
        for file in [name for name in files if name.startswith(label)][::25]:
            answer = classifier.predict(read_slice(folder / file))
            crop = answer.crop
            seen = _on_crop(answer.attention, crop.crop.top, crop.crop.left, crop.crop.height, crop.crop.width)
            found.append(near_pleura(seen, crop.lungs > 0)[0])
    assert np.mean(shares["PSE"]) > np.mean(shares["PLE"])


def _on_crop(attention: np.ndarray, top: float, left: float, height: float, width: float) -> np.ndarray:
    rows, columns = (max(round(edge), 0) for edge in (top, left))
    return np.asarray(attention[rows : round(top + height), columns : round(left + width)], np.float32)
