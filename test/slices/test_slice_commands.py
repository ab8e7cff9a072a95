"""The command line: simulate, train, compare, predict; and bundles."""

from __future__ import annotations

import csv
import functools
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model.errors import InputError
from model.simulation import NoRoomError
from model.slices import CLASSES, cross_validation, dataset, simulated, texture
from model.slices.__main__ import _read, main
from model.slices.bundle import (
    FORMAT,
    KERAS_FILE,
    LARGEST_METADATA_FILE,
    METADATA_FILE,
    TORCH_FILE,
    SliceClassifier,
    SliceMetadata,
    write_bundle,
)
from model.slices.calibration import find_lungs
from model.slices.comparison import write_comparison
from model.slices.dataset import PATIENTS_FILE, Slices, read_slices
from model.slices.images import as_hounsfield, read_slice
from model.slices.lung_networks import build_lung_network
from model.slices.networks import build_network
from model.slices.parts import PARTS_FOLDER
from model.slices.report import write_report_files
from model.slices.simulated import SMALLEST_SHARE, slices_of_patient
from model.slices.texture_training import TextureSettings
from test.slices.conftest import PATIENTS, SLICES_EACH


@pytest.fixture(scope="module", autouse=True)
def _read_once(slices_folder: Path) -> Iterator[None]:
    """Reading the common folder takes longer than most commands: they share its slices. test_slice_dataset.py reads it anew."""
    slices = read_slices(slices_folder)

    def read(folder: Path, *more: Any) -> Slices:
        return slices if folder == slices_folder else read_slices(folder, *more)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(dataset, "read_slices", read)
        yield


def train_simple(slices_folder: Path, bundle: Path, epochs: int) -> Path:
    arguments = ["train", "--data", str(slices_folder), "--architecture", "simple_cnn", "--output", str(bundle)]
    assert main([*arguments, "--epochs", str(epochs), "--batch-size", "4", "--name", "stripes"]) == 0
    return bundle


@pytest.fixture(scope="module")
def trained(slices_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For one epoch: it answers, but not well."""
    return train_simple(slices_folder, tmp_path_factory.mktemp("trained") / "bundle", epochs=1)


@pytest.mark.slow
def test_a_trained_network_tells_the_classes_of_patients_that_it_has_not_seen(slices_folder: Path, tmp_path: Path) -> None:
    bundle = train_simple(slices_folder, tmp_path / "bundle", epochs=10)
    document = json.loads((bundle / METADATA_FILE).read_text())
    assert document["performance"]["accuracy"]["percent"] >= 75
    assert (document["architecture"], document["trained_on"], document["base_weights"]) == ("simple_cnn", "stripes", None)
    assert document["training"]["split"] == "patient"
    assert document["training"]["slices"] == 32
    assert [point["epoch"] for point in document["training"]["curve"]] == list(range(1, 11))
    assert np.array(document["performance"]["confusion"]).sum() == 8
    parameters = build_network("simple_cnn").whole.count_params()
    assert (bundle / KERAS_FILE).stat().st_size == pytest.approx(4 * parameters, rel=0.05), "the weights and nothing else"


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
    assert re.search(r"network: simple_cnn, trained on stripes; accuracy \d+ % on held-out slices", out)


def test_a_classifier_answers_for_a_picture_of_any_size_on_its_own_grid(trained: Path, slices_folder: Path) -> None:
    classifier = SliceClassifier.from_bundle(trained)
    picture = read_slice(slices_folder / "CLE" / "p1-0.png")
    answer = classifier.predict(picture)
    assert answer.attention.shape == picture.shape[:2]
    assert 0 <= answer.attention.min() <= answer.attention.max() <= 1
    assert answer.label in CLASSES
    assert classifier.predict(picture).probabilities == pytest.approx(answer.probabilities), "the same every time"


def test_evaluate_prints_and_writes_the_whole_report(
    trained: Path, slices_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["evaluate", "--data", str(slices_folder), "--bundle", str(trained)]
    assert main([*arguments, "--output", str(tmp_path / "report")]) == 0
    printed = capsys.readouterr().out
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    confusion = np.array(report["performance"]["confusion"])
    assert confusion.sum(axis=1).tolist() == [PATIENTS * SLICES_EACH] * 4
    assert report["balanced"]["percent"] == pytest.approx(100 * np.mean(np.diag(confusion) / confusion.sum(axis=1)))
    assert sum(bar["count"] for bar in report["reliability"]) == 40
    assert set(report["near_pleura"]) == set(CLASSES)
    for label, row in zip(CLASSES, confusion, strict=True):
        cells = " | ".join(map(str, row))
        assert any(line.startswith(f"| {label}, ") and line.endswith(f"| {cells} |") for line in printed.splitlines())
    assert (tmp_path / "report" / "report.md").read_text() == printed
    assert Image.open(tmp_path / "report" / "reliability.png").size[0] > 300


@pytest.mark.slow
def test_the_texture_network_is_trained_in_folds_and_answers_from_its_bundle(
    slices_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cross_validation, "TextureSettings", functools.partial(TextureSettings, views=1, rounds=12))
    bundle = tmp_path / "bundle"
    assert main(["train", "--data", str(slices_folder), "--output", str(bundle), "--report", str(tmp_path / "report")]) == 0
    metadata = json.loads((bundle / METADATA_FILE).read_text())
    assert metadata["architecture"] == "texture"
    assert metadata["performance"]["accuracy"]["percent"] > 70, "stripes can be told apart by random filters, too"
    assert [fold["slices"] for fold in metadata["training"]["folds"]] == [8] * 5
    assert metadata["temperature"] > 0
    assert (tmp_path / "report" / "report.md").read_text().strip() in capsys.readouterr().out
    answer = SliceClassifier.from_bundle(bundle).predict(read_slice(slices_folder / "PLE" / "p0-0.png"))
    assert answer.likeliest == "PLE"
    assert answer.attention.any()


@pytest.mark.slow
def test_fine_tuning_ships_the_networks_of_all_folds(
    slices_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texture, "BLOCKS", 1)
    monkeypatch.setattr(texture, "LEVELS", (0,))
    bundle = tmp_path / "bundle"
    arguments = ["train", "--data", str(slices_folder), "--fine-tune", "--output", str(bundle), "--epochs", "1"]
    assert main([*arguments, "--device", "cpu"]) == 0
    metadata = json.loads((bundle / METADATA_FILE).read_text())
    assert (metadata["architecture"], metadata["members"], metadata["training"]["fine_tuned"]) == ("texture", 5, True)
    assert [[point["epoch"] for point in fold["curve"]] for fold in metadata["training"]["folds"]] == [[1]] * 5
    classifier = SliceClassifier.from_bundle(bundle)
    shifts = {member.stem.norm.bias.numpy(force=True).tobytes() for member in classifier.network.members}  # type: ignore[attr-defined]
    assert len(shifts) == 5, "each has learnt from other patients"
    assert classifier.predict(read_slice(slices_folder / "PLE" / "p0-0.png")).attention.any()


def test_below_the_threshold_the_answer_is_uncertain(trained: Path, slices_folder: Path) -> None:
    classifier = SliceClassifier.from_bundle(trained)
    level = read_slice(slices_folder / "CLE" / "p1-0.png")
    sure = SliceClassifier(replace(classifier.metadata, uncertain_below=0.0), classifier.network).predict(level)
    unsure = SliceClassifier(replace(classifier.metadata, uncertain_below=1.0), classifier.network).predict(level)
    assert sure.label == sure.likeliest == unsure.likeliest
    assert unsure.label == "uncertain"
    warm = SliceClassifier(replace(classifier.metadata, temperature=5.0), classifier.network).predict(level)
    assert max(warm.probabilities.values()) < max(sure.probabilities.values())


def test_an_uncertain_answer_says_so_once(
    trained: Path, slices_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained, tmp_path / "bundle")
    document = json.loads((tmp_path / "bundle" / METADATA_FILE).read_text())
    (tmp_path / "bundle" / METADATA_FILE).write_text(json.dumps(document | {"uncertain_below": 1.0}))
    image = slices_folder / "CLE" / "p1-0.png"
    assert main(["predict", str(image), "--bundle", str(tmp_path / "bundle")]) == 0
    assert capsys.readouterr().out.startswith(f"{image}: uncertain (no class reaches 100 %); CLE ")


@pytest.mark.parametrize(
    "changes",
    [
        {"members": 5.0},
        {"members": True},
        {"members": 2, "architecture": "simple_cnn"},
        {"temperature": float("inf")},
        {"temperature": True},
        {"temperature": 0},
        {"temperature": 10**400},
        {"uncertain_below": "0.5"},
        {"trained_on": 7},
        {"performance": [1]},
        {"performance": {"accuracy": {"percent": "93"}}},
        {"training": {"folds": [{"curve": [{"epoch": 1, "loss": "x", "validation_loss": None, "validation_accuracy": None}]}]}},
        {"training": {"folds": [{"curve": [{"epoch": 1}]}]}},
        {"training": {"folds": 5}},
    ],
    ids=str,
)
def test_metadata_of_wrong_types_or_ranges_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    metadata = asdict(SliceMetadata("residual", "nothing", None))
    document = {"format": FORMAT, "classes": CLASSES, **metadata, "sha256": "0", **changes}
    (tmp_path / METADATA_FILE).write_text(json.dumps(document))
    with pytest.raises(InputError, match=f"{METADATA_FILE}: not such metadata"):
        SliceClassifier.from_bundle(tmp_path)


def test_metadata_that_are_nested_too_deeply_are_refused(tmp_path: Path) -> None:
    (tmp_path / METADATA_FILE).write_text("[" * 100_000)
    with pytest.raises(InputError, match=f"{METADATA_FILE}: not such metadata \\(RecursionError"):
        SliceClassifier.from_bundle(tmp_path)


@pytest.mark.parametrize("name", [METADATA_FILE, TORCH_FILE])
def test_a_bundle_of_which_a_file_cannot_be_read_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    write_bundle(tmp_path / "bundle", [build_lung_network("residual")], SliceMetadata("residual", "nothing", None))
    path = tmp_path / "bundle" / name
    path.unlink()
    path.symlink_to("/proc/self/mem")  # reading its beginning is an error of input and output
    with pytest.raises(InputError, match=f"{name}: it cannot be read \\(Input/output error\\); expected a folder with"):
        SliceClassifier.from_bundle(tmp_path / "bundle")


def test_metadata_that_are_too_large_are_refused_before_they_are_read(tmp_path: Path) -> None:
    with (tmp_path / METADATA_FILE).open("w") as stream:
        stream.truncate(LARGEST_METADATA_FILE + 1)
    with pytest.raises(InputError, match=f"{METADATA_FILE}: too large to be a bundle's metadata"):
        SliceClassifier.from_bundle(tmp_path)


def test_a_bundle_whose_members_are_not_all_asked_for_is_refused(tmp_path: Path) -> None:
    networks = [build_lung_network("residual") for _ in range(2)]
    write_bundle(tmp_path / "bundle", networks, SliceMetadata("residual", "nothing", None, members=2))
    assert len(SliceClassifier.from_bundle(tmp_path / "bundle").network.members) == 2  # type: ignore[attr-defined]
    path = tmp_path / "bundle" / METADATA_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"members": 1}))
    with pytest.raises(InputError, match=f"it holds 2 members, and {METADATA_FILE} says 1"):
        SliceClassifier.from_bundle(tmp_path / "bundle")


def test_a_report_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "report.md").mkdir()
    with pytest.raises(InputError, match="a file of the report cannot be written \\(Is a directory"):
        write_report_files(tmp_path, {"report.md": b"text"})


def few_of_a_class() -> Slices:
    """Without pixels: of the last class so few that none can be set aside twice."""
    labels = np.repeat(np.arange(len(CLASSES)), [20, 20, 20, 2])
    empty = np.zeros((len(labels), 1, 1))
    return Slices(empty.astype(np.float16), empty.astype(np.uint8), labels, None, passed_over=("NT/a.tif", "NT/b.tif"))


def test_files_that_are_passed_over_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dataset, "read_slices", lambda *_: few_of_a_class())
    _read(tmp_path)
    assert "2 in the folders of the classes are no PNG, JPEG or DICOM slices and are left out: NT/a.tif, NT/b.tif\n" in (
        capsys.readouterr().err
    )


def test_too_few_slices_to_validate_on_are_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dataset, "read_slices", lambda *_: few_of_a_class())
    data = ["--data", str(tmp_path), "--patience", "1", "--epochs", "1"]
    for command in (
        ["train", "--architecture", "simple_cnn", "--split", "image", "--output", str(tmp_path / "bundle")],
        ["compare", "--architectures", "residual", "simple_cnn"],
    ):
        assert main([*command, *data]) == 2
        assert "--patience: no slices can be set aside to validate on (class NT has" in capsys.readouterr().err


def test_simulated_slices_appear_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(images: int, seed: int, output: Path, *_: int) -> Iterator[str]:
        (output / "slice").write_text(f"{images} {seed}")
        yield "slice"
        if images == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(simulated, "_written", stopped)
    output = tmp_path / "made"
    with pytest.raises(KeyboardInterrupt):
        main(["simulate", "--images", "4", "--seed", "1", "--output", str(output)])
    assert list(tmp_path.iterdir()) == []
    output.mkdir()
    assert main(["simulate", "--images", "5", "--seed", "1", "--output", str(output)]) == 0
    assert [path.name for path in output.iterdir()] == ["slice"]


def test_a_damaged_or_missing_bundle_is_refused_by_name(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no bundle of a slice network"):
        SliceClassifier.from_bundle(tmp_path)
    (tmp_path / METADATA_FILE).write_text((trained / METADATA_FILE).read_text())
    (tmp_path / KERAS_FILE).write_bytes((trained / KERAS_FILE).read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match=f"{KERAS_FILE}: the file is damaged"):
        SliceClassifier.from_bundle(tmp_path)
    (tmp_path / METADATA_FILE).write_text('{"format": 1}')
    with pytest.raises(InputError, match=f"{METADATA_FILE}: not such metadata"):
        SliceClassifier.from_bundle(tmp_path)


def test_compare_prints_a_row_for_each_split_beside_the_papers_figures(
    slices_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["compare", "--data", str(slices_folder), "--architectures", "simple_cnn", "--epochs", "1", "--folds", "1"]
    assert main([*arguments, "--output", str(tmp_path / "report")]) == 0
    captured = capsys.readouterr()
    rows = [line for line in captured.out.splitlines() if line.startswith("| Simple CNN")]
    kinds = [row.split("|")[2].strip() for row in rows]
    assert kinds == ["image", "patient"] * 2 + ["image"] * 4 + ["patient"] * 4 + ["image", "patient"]
    assert [row.split("|")[3].strip() for row in rows[:2]] == ["1", "1"], "epochs"
    assert "85.55, 85.39, 84.44" in rows[0]
    assert "trained from scratch" in captured.err
    report = json.loads((tmp_path / "report" / "comparison.json").read_text())
    assert [trial["split"] for trial in report["trials"]] == ["image", "patient"]
    assert "trained from scratch" in report["notes"][0]
    assert (tmp_path / "report" / "comparison.md").read_text() == captured.out[:-1]
    (first, _) = report["trials"]
    confusion = np.array(first["confusion"])
    for label, counts in zip(CLASSES, confusion, strict=True):
        assert f"| Simple CNN | image | {label} | {' | '.join(map(str, counts))} |" in captured.out
    assert sum(bar["count"] for bar in first["reliability"]) == confusion.sum() == 8
    assert [point["epoch"] for point in first["curves"][0]["curve"]] == [1]
    for name in ("reliability-simple_cnn-image", "learning-curves-simple_cnn-patient"):
        assert Image.open(tmp_path / "report" / f"{name}.png").size[0] > 300


def test_a_comparison_that_cannot_be_written_leaves_the_earlier_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network's file system may report a full disk only when files are flushed."""

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "comparison.json").write_text("earlier")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(InputError, match="cannot be written \\(No space left"):
        write_comparison(tmp_path, "no trials\n", [], {"seed": 0})
    assert [path.read_text() for path in tmp_path.iterdir()] == ["earlier"]


@pytest.mark.slow
def test_compare_goes_on_where_it_stopped_and_several_share_the_work(
    slices_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "report"
    arguments = ["compare", "--data", str(slices_folder), "--architectures", "residual", "--folds", "2", "--epochs", "1"]

    def run(*more: str) -> list[dict[str, object]]:
        assert main([*arguments, "--output", str(output), *more]) == 0
        capsys.readouterr()
        trials: list[dict[str, object]] = json.loads((output / "comparison.json").read_text())["trials"]
        return trials

    assert run("--parts", "patient-2") == [], "the first fold is missing"
    (written,) = (output / PARTS_FOLDER).iterdir()
    assert written.name == "residual-patient-2.json"
    (trial,) = run("--parts", "patient-1")
    assert trial["split"] == "patient"
    assert len(trial["curves"]) == 2  # type: ignore[arg-type]

    def fails(*_: object) -> None:
        raise AssertionError("trained again")

    with monkeypatch.context() as patched:
        patched.setattr(cross_validation, "fit", fails)
        assert run("--parts", "patient-1", "patient-2") == [trial]
    together = tmp_path / "together"
    assert main([*arguments, "--output", str(together), "--parts", "patient-1", "patient-2"]) == 0
    (one_run,) = json.loads((together / "comparison.json").read_text())["trials"]
    assert one_run == trial, "one after the other or apart: the same networks"


@pytest.mark.slow
def test_what_was_trained_otherwise_is_not_taken_for_this_comparison(
    slices_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["compare", "--data", str(slices_folder), "--architectures", "residual", "--parts", "image"]
    arguments += ["--output", str(tmp_path), "--epochs"]
    assert main([*arguments, "1"]) == 0
    capsys.readouterr()
    assert main([*arguments, "2"]) == 2
    assert "residual-image.json: was made otherwise (epochs); expected" in capsys.readouterr().err
    (file,) = (tmp_path / PARTS_FOLDER).iterdir()
    file.write_text(file.read_text()[:-50])
    assert main([*arguments, "1"]) == 2
    assert "residual-image.json: cannot be read (JSONDecodeError" in capsys.readouterr().err


@pytest.mark.slow
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
    slices_folder: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise AssertionError("trained before it was refused")

    for name in ("fit", "fit_heads", "features_of"):
        monkeypatch.setattr(cross_validation, name, fails)
    for folder, file in (("taken", PARTS_FOLDER), ("base", "efficientnet-lite0.pth")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file).write_text("no such thing")
    new, taken = str(tmp_path / "new"), str(tmp_path / "taken")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    photograph = str(tmp_path / "photograph.png")
    Image.fromarray(np.full((200, 200), 150, np.uint8)).save(photograph)
    full, data, image = str(tmp_path / "full"), str(slices_folder), str(slices_folder / "NT" / "p0-0.png")
    for arguments, message in (
        (["simulate", "--images", "4", "--seed", "1", "--output", full], "already holds something"),
        (["train", "--data", full, "--output", str(tmp_path / "new")], "no slices of class CLE"),
        (["train", "--data", data, "--output", full], "already holds something else"),
        (
            ["train", "--data", data, "--output", str(tmp_path / "new"), "--architecture", "residual", "--fine-tune"],
            "--fine-tune: cannot be used for residual",
        ),
        (
            ["train", "--data", data, "--output", str(tmp_path / "new"), "--base-weights", "absent.h5"],
            "absent.h5: no such file",
        ),
        (["train", "--data", data, "--output", new, "--report", f"{new}/report"], f"{new}/report lies in the bundle's folder"),
        (["train", "--data", data, "--output", f"{image}/bundle"], f"{image}: it cannot be created"),
        (
            ["train", "--data", data, "--output", new, "--architecture", "residual", "--base-weights", image],
            "--base-weights: residual has no base",
        ),
        (
            ["train", "--data", data, "--output", new, "--architecture", "simple_cnn", "--base-weights", image],
            "--base-weights: simple_cnn has no base",
        ),
        (
            ["train", "--data", data, "--output", new, "--base-weights", "imagenet"],
            "--base-weights imagenet: there is no download of the base of texture",
        ),
        (
            ["compare", "--data", data, "--architectures", "residual", "texture", "--base-weights", "imagenet"],
            "--base-weights imagenet: there is no download of the base of texture",
        ),
        (
            ["compare", "--data", data, "--architectures", "residual", "texture", "--base-weights", str(tmp_path / "base")],
            "efficientnet-lite0.pth: not such weights",
        ),
        (["compare", "--data", data, "--architectures", "residual", "--output", taken], f"{taken}/parts: it cannot be created"),
        (
            ["evaluate", "--data", data, "--bundle", str(trained), "--output", "/proc/self"],
            "/proc/self: it cannot be written",
        ),
        (["predict", "absent.png", "--bundle", str(trained)], "absent.png: no such file"),
        (["predict", image, "--bundle", full], "no bundle of a slice network"),
        (["predict", photograph, "--bundle", str(trained)], f"{photograph}: no "),
        (["evaluate", "--data", full, "--bundle", str(trained)], "no slices of class CLE"),
        (["compare", "--data", data, "--output", image], f"{image}: it cannot be created"),
    ):
        assert main(arguments) == 2, arguments
        captured = capsys.readouterr()
        assert message in captured.err
        assert captured.out == ""
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
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
    slices = read_slices(tmp_path / "one")
    assert slices.patients is not None
    assert slices.patients.tolist() == [row["patient"] for row in sorted(rows, key=lambda row: CLASSES.index(row["class"]))]


@pytest.mark.slow
def test_simulated_slices_can_be_calibrated_and_show_their_lungs() -> None:
    for label in ("CLE", "NT"):
        for one in slices_of_patient(seed=5, label=label, number=0, count=3):
            hounsfield = as_hounsfield(one.picture)
            assert -1000 < np.median(hounsfield[find_lungs(hounsfield, None)]) < -700


def test_a_simulated_patient_without_room_for_the_disease_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: object) -> None:
        raise NoRoomError("emphysema could not grow to 30.0 % of what room there is in the lungs")

    monkeypatch.setattr(simulated, "simulate", full)
    with pytest.raises(InputError, match=r"^simulated-5-cle-002: emphysema could not grow .* another --seed$"):
        slices_of_patient(5, "CLE", 2, 1)
