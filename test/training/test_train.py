"""The command line, from a manifest to a bundle that scores: a network of base width 2 for a few steps."""

from __future__ import annotations

import csv
import errno
import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from model.cohort.manifest import read_manifest
from model.errors import InputError
from model.imaging.scan import Scan
from model.subtyping import EmphysemaSubtyper
from model.training.options import RunOptions, build_parser, parse
from model.training.run import check_subtypes
from model.weights import read_bundle, read_metadata, write_bundle
from test.phantom import COARSE_INPUT
from test.training.cohort import row, write_manifest

ROOT = Path(__file__).resolve().parent.parent.parent
COARSE = ("--input-shape", *map(str, COARSE_INPUT))
TINY = ("--backbone", "resnet18", "--base-width", "2", *COARSE, "--device", "cpu", "--workers", "0", "--learning-rate", "0.01")


def command(manifest: Path, output: Path, *options: str) -> list[str]:
    cache = manifest.parent / "cache"
    return ["--manifest", str(manifest), "--output", str(output), "--cache", str(cache), *TINY, *options]


def short(manifest: Path) -> Path:
    """Two scans to train on and one to validate on: the fewest that show anything."""
    rows = [row("b", 1, 0, "train"), row("d", 3, 0, "train"), row("f", 2, 0, "validation")]
    return write_manifest(manifest.parent / "short.csv", rows)


def history(output: Path) -> list[dict[str, str]]:
    """Training and validation losses of every epoch, of all parts of a resumed run together; the last word counts."""
    epochs: dict[str, dict[str, str]] = {}
    for path in sorted(output.glob("log/version_*/metrics.csv")):
        with path.open(newline="") as stream:
            for line in csv.DictReader(stream):
                found = {name: line[name] for name in line if name in ("train/loss", "validation/loss") and line[name]}
                epochs.setdefault(line["epoch"], {}).update(found)
    return [epochs[epoch] for epoch in sorted(epochs, key=int)]


def weights(output: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(output / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return state


@pytest.fixture(scope="module")
def uninterrupted(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs of the regression network, recipe `paper`."""
    output = tmp_path_factory.mktemp("runs") / "whole"
    assert train.main(command(short(manifest), output, "--epochs", "2", "--batch", "1")) == 0
    return output


@pytest.mark.slow
def test_training_writes_logs_pictures_and_a_bundle_that_says_where_it_comes_from(uninterrupted: Path, manifest: Path) -> None:
    metadata = read_metadata(uninterrupted / "bundle")
    training = metadata.performance["training"]
    assert training["recipe"]["name"] == "paper"
    assert training["manifest_sha256"] == read_manifest(manifest.parent / "short.csv").sha256 in metadata.origin
    assert metadata.trained_on == "short.csv (2 train, 1 validation)"
    validation = metadata.performance["validation"]
    assert validation["cases"] == 1
    # the phantom's sphere is all of its low attenuation: the baseline reads its percentage off almost exactly
    assert validation["laa950_alone"]["centrilobular"]["percentage_error"] < 0.1
    assert len(history(uninterrupted)) == 2
    assert list(uninterrupted.glob("tensorboard/events*"))
    assert sorted(path.name for path in (uninterrupted / "pictures").iterdir()) == ["epoch-000-f.png", "epoch-001-f.png"]


@pytest.mark.slow
def test_the_validation_figures_are_those_of_inference_with_the_bundle(uninterrupted: Path, manifest: Path) -> None:
    subtyper = EmphysemaSubtyper.from_bundle(uninterrupted / "bundle", "cpu", "float32")
    (case,) = read_manifest(manifest.parent / "short.csv").of("validation")
    found = subtyper.predict(Scan.read(case.ct, case.lung_mask))
    assert found.centrilobular.percentage is not None
    reported = read_metadata(uninterrupted / "bundle").performance["validation"]["centrilobular"]
    sphere = Scan.read(case.ct, case.truth[0] if case.truth else case.ct)
    truth = 100 * np.count_nonzero(sphere.lung) / np.count_nonzero(Scan.read(case.ct, case.lung_mask).lung)
    assert abs(found.centrilobular.percentage - truth) == pytest.approx(reported["percentage_error"], abs=0.5)


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_same_losses(uninterrupted: Path, manifest: Path, tmp_path: Path) -> None:
    output = tmp_path / "killed"
    arguments = command(short(manifest), output, "--epochs", "2", "--batch", "1")
    killed = [sys.executable, "-m", "test.training.killed_run", *arguments]
    done = subprocess.run(killed, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done
    assert torch.load(output / "checkpoints" / "last.ckpt", weights_only=True)["finished_epochs"] == 1
    assert not (output / "bundle").exists()
    assert train.main(["--output", str(output), "--export-only"]) == 0
    assert read_metadata(output / "bundle").performance["training"]["epoch"] == 1
    assert train.main(["--output", str(output), "--resume"]) == 0
    assert len(history(output)) == 2
    assert history(output) == history(uninterrupted)
    found, expected = weights(output), weights(uninterrupted)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.slow
def test_the_command_prints_no_advertisement_of_its_libraries(manifest: Path, tmp_path: Path) -> None:
    arguments = command(short(manifest), tmp_path / "run", "--epochs", "1", "--batch", "1")
    done = subprocess.run([sys.executable, "train.py", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done
    assert "bundle: " in done.stdout
    assert "http" not in done.stdout + done.stderr


@pytest.mark.slow
def test_an_average_of_the_weights_is_what_is_judged_and_kept_and_is_resumed(manifest: Path, tmp_path: Path) -> None:
    path = short(manifest)
    options = ("--batch", "1", "--average", "0.9", "--workers", "1")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train.main(command(path, whole, *options, "--epochs", "2")) == 0
    assert train.main(command(path, parts, *options, "--epochs", "1")) == 0
    assert train.main(["--output", str(parts), "--resume", "--epochs", "2"]) == 0
    assert history(parts) == history(whole)
    found, expected = weights(parts), weights(whole)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    last = torch.load(whole / "checkpoints" / "last.ckpt", weights_only=True)["current_model_state"]
    assert any(not torch.equal(last[name], expected[name]) for name in expected if name.startswith("network."))
    assert read_metadata(whole / "bundle").performance["training"]["average"] == 0.9


@pytest.mark.slow
def test_classification_starts_from_a_bundle_and_updates_its_class_weights(manifest: Path, tmp_path: Path) -> None:
    output = tmp_path / "classes"
    options = ("--strategy", "classification", "--epochs", "1", "--accumulate", "2", "--batch", "1")
    assert train.main(command(short(manifest), output, *options)) == 0
    state = weights(output)
    initial, after = (state[f"strategy.centrilobular_{kind}weights"] for kind in ("initial_", ""))
    assert initial.tolist() == pytest.approx([0, 1, 0, 1, 0, 0])
    assert float(after.sum()) == pytest.approx(2)
    bundle = read_bundle(output / "bundle")
    assert bundle.metadata.network.head == "classification"

    further = tmp_path / "further"
    gently = (
        "--strategy",
        "classification",
        "--epochs",
        "1",
        "--batch",
        "2",
        "--learning-rate",
        "1e-9",
        "--no-augment",
        "--freeze-statistics",
    )
    assert train.main(command(short(manifest), further, *gently, "--init", str(output / "bundle"))) == 0
    for name, value in bundle.network.named_parameters():
        torch.testing.assert_close(weights(further)[f"network.{name}"], value, rtol=0, atol=1e-6)
    for name, statistic in bundle.network.named_buffers():
        assert torch.equal(weights(further)[f"network.{name}"], statistic)
    assert read_metadata(further / "bundle").performance["training"]["init_sha256"] == bundle.sha256

    alone = tmp_path / "alone"
    quickly = ("--strategy", "classification", "--epochs", "1", "--batch", "2", "--learning-rate", "1e-2", "--head-alone")
    assert train.main(command(short(manifest), alone, *quickly, "--init", str(output / "bundle"))) == 0
    changed = {
        name.partition(".")[0]
        for name, value in bundle.network.state_dict().items()
        if not torch.equal(weights(alone)[f"network.{name}"], value)
    }
    assert changed == {"head"}


@pytest.mark.slow
def test_the_rival_is_trained_and_exported_like_the_others(manifest: Path, tmp_path: Path) -> None:
    options = ("--strategy", "slices-lstm", "--epochs", "1", "--batch", "2")
    assert train.main(command(short(manifest), tmp_path / "run", *options)) == 0
    metadata = read_metadata(tmp_path / "run/bundle")
    assert (metadata.network.backbone, metadata.network.head, metadata.map_placement) == (
        "slices-lstm",
        "classification",
        "even",
    )
    subtyper = EmphysemaSubtyper.from_bundle(tmp_path / "run/bundle", "cpu", "float32")
    (case,) = read_manifest(manifest.parent / "short.csv").of("validation")
    found = subtyper.predict(Scan.read(case.ct, case.lung_mask))
    right = [finding.score == score for finding, score in zip((found.centrilobular, found.paraseptal), (2, 0), strict=True)]
    validation = metadata.performance["validation"]
    assert [validation[name]["accuracy"] for name in ("centrilobular", "paraseptal")] == right


@pytest.mark.slow
def test_voxel_supervision_trains_on_the_profile_of_the_released_checkpoints(manifest: Path, tmp_path: Path) -> None:
    rows = [row("b", 1, 0, "train"), row("d", 3, 0, "train"), row("f", 2, 0, "validation")]
    path = write_manifest(manifest.parent / "voxels.csv", rows)
    output = tmp_path / "voxels"
    options = ("--strategy", "voxels", "--profile", "released", "--epochs", "1", "--batch", "2", "--monitor", "loss")
    tile = ("--tile", "32", "48", "64")
    assert train.main(command(path, output, *options, *tile)) == 0
    with (output / "log" / "version_0" / "metrics.csv").open(newline="") as stream:
        header = next(csv.reader(stream))
    assert {"train/dice_centrilobular", "train/cross_entropy_paraseptal", "train/extent_centrilobular"} <= set(header)
    subtyper = EmphysemaSubtyper.from_bundle(output / "bundle", "cpu", "float32")
    (case,) = read_manifest(path).of("validation")
    found = subtyper.predict(Scan.read(case.ct, case.lung_mask))
    reported = read_metadata(output / "bundle").performance["validation"]["paraseptal"]
    assert found.paraseptal.percentage == pytest.approx(reported["percentage_error"], abs=0.5)  # there is none


@pytest.mark.slow
def test_tiles_with_scores_of_their_own_are_trained_by_the_losses_of_the_paper(manifest: Path, tmp_path: Path) -> None:
    rows = [row("b", 1, 0, "train"), row("d", 3, 0, "train"), row("f", 2, 0, "validation")]
    path = write_manifest(manifest.parent / "zones.csv", rows)
    output = tmp_path / "zones"
    options = ("--tile", "32", "48", "64", "--tile-scores", "--tiles-per-scan", "2", "--epochs", "1", "--batch", "2")
    assert train.main(command(path, output, *options, "--tiles-anywhere")) == 0
    with (output / "log" / "version_0" / "metrics.csv").open(newline="") as stream:
        header = set(next(csv.reader(stream)))
    assert {"train/interval_centrilobular", "train/overlap", "train/segmentation", "validation/kappa"} <= header
    assert not {name for name in header if "dice" in name or "extent" in name}
    metadata = read_metadata(output / "bundle")
    assert metadata.performance["training"]["tile_scores"] is True
    assert "from scores that tiles have by voxel truth maps, and scores or bounds of scans" in metadata.origin


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--base-width", "3"), "base width is 3"),
        (("--decay", "0"), "decay is 0.0"),
        (("--devices", "0"), "--devices is 0"),
        (("--seed", "5000000000"), "--seed is 5000000000, expected 0 to 4294967295"),
        (("--seed", "-1"), "--seed is -1, expected 0 to 4294967295"),
        (("--devices", "2"), "training on several CPUs is not supported"),
        (("--tile", "64", "64", "64"), "--tile goes with --strategy voxels"),
        (("--tile-scores",), "--tile-scores goes with --strategy regression and --tile"),
        (
            ("--tile-scores", "--tile", "64", "64", "64", "--strategy", "voxels"),
            "--tile-scores goes with --strategy regression",
        ),
        (("--freeze-statistics",), "--freeze-statistics goes with --init"),
        (("--head-alone",), "--head-alone goes with --init"),
        (("--strategy", "classification", "--anchor", "bundle"), "--anchor goes with --strategy regression or voxels"),
        (("--average", "1"), "--average is 1, expected 0 to less than 1"),
        (("--strategy", "classification", "--monitor", "separation"), "--monitor separation goes with --strategy regression"),
        (("--tiles-per-scan", "0"), "--tiles-per-scan is 0"),
        (("--strategy", "voxels", "--tiles-per-scan", "2"), "--tiles-per-scan goes with --tile"),
        (("--strategy", "voxels", "--tiles-anywhere"), "--tiles-anywhere goes with --tile"),
        (("--strategy", "voxels", "--simulate-panlobular", "0.5"), "--simulate-panlobular goes with --simulate"),
        (("--strategy", "voxels", "--simulate", "4", "--simulate-panlobular", "1.5"), "is 1.5, expected 0 to 1"),
        (("--strategy", "voxels", "--simulate", "4", "--simulate-first-look", "-0.1"), "is -0.1, expected 0 to 1"),
        (("--strategy", "voxels", "--tile", "64", "64", "60"), "a tile is 64 64 60 voxels"),
        (("--slab", "2"), "a tile is 2 "),
        (("--strategy", "slices-lstm", "--slab", "1"), "--slab 1 does not go with --strategy slices-lstm"),
        (("--recipe", "unknown"), "invalid choice"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(
    options: tuple[str, ...], message: str, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        train.main(command(manifest, tmp_path / "run", *options))
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_bad_manifest_is_one_line_and_exit_code_2_before_anything_is_written(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_manifest(tmp_path / "m.csv", [row("a", 9, 0, "train")])
    shutil.copy(manifest.parent / "a_ct.mha", tmp_path)
    assert train.main(["--manifest", str(path), "--output", str(tmp_path / "run"), *TINY]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "1 bad row: row 2 (a): centrilobular score '9'" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a_ct.mha", "m.csv"]


def test_scores_of_tiles_need_truth_maps(manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row("b", 1, 0, "train", truth=False), row("f", 2, 0, "validation", truth=False)]
    path = write_manifest(manifest.parent / "scores.csv", rows)
    assert train.main(command(path, tmp_path / "run", "--tile", "32", "48", "64", "--tile-scores")) == 2
    error = capsys.readouterr().err
    assert "no scan to train on has centrilobular_truth and paraseptal_truth" in error
    assert error.count("\n") == 1


def test_a_folder_that_holds_something_is_not_trained_into(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert train.main(command(manifest, tmp_path)) == 2
    assert "it already holds something" in capsys.readouterr().err
    assert train.main(command(manifest, tmp_path, "--resume")) == 2
    assert "run.json cannot be read" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_options_of_a_run_that_was_started_before_the_monitor_was_part_of_the_recipe_are_read(tmp_path: Path) -> None:
    document = {"format": 2, **RunOptions().as_document()}
    document["recipe"] = {"name": "paper", "epochs": 7}
    (tmp_path / "run.json").write_text(json.dumps(document | {"monitor": "separation"}))
    recipe = RunOptions.read(tmp_path).recipe
    assert (recipe.monitor, recipe.epochs, recipe.weight_decay) == ("separation", 7, 0.0)


@pytest.mark.slow
def test_the_best_epoch_can_be_that_with_the_least_training_loss(manifest: Path, tmp_path: Path) -> None:
    options = ("--recipe", "released", "--epochs", "3", "--draws-per-score", "1", "--learning-rate", "0.1", "--decay", "1")
    assert train.main(command(short(manifest), tmp_path / "run", *options)) == 0
    losses = [float(epoch["train/loss"]) for epoch in history(tmp_path / "run")]
    best = torch.load(tmp_path / "run/checkpoints/best.ckpt", weights_only=True)["finished_epochs"]
    assert best == 1 + int(np.argmin(losses))
    assert "best of its epochs by train loss" in read_metadata(tmp_path / "run/bundle").origin


def test_separation_is_watched_only_where_bounds_say_who_has_what(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(command(short(manifest), tmp_path / "run", "--monitor", "separation")) == 2
    assert "--monitor separation: the manifest has no such validation scans" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_without_scores_kappa_is_not_watched_and_classes_are_not_trained(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bound = {"centrilobular_lower": "1", "centrilobular_upper": "5", "paraseptal_lower": "0", "paraseptal_upper": "1"}
    rows = [row("b", "", "", "train") | bound, row("f", "", "", "validation") | bound]
    path = write_manifest(manifest.parent / "bounds.csv", rows)
    assert train.main(command(path, tmp_path / "run")) == 2
    error = capsys.readouterr().err
    assert "--monitor kappa: no validation scan has a centrilobular or paraseptal score; expected scores, or --monitor" in error
    assert train.main(command(path, tmp_path / "run", "--strategy", "classification", "--monitor", "loss")) == 2
    assert "--strategy classification: no training scan has a score" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def scored(folder: Path, name: str, train_scores: tuple[object, object], validation_scores: tuple[object, object]) -> Path:
    """A manifest of one scan to train on and one to validate on, with those scores and no more."""
    rows = [row("b", *train_scores, "train", truth=False), row("f", *validation_scores, "validation", truth=False)]
    return write_manifest(folder / f"{name}.csv", rows)


@pytest.mark.parametrize("strategy", ["regression", "classification", "slices-lstm"])
def test_a_subtype_that_no_training_scan_says_anything_of_is_refused(
    strategy: str, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = scored(manifest.parent, "one-sided", (1, ""), (2, 1))
    assert train.main(command(path, tmp_path / "run", "--strategy", strategy)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"{path}: no training scan says anything of paraseptal emphysema; expected scores" in error
    assert "or --only centrilobular" in error
    apart = scored(manifest.parent, "apart", (1, ""), ("", 1))
    options = ("--strategy", strategy, "--only", "centrilobular", "--monitor")
    for monitor, complaint in (("kappa", "has a centrilobular score"), ("loss", "says anything of centrilobular emphysema")):
        assert train.main(command(apart, tmp_path / "run", *options, monitor)) == 2
        assert f"--monitor {monitor}: no validation scan {complaint}" in capsys.readouterr().err
    both = scored(manifest.parent, "both", (1, 0), (2, 0))
    assert train.main(command(both, tmp_path / "run", "--strategy", strategy, "--only", "centrilobular")) == 2
    assert "--only centrilobular: paraseptal emphysema is known to training scans" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_bounds_the_predominant_subtype_and_truth_maps_that_are_learnt_from_say_something_of_a_subtype(
    manifest: Path, bundle: Path
) -> None:
    def notes(name: str, training: dict[str, str], *options: str) -> list[str]:
        path = write_manifest(manifest.parent / f"{name}.csv", [without_maps | training, row("f", 2, 0, "validation")])
        cohort = read_manifest(path)
        return check_subtypes(parse(command(path, path.parent / "run", *options)).options.settled(cohort), cohort)

    without_maps = {"centrilobular_truth": "", "paraseptal_truth": "", "leading": ""}
    without_maps |= dict.fromkeys(("paraseptal_lower", "paraseptal_upper"), "")
    half = row("b", 1, "", "train", truth=False)
    assert notes("bounded", half | {"paraseptal_lower": "", "paraseptal_upper": "1"}) == []
    assert notes("predominant", row("b", "", "", "train", truth=False) | {"leading": "paraseptal"}) == []
    with_maps = row("b", 1, "", "train")
    assert notes("maps", with_maps, "--strategy", "voxels") == []
    anchor = ("--anchor", str(bundle))
    assert notes("maps", with_maps, "--strategy", "voxels", *anchor) == [
        "--anchor changes nothing: every training scan has truth maps"
    ]
    assert notes("bounded", half | {"paraseptal_upper": "1"}, "--strategy", "voxels", *anchor) == []
    with pytest.raises(InputError, match="no training scan says anything of paraseptal emphysema"):
        notes("maps", with_maps)
    with pytest.raises(InputError, match="no training scan says anything of paraseptal emphysema"):
        notes("leading", half | {"leading": "centrilobular"}, "--strategy", "classification")
    assert notes("simulated", half, "--strategy", "voxels", "--simulate", "2") == []
    with pytest.raises(InputError, match="paraseptal emphysema is known to simulated scans"):
        notes("simulated", half, "--strategy", "voxels", "--simulate", "2", "--only", "centrilobular")


def test_weights_to_start_from_may_know_what_the_training_scans_do_not(manifest: Path, bundle: Path, tmp_path: Path) -> None:
    path = scored(manifest.parent, "further", (1, ""), (2, ""))
    cohort = read_manifest(path)

    def notes(init: Path, *options: str) -> list[str]:
        arguments = command(path, tmp_path / "run", "--init", str(init), *options)
        return check_subtypes(parse(arguments).options.settled(cohort), cohort)

    assert notes(bundle) == ["no training scan says anything of paraseptal emphysema: only the weights of --init know it"]
    shutil.copytree(bundle, tmp_path / "earlier/bundle")
    assert notes(tmp_path / "earlier") == notes(bundle)
    with pytest.raises(InputError, match=f"paraseptal emphysema is known to {bundle}"):
        notes(bundle, "--only", "centrilobular")
    one_sided = read_bundle(bundle)
    told = replace(one_sided.metadata, performance={"training": {"only": "centrilobular"}})
    write_bundle(tmp_path / "one-sided", one_sided.network, told)
    assert notes(tmp_path / "one-sided", "--only", "centrilobular") == []
    with pytest.raises(InputError, match="no training scan says anything of paraseptal emphysema"):
        notes(tmp_path / "one-sided")


def test_a_subtype_without_validation_scores_is_told_where_kappa_chooses_the_epoch(manifest: Path, tmp_path: Path) -> None:
    path = scored(manifest.parent, "half-validated", (1, 1), (2, ""))
    cohort = read_manifest(path)
    notes = check_subtypes(parse(command(path, tmp_path / "run")).options.settled(cohort), cohort)
    assert notes == ["--monitor kappa: no validation scan has a paraseptal score; its kappa counts as 0"]


@pytest.mark.slow
def test_the_bundle_of_one_subtype_says_that_nothing_was_known_of_the_other(manifest: Path, tmp_path: Path) -> None:
    rows = [row("b", 1, "", "train"), row("d", 3, "", "train"), row("f", 2, "", "validation")]
    path = write_manifest(manifest.parent / "one.csv", rows)
    options = ("--strategy", "classification", "--epochs", "1", "--batch", "1", "--only", "centrilobular")
    assert train.main(command(path, tmp_path / "run", *options)) == 0
    metadata = read_metadata(tmp_path / "run/bundle")
    assert metadata.trained_on == "one.csv (2 train, 1 validation); nothing was known of paraseptal emphysema"
    assert metadata.performance["training"]["only"] == "centrilobular"
    with (tmp_path / "run/log/version_0/metrics.csv").open(newline="") as stream:
        epoch = {name: value for line in csv.DictReader(stream) for name, value in line.items() if value}
    assert float(epoch["train/cross_entropy_paraseptal"]) == 0 < float(epoch["train/cross_entropy_centrilobular"])


@pytest.mark.slow
def test_training_that_diverges_ends_in_one_line(manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--epochs", "3", "--batch", "1", "--learning-rate", "1e30")
    assert train.main(command(short(manifest), tmp_path / "run", *options)) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("the loss is not finite in epoch")
    assert "smaller --learning-rate" in error


def test_a_full_disk_is_one_line_and_exit_code_1(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(_: RunOptions, folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(folder / "run.json"))

    monkeypatch.setattr(RunOptions, "write", write)
    assert train.main(command(short(manifest), tmp_path / "run")) == 1
    assert capsys.readouterr().err == f"[Errno 28] No space left on device: '{tmp_path / 'run' / 'run.json'}'\n"


def test_weights_to_start_from_must_fit_the_network_and_the_profile(
    manifest: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    assert train.main(command(manifest, output, "--init", str(bundle), "--profile", "released")) == 2
    assert "its profile is paper; expected one with the profile released" in capsys.readouterr().err
    assert train.main(command(manifest, output, "--init", str(bundle), "--base-width", "4")) == 2
    assert "its network is NetworkConfig(" in capsys.readouterr().err
    assert not output.exists()


def test_an_anchor_must_have_maps_of_inputs_prepared_the_same(
    manifest: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    assert train.main(command(manifest, output, "--anchor", str(bundle), "--profile", "released")) == 2
    assert "its profile is paper; expected one with the profile released" in capsys.readouterr().err
    assert train.main(command(manifest, output, "--anchor", str(tmp_path))) == 2
    assert str(tmp_path) in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.slow
def test_an_anchor_holds_the_maps_that_agree_with_it_and_is_told_by_the_bundle(
    manifest: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    """With a large weight, a step away from the anchor costs more than any other loss gains."""
    rows = [row(entity, "", "", split) for entity, split in (("b", "train"), ("d", "train"), ("f", "validation"))]
    for line in rows:
        line |= {"centrilobular_lower": "0", "centrilobular_upper": "99", "paraseptal_lower": "0", "paraseptal_upper": "99"}
    path = write_manifest(manifest.parent / "anchored.csv", rows)
    started = read_bundle(uninterrupted / "bundle")
    image = torch.rand(1, 1, *COARSE_INPUT, generator=torch.Generator().manual_seed(0))
    moved = {}
    for weight in ("0", "1000"):
        anchor = (
            "--init",
            str(uninterrupted),
            "--anchor",
            str(uninterrupted),
            "--anchor-weight",
            weight,
            "--monitor",
            "training-loss",
            "--learning-rate",
            "1e-3",
        )
        output = tmp_path / weight
        assert train.main(command(path, output, *anchor, "--epochs", "8", "--batch", "1", "--freeze-statistics")) == 0
        told = read_metadata(output / "bundle").performance["training"]
        assert told["anchor_sha256"] == started.sha256
        assert not any("anchor" in name and "sha256" not in name and "weight" not in name for name in weights(output))
        with torch.no_grad():
            pairs = zip(read_bundle(output / "bundle").network.eval()(image), started.network.eval()(image), strict=True)
            moved[weight] = sum(float((one.sigmoid() - other.sigmoid()).abs().mean()) for one, other in pairs)
    assert moved["1000"] < 0.5 * moved["0"]


def options_of(manifest: Path, output: Path, *options: str) -> RunOptions:
    return parse(command(manifest, output, *options)).options.settled(read_manifest(manifest))


def test_a_run_knows_its_options_and_is_resumed_with_no_others(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    started = options_of(manifest, tmp_path, "--strategy", "voxels", "--tile", "32", "48", "64", "--recipe", "released")
    started.write(tmp_path)
    assert RunOptions.read(tmp_path) == started
    resumed = parse(["--output", str(tmp_path), "--resume"]).options
    assert resumed == started == resumed.settled(read_manifest(manifest))
    longer = parse(["--output", str(tmp_path), "--resume", "--epochs", "300", "--workers", "1", "--licence", "mine"]).options
    assert (longer.recipe.epochs, longer.recipe.name, longer.workers, longer.tile) == (300, "released", 1, (32, 48, 64))
    started.check_resumable(longer, tmp_path)
    assert train.main(["--output", str(tmp_path), "--resume", "--seed", "4", "--decay", "0.5"]) == 2
    assert "seed was 0 and is 4, decay was 0.95 and is 0.5" in capsys.readouterr().err


def test_a_manifest_that_has_changed_is_not_gone_on_with(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = short(manifest)
    options_of(path, tmp_path).write(tmp_path)
    path.write_text(path.read_text() + "\n")
    assert train.main(["--output", str(tmp_path), "--resume"]) == 2
    assert "it cannot be resumed: manifest_sha256 was" in capsys.readouterr().err


def test_a_manifest_behind_a_link_is_read_through_the_link_again(manifest: Path, tmp_path: Path) -> None:
    """Its paths are relative to the link's folder."""
    link, elsewhere = tmp_path / "cohort" / "cohort.csv", tmp_path / "lists" / "cohort.csv"
    for folder in (link.parent, elsewhere.parent):
        folder.mkdir()
    shutil.copy(manifest, elsewhere)
    link.symlink_to(elsewhere)
    for path in manifest.parent.glob("?_*.mha"):
        (link.parent / path.name).symlink_to(path)
    started = parse(["--manifest", str(link), "--output", str(tmp_path), *TINY]).options.settled(read_manifest(link))
    started.write(tmp_path)
    resumed = parse(["--output", str(tmp_path), "--resume"]).options
    assert resumed.manifest == link
    assert resumed.cache_folder == link.parent / "cache"


def test_a_cohort_that_has_moved_takes_its_cache_along_unless_the_run_was_given_one(manifest: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved" / "cohort.csv"
    moved.parent.mkdir()
    shutil.copy(manifest, moved)
    for given, expected in (((), moved.parent / "cache"), (("--cache", str(tmp_path / "fast")), tmp_path / "fast")):
        started = parse(["--manifest", str(manifest), "--output", str(tmp_path), *TINY, *given]).options
        settled = started.settled(read_manifest(manifest))
        assert settled.cache_folder == (manifest.parent / "cache" if not given else expected)
        settled.write(tmp_path)
        resumed = parse(["--output", str(tmp_path), "--resume", "--manifest", str(moved)]).options
        assert resumed.cache_folder == expected


@pytest.mark.parametrize("kind", ["cut off", "empty", "nonsense", "something else", "another network"])
def test_a_damaged_checkpoint_is_one_line_and_nothing_is_changed(
    kind: str, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    (output / "checkpoints").mkdir(parents=True)
    options_of(manifest, output).write(output)
    best, last = (output / "checkpoints" / f"{name}.ckpt" for name in ("best", "last"))
    content: object = {"finished_epochs": 1, "global_step": 4, "state_dict": {"network.weight": torch.ones(1000)}}
    torch.save([content] if kind == "something else" else content, best)
    if kind in ("cut off", "empty", "nonsense"):
        best.write_bytes({"cut off": best.read_bytes()[:2000], "empty": b"", "nonsense": b"nonsense"}[kind])
    shutil.copy(best, last)
    before = (output / "run.json").read_bytes()
    commands = [["--export-only"], ["--resume", "--licence", "mine"]]
    for arguments in commands[:1] if kind == "another network" else commands:
        assert train.main(["--output", str(output), *arguments]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "expected a whole checkpoint, as train.py writes it" in error
    assert (output / "run.json").read_bytes() == before
    assert not (output / "bundle").exists()


def test_every_option_says_what_it_does_and_is_told_by_the_bundle_unless_it_concerns_the_machine(manifest: Path) -> None:
    text = build_parser().format_help()
    document = options_of(manifest, manifest.parent).as_document()
    for name in (*document, *document["recipe"]):
        if name not in ("manifest_sha256", "init_sha256", "anchor_sha256", "name") and name != "recipe":
            assert f"--{name.replace('_', '-')}" in text
    told = options_of(manifest, manifest.parent).provenance()
    assert set(document) - set(told) == {"manifest", "cache", "init", "anchor", "workers", "name"}
    assert str(manifest.parent) not in json.dumps(told)


def test_options_of_a_recipe_change_that_recipe(manifest: Path, tmp_path: Path) -> None:
    recipe = options_of(manifest, tmp_path, "--recipe", "released", "--no-overlap-in-lung", "--smoothness", "0.7").recipe
    assert (recipe.name, recipe.overlap_in_lung, recipe.smoothness, recipe.decay) == ("released", False, 0.7, 0.95)
    assert recipe.learning_rate == 0.01


def test_a_run_without_a_finished_epoch_has_nothing_to_export(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options_of(manifest, tmp_path).write(tmp_path)
    assert train.main(["--output", str(tmp_path), "--export-only"]) == 2
    assert "no epoch of the run is finished" in capsys.readouterr().err
