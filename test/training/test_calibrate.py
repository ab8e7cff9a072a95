from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model.cohort.manifest import Scores, TrainingCase, read_manifest
from model.imaging.scan import Scan
from model.network import NetworkConfig, build_network
from model.subtyping import EmphysemaSubtyper
from model.training.calibrate import LogitCalibration, bin_centres, fit_calibration, fold, known_interval, logit_counts, main
from model.weights import read_bundle, read_metadata, write_bundle
from test.training.cohort import row, write_manifest


def hazy_cases(slope: float, offset: float) -> tuple[list[np.ndarray], list[float]]:
    """Logits of 30 scans, counted, and the percentages that the calibrated maps have."""
    generator = np.random.default_rng(0)
    counts, percentages = [], []
    for share in np.linspace(0.0, 0.4, 30):
        logits = np.where(generator.random(20_000) < share, 1.5, -1.5) + generator.normal(0, 0.6, 20_000)
        percentages.append(float(100 * (1 / (1 + np.exp(-(slope * logits + offset)))).mean()))
        counts.append(logit_counts(logits.astype(np.float32), np.ones(20_000, bool)))
    return counts, percentages


def test_slope_and_offset_are_found_from_percentages() -> None:
    counts, percentages = hazy_cases(2.5, -0.7)
    found = fit_calibration(counts, [(value, value) for value in percentages])
    assert found.slope == pytest.approx(2.5, abs=0.1)
    assert found.offset == pytest.approx(-0.7, abs=0.1)
    assert found.error_after < 0.02 < 2 < found.error_before


def test_intervals_are_met_and_a_network_that_meets_them_is_left_alone() -> None:
    counts, percentages = hazy_cases(2.5, -0.7)
    bounds = [(0.0, 6.0) if value < 6 else (6.0, 100.0) for value in percentages]
    found = fit_calibration(counts, bounds)
    assert found.error_before > 1
    assert found.error_after < 0.1
    assert fit_calibration(counts, [(0, 100)] * len(counts)) == LogitCalibration(1.0, 0.0, len(counts), 0.0, 0.0)


def test_a_network_that_is_already_best_is_left_alone() -> None:
    """Whatever may be chosen is worse."""
    counts, percentages = hazy_cases(1, 0)
    found = fit_calibration(counts, [(value, value) for value in percentages], least_slope=2)
    assert (found.slope, found.offset) == (1, 0)
    assert found.error_after == found.error_before < 0.02


def test_maps_can_be_kept_as_sharp_as_they_are() -> None:
    counts, percentages = hazy_cases(0.5, -0.7)
    intervals = [(value, value) for value in percentages]
    flatter, kept = fit_calibration(counts, intervals), fit_calibration(counts, intervals, least_slope=1)
    assert flatter.slope == pytest.approx(0.5, abs=0.1)
    assert kept.slope == pytest.approx(1)
    assert kept.offset != 0
    assert flatter.error_after < kept.error_after < kept.error_before


def test_logits_are_counted_inside_the_lung() -> None:
    logits = np.array([-100.0, 0.0, 0.004, 3.0, 100.0], np.float32)
    counts = logit_counts(logits, np.array([True, True, True, False, True]))
    centres = bin_centres()
    assert {round(float(centres[place]), 6): int(counts[place]) for place in np.flatnonzero(counts)} == {-30: 1, 0: 2, 30: 1}


def test_a_folded_calibration_changes_the_logits_and_nothing_else() -> None:
    network = build_network(NetworkConfig("resnet18", "regression", 2)).eval()
    image = torch.rand(1, 1, 16, 16, 16)
    with torch.no_grad():
        before = network(image)
        calibrations = {"centrilobular": LogitCalibration(2, -1, 1, 0, 0), "paraseptal": LogitCalibration(0.5, 3, 1, 0, 0)}
        fold(network, calibrations)
        after = network(image)
    torch.testing.assert_close(after.centrilobular, 2 * before.centrilobular - 1)
    torch.testing.assert_close(after.paraseptal, before.paraseptal / 2 + 3)


def test_the_best_that_is_known_counts() -> None:
    case = TrainingCase("a", Path("a"), Path("a"), Scores(3, None), "validation", intervals=((0, 1), None))
    assert known_interval(case, 0, (4.0, 5.0)) == (4.0, 4.0)
    assert known_interval(case, 0, None) == (10.0, 20.0)
    assert known_interval(case, 1, None) is None


def test_the_calibrated_bundle_scores_nearer_to_the_truth_and_says_how_it_was_made(
    manifest: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "calibrated"
    arguments = ("--manifest", str(manifest), "--cache", str(tmp_path / "cache"), "--workers", "0", "--device", "cpu")
    assert main([str(bundle), "--output", str(output), *arguments]) == 0
    (notes,) = read_metadata(output).performance["calibration"]
    assert notes["manifest_sha256"] == read_manifest(manifest).sha256
    assert notes["paraseptal"]["error_after"] <= notes["paraseptal"]["error_before"]
    assert "percentage points" in capsys.readouterr().out
    errors = []
    for place in (bundle, output):
        subtyper = EmphysemaSubtyper.from_bundle(place, "cpu", "float32")
        differences = []
        for case in read_manifest(manifest).of("validation"):
            assert case.truth is not None
            scan = Scan.read(case.ct, case.lung_mask)
            truth = 100 * float(Scan.read(case.ct, case.truth[0]).lung.sum() / scan.lung.sum()) if case.entity == "f" else 0.0
            percentage = subtyper.predict(scan).centrilobular.percentage
            assert percentage is not None
            differences.append(abs(percentage - truth))
        errors.append(float(np.mean(differences)))
    expected = [notes["centrilobular"][name] for name in ("error_before", "error_after")]
    assert errors == pytest.approx(expected, abs=0.05)
    assert errors[1] < errors[0]


def test_one_subtype_alone_can_be_calibrated(manifest: Path, bundle: Path, tmp_path: Path) -> None:
    arguments = ("--manifest", str(manifest), "--cache", str(tmp_path / "cache"), "--workers", "0", "--device", "cpu")
    assert main([str(bundle), "--output", str(tmp_path / "one"), "--only", "centrilobular", *arguments]) == 0
    (first,) = read_metadata(tmp_path / "one").performance["calibration"]
    assert "paraseptal" not in first
    before, after = (read_bundle(place).network.head for place in (bundle, tmp_path / "one"))
    torch.testing.assert_close(after.paraseptal.weight, before.paraseptal.weight, rtol=0, atol=0)
    assert not torch.equal(after.centrilobular.weight, before.centrilobular.weight)


def test_a_second_calibration_is_recorded_behind_the_first_and_the_validated_range_is_no_longer(
    manifest: Path, bundle: Path, tmp_path: Path
) -> None:
    read = read_bundle(bundle)
    write_bundle(tmp_path / "0", read.network, replace(read.metadata, validated_range={"noise_hu": (5.0, 20.0)}))
    arguments = ("--manifest", str(manifest), "--cache", str(tmp_path / "cache"), "--workers", "0", "--device", "cpu")
    for number, subtype in enumerate(("centrilobular", "paraseptal")):
        output = ("--output", str(tmp_path / str(number + 1)), "--only", subtype)
        assert main([str(tmp_path / str(number)), *output, *arguments]) == 0
    metadata = read_metadata(tmp_path / "2")
    assert [("centrilobular" in notes, "paraseptal" in notes) for notes in metadata.performance["calibration"]] == [
        (True, False),
        (False, True),
    ]
    assert metadata.origin.endswith(
        "centrilobular logits calibrated on 2 validation scans; paraseptal logits calibrated on 2 validation scans"
    )
    assert metadata.validated_range == {}


def test_logits_stay_as_they_are_where_nothing_is_gained() -> None:
    """Every voxel has a logit of -3.29: 3.59 %, 0.004 points from the truth."""
    centres = bin_centres()
    counts = np.where(np.isclose(centres, -3.3), 1000, 0)
    percentage = 100 / (1 + np.exp(3.3))
    found = fit_calibration([counts] * 3, [(percentage + 0.004,) * 2] * 3)
    assert (found.slope, found.offset) == (1, 0)
    found = fit_calibration([counts] * 3, [(percentage + 0.4,) * 2] * 3)
    assert found.error_after < 0.01 < found.error_before


def test_what_cannot_be_calibrated_is_refused(
    manifest: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ("--cache", str(tmp_path / "cache"), "--workers", "0", "--device", "cpu")
    assert main([str(bundle), "--manifest", str(manifest), "--output", str(tmp_path), *common]) == 2
    assert "it exists; expected a new folder" in capsys.readouterr().err
    unknown = row("f", 2, "", "validation", truth=False) | {"paraseptal_lower": "", "paraseptal_upper": ""}
    path = write_manifest(manifest.parent / "one-sided.csv", [unknown])
    assert main([str(bundle), "--manifest", str(path), "--output", str(tmp_path / "new"), *common]) == 2
    assert f"{path}: nothing is known of paraseptal emphysema of any validation scan" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    with pytest.raises(SystemExit):
        main([str(bundle), "--manifest", str(manifest), "--output", str(tmp_path / "new"), "--least-slope", "0"])
    assert "--least-slope is 0, expected 0.2 to 5" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(bundle), "--manifest", str(manifest), "--output", str(tmp_path / "new"), "--workers", "-1"])
    assert "--workers: '-1': expected a whole number of at least 0" in capsys.readouterr().err


def test_an_output_that_cannot_be_written_is_one_line(
    manifest: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ("--manifest", str(manifest), "--cache", str(tmp_path / "cache"), "--workers", "0", "--device", "cpu")
    assert main([str(bundle), "--output", "/proc/bundle", *common]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("/proc: it cannot be written")


def test_a_calibrated_bundle_does_not_keep_what_the_weights_were_validated_on(
    manifest: Path, bundle: Path, tmp_path: Path
) -> None:
    validated = read_bundle(bundle)
    write_bundle(tmp_path / "validated", validated.network, replace(validated.metadata, validated_on="500 scored scans"))
    arguments = ("--manifest", str(manifest), "--cache", str(tmp_path / "cache"), "--workers", "0", "--device", "cpu")
    assert main([str(tmp_path / "validated"), "--output", str(tmp_path / "calibrated"), *arguments]) == 0
    assert read_metadata(tmp_path / "validated").validated_on == "500 scored scans"
    assert read_metadata(tmp_path / "calibrated").validated_on is None
