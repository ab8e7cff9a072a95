from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from model.errors import InputError
from model.fleischner import CENTRILOBULAR, PARASEPTAL
from model.simulation import CaseParameters, NoRoomError, SimulatedCase
from model.subtyping import EmphysemaSubtyper
from model.training import quantize
from model.training.quantize import Comparison, check, logit_offset, summary
from model.weights import METADATA_FILE, read_bundle, read_eight_bit
from model.weights import main as weights_command
from test.conftest import ROOT
from test.container.schema import problems_of
from test.phantom import HALF_INPUT, write_dark_detector

CASE = ROOT / "test" / "input"


def compared(exact: float, found: float) -> Comparison:
    return Comparison("a scan", CENTRILOBULAR, exact, found)


@pytest.mark.parametrize(
    ("exact", "found", "kept"),
    [(3.0, 3.19, True), (3.0, 3.21, False), (4.9, 5.05, True), (0.85, 1.02, True), (29.7, 30.0, False), (50.0, 49.7, False)],
)
def test_a_promise_is_kept_within_the_difference_and_scores_change_near_thresholds_alone(
    exact: float, found: float, kept: bool
) -> None:
    assert compared(exact, found).is_kept == kept


def test_the_worst_of_the_broken_promises_is_named() -> None:
    right, wrong, worst = compared(3, 3.1), compared(7, 7.5), Comparison("scan 9", PARASEPTAL, 2.0, 1.25)
    check(Path("bundle"), [right])
    with pytest.raises(InputError, match=r"2 of 3 percentages .* paraseptal of scan 9, 1\.25 instead of 2\.00 %"):
        check(Path("bundle"), [right, wrong, worst])


def test_a_seed_below_0_and_an_output_that_cannot_be_written_are_one_line(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        quantize.main([str(bundle), "--output", "/proc/bundle", "--seed", "-1"])
    assert caught.value.code == 2
    assert "--seed: '-1': expected a whole number of at least 0" in capsys.readouterr().err
    monkeypatch.setattr(quantize, "_made_and_checked", lambda *_: None)
    assert quantize.main([str(bundle), "--output", "/proc/bundle"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("/proc: it cannot be written")
    assert error.count("\n") == 1


def test_the_record_counts_scans_and_scores() -> None:
    scans = [
        Comparison("one", CENTRILOBULAR, 4.95, 5.05),
        Comparison("one", PARASEPTAL, 3, 3),
        Comparison("two", PARASEPTAL, 9, 9.5),
    ]
    assert summary(scans) == {
        "scans": 2,
        "largest_difference": 0.5,
        "median_difference": 0.1,
        "scores_changed": 1,
        "scores_changed_away_from_a_threshold": 0,
    }


def test_an_offset_makes_the_mean_activation_agree() -> None:
    generator = np.random.default_rng(0)
    scans = []
    for mean in (-3.0, 0.5):
        exact = generator.normal(mean, 2, 5000)
        scans.append((exact, exact + 0.25 + generator.normal(0, 0.01, 5000)))
    assert logit_offset(scans) == pytest.approx(-0.25, abs=0.002)
    assert logit_offset([(np.full(9, 50.0), np.full(9, -50.0))]) == 0  # no offset of a sensible size does it


@pytest.mark.slow
def test_a_bundle_gets_an_8_bit_network_that_process_py_uses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = write_dark_detector(tmp_path / "plain", input_shape=HALF_INPUT)
    few = ["--calibration", "2", "--check", "1", "--scans", str(CASE)]
    monkeypatch.setattr(quantize, "LARGEST_DIFFERENCE", 1e-6)
    assert quantize.main([str(plain), "--output", str(tmp_path / "refused"), *few]) == 2
    assert "are too far from float32" in capsys.readouterr().err
    assert not (tmp_path / "refused").exists()

    monkeypatch.undo()
    bundle = tmp_path / "bundle"
    assert quantize.main([str(plain), "--output", str(bundle), *few]) == 0
    assert weights_command(["verify", str(bundle)]) == 0
    record = json.loads((bundle / METADATA_FILE).read_text())["int8"]
    assert record["check"]["scans"] == 2
    assert 0 < record["check"]["largest_difference"] <= quantize.LARGEST_DIFFERENCE
    assert read_bundle(bundle).metadata == read_bundle(plain).metadata
    assert torch.equal(*(read_bundle(place).network.state_dict()["head.paraseptal.bias"] for place in (plain, bundle)))

    percentages = {}
    for precision in ("float32", "int8"):
        output = tmp_path / precision
        options = [f"--input={CASE}", f"--output={output}", f"--weights={bundle}", f"--precision={precision}"]
        subprocess.run([sys.executable, str(ROOT / "process.py"), *options], check=True)
        assert problems_of(output) == []
        (case,) = json.loads((output / "results.json").read_text())
        assert case["provenance"]["precision"] == precision
        percentages[precision] = case["metrics"]["cle_percentage"]
    assert 0 < abs(percentages["int8"] - percentages["float32"]) <= quantize.LARGEST_DIFFERENCE

    eight_bit = read_eight_bit(bundle)
    odd = dataclasses.replace(eight_bit.metadata, input_shape=(32, 56, 72))
    with pytest.raises(InputError, match="its input is"):
        EmphysemaSubtyper(dataclasses.replace(eight_bit, metadata=odd))
    with pytest.raises(InputError, match="OpenVINO cannot use it"):
        EmphysemaSubtyper(dataclasses.replace(eight_bit, model=b"<net/>"))
    with pytest.raises(InputError, match="8-bit integers are for CPUs"):
        EmphysemaSubtyper(eight_bit, "cuda")


def test_scans_without_room_are_left_out_and_another_failure_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    errors: list[Exception] = [NoRoomError("no room"), RuntimeError("out of memory")]

    def fail(_: CaseParameters) -> SimulatedCase:
        raise errors.pop(0)

    monkeypatch.setattr(quantize, "simulate", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(quantize.simulated_scans(20, 0, 2))
    assert errors == []
