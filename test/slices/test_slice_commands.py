"""The command line: simulate, train, compare, predict; and bundles."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.errors import InputError
from model.slices import CLASSES
from model.slices.__main__ import SHIPPED_BUNDLE, main
from model.slices.bundle import METADATA_FILE, WEIGHTS_FILE, SliceClassifier
from model.slices.dataset import PATIENTS_FILE, read_slices
from model.slices.images import LUNG_WINDOW, read_slice
from model.slices.networks import build_network
from model.slices.simulated import SMALLEST_SHARE, slices_of_patient


@pytest.fixture(scope="module")
def trained(slices_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    bundle = tmp_path_factory.mktemp("trained") / "bundle"
    arguments = ["train", "--data", str(slices_folder), "--architecture", "simple_cnn", "--output", str(bundle)]
    assert main([*arguments, "--epochs", "4", "--batch-size", "4", "--name", "stripes"]) == 0
    return bundle


def test_a_trained_network_tells_the_classes_of_patients_that_it_has_not_seen(trained: Path) -> None:
    document = json.loads((trained / METADATA_FILE).read_text())
    assert document["performance"]["accuracy"]["percent"] >= 75
    assert (document["architecture"], document["trained_on"], document["base_weights"]) == ("simple_cnn", "stripes", None)
    assert document["training"]["split"] == "patient"
    assert document["training"]["slices"] == 32
    assert np.array(document["performance"]["confusion"]).sum() == 8
    parameters = build_network("simple_cnn").whole.count_params()
    assert (trained / WEIGHTS_FILE).stat().st_size == pytest.approx(4 * parameters, rel=0.05), "the weights and nothing else"


def test_predict_prints_class_and_probabilities(trained: Path, slices_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = slices_folder / "PSE" / "p0-0.png"
    assert main(["predict", str(image), "--bundle", str(trained), "--json"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    assert answer["image"] == str(image)
    assert list(answer["probabilities"]) == list(CLASSES)
    assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-4)
    assert answer["class"] == max(answer["probabilities"], key=answer["probabilities"].get)
    assert main(["predict", str(image), "--bundle", str(trained)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{image}: {answer['class']} (")
    assert re.search(r"network: simple_cnn, trained on stripes; right about \d+ % of the slices that were set aside", out)


def test_a_classifier_answers_for_a_picture_of_any_size_on_its_own_grid(trained: Path, slices_folder: Path) -> None:
    classifier = SliceClassifier.from_bundle(trained)
    picture = read_slice(slices_folder / "CLE" / "p1-0.png")
    answer = classifier.predict(picture)
    assert answer.attention.shape == picture.shape[:2]
    assert 0 <= answer.attention.min() <= answer.attention.max() <= 1
    assert answer.label in CLASSES
    assert classifier.predict(picture).probabilities == pytest.approx(answer.probabilities), "the same every time"


def test_the_bundle_that_ships_answers_and_says_that_it_knows_simulated_slices_alone() -> None:
    classifier = SliceClassifier.from_bundle(SHIPPED_BUNDLE)
    assert "simulated" in classifier.metadata.trained_on
    accuracy = classifier.metadata.performance["accuracy"]["percent"]
    assert f"right about {accuracy:.0f} % of the slices" in classifier.metadata.summary
    assert sum(classifier.predict(np.full((50, 60, 3), 90, np.uint8)).probabilities.values()) == pytest.approx(1, abs=1e-4)


def test_a_damaged_or_missing_bundle_is_refused_by_name(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no bundle of a slice network"):
        SliceClassifier.from_bundle(tmp_path)
    (tmp_path / METADATA_FILE).write_text((trained / METADATA_FILE).read_text())
    (tmp_path / WEIGHTS_FILE).write_bytes((trained / WEIGHTS_FILE).read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match=f"{WEIGHTS_FILE}: the file is damaged"):
        SliceClassifier.from_bundle(tmp_path)
    (tmp_path / METADATA_FILE).write_text('{"format": 1}')
    with pytest.raises(InputError, match=f"{METADATA_FILE}: not such metadata"):
        SliceClassifier.from_bundle(tmp_path)


def test_compare_prints_a_row_for_each_split_beside_the_papers_figures(
    slices_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["compare", "--data", str(slices_folder), "--architectures", "simple_cnn", "--epochs", "1"]
    assert main([*arguments, "--output", str(tmp_path / "report")]) == 0
    captured = capsys.readouterr()
    rows = [line for line in captured.out.splitlines() if line.startswith("| Simple CNN")]
    assert [row.split("|")[2].strip() for row in rows] == ["image", "patient"] * 2
    assert "85.55, 85.39, 84.44" in rows[0]
    assert "trained from scratch" in captured.err
    report = json.loads((tmp_path / "report" / "comparison.json").read_text())
    assert [trial["split"] for trial in report["trials"]] == ["image", "patient"]
    assert "trained from scratch" in report["notes"][0]
    assert (tmp_path / "report" / "comparison.md").read_text() == captured.out[:-1]


def test_without_patients_that_split_is_left_out_and_said_so(
    slices_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for label in CLASSES:
        (tmp_path / label).mkdir()
        for path in sorted((slices_folder / label).iterdir())[:5]:
            (tmp_path / label / path.name).write_bytes(path.read_bytes())
    assert main(["compare", "--data", str(tmp_path), "--architectures", "simple_cnn", "--epochs", "1"]) == 0
    captured = capsys.readouterr()
    assert "the patients are not known" in captured.err
    assert "| patient |" not in captured.out
    output = str(tmp_path / "bundle")
    assert main(["train", "--data", str(tmp_path), "--output", output, "--split", "patient"]) == 2
    assert "the patients are not known" in capsys.readouterr().err


def test_bad_usage_ends_with_one_line_and_nothing_written(
    slices_folder: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    full, data, image = str(tmp_path / "full"), str(slices_folder), str(slices_folder / "NT" / "p0-0.png")
    for arguments, message in (
        (["simulate", "--images", "4", "--seed", "1", "--output", full], "already holds something"),
        (["train", "--data", full, "--output", str(tmp_path / "new")], "no slices of class CLE"),
        (["train", "--data", data, "--output", full], "already holds something else"),
        (
            ["train", "--data", data, "--output", str(tmp_path / "new"), "--base-weights", "absent.h5"],
            "absent.h5: no such file",
        ),
        (["predict", "absent.png", "--bundle", str(trained)], "absent.png: no such file"),
        (["predict", image, "--bundle", full], "no bundle of a slice network"),
        (["predict", image, "--bundle", str(trained), "--window-width", "0"], "--window-width"),
        (["compare", "--data", data, "--output", image], f"{image}: cannot be created"),
    ):
        assert main(arguments) == 2, arguments
        captured = capsys.readouterr()
        assert message in captured.err
        assert captured.out == ""
    assert not (tmp_path / "new").exists()
    with pytest.raises(SystemExit, match="2"):
        main(["predict", image, "--window-centre", "nan"])
    assert "--window-centre: 'nan': expected HU" in capsys.readouterr().err


@pytest.mark.parametrize("label", ["PLE", "NT"])
def test_a_simulated_patient_shows_one_subtype_in_every_slice(label: str) -> None:
    found = slices_of_patient(seed=5, label=label, number=0, count=3)
    assert len(found) == 3
    assert {(one.label, one.patient) for one in found} == {(label, f"simulated-5-{label.lower()}-000")}
    assert all(one.percentage >= SMALLEST_SHARE[label] for one in found)
    assert (label == "NT") == all(one.percentage == 0 for one in found)
    assert all(min(one.picture.shape) > 100 and one.picture.std() > 30 for one in found)


@pytest.mark.slow
def test_simulate_makes_the_same_slices_with_one_worker_or_two(tmp_path: Path) -> None:
    for name, workers in (("one", "1"), ("two", "2")):
        arguments = ["simulate", "--images", "11", "--seed", "3", "--slices-per-patient", "2", "--output", str(tmp_path / name)]
        assert main([*arguments, "--workers", workers]) == 0
    with (tmp_path / "one" / PATIENTS_FILE).open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["class"] for row in rows] == ["CLE"] * 3 + ["PLE"] * 3 + ["PSE"] * 3 + ["NT"] * 2
    assert len({row["patient"] for row in rows}) == 2 + 2 + 2 + 1
    for row in rows:
        one, two = ((tmp_path / name / row["file"]) for name in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()
        assert Image.open(one).mode == "L"
    slices = read_slices(tmp_path / "one", LUNG_WINDOW)
    assert slices.patients is not None
    assert slices.patients.tolist() == [row["patient"] for row in sorted(rows, key=lambda row: CLASSES.index(row["class"]))]
