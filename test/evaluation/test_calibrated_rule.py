"""The calibrated rule on phantoms whose emphysema is known by construction."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from model.cohort.manifest import Scores, TrainingCase
from model.errors import InputError
from model.evaluation import calibrated_rule
from model.evaluation.baselines import main as baselines
from model.evaluation.calibrated_rule import CalibratedRule, Line, fit, pleural_depth
from model.imaging.scan import Scan
from test.phantom import Phantom, make_phantom, write_case

SHAPE, SPACING = (25, 32, 40), (10.0, 8.0, 8.0)


def darkened(share: float, hu: int) -> Phantom:
    """A phantom of which the deepest `share` of the lungs has `hu`."""
    phantom = make_phantom(SHAPE, SPACING)
    depth = pleural_depth(Scan.from_images(*phantom.images()))
    inside = phantom.lungs > 0
    limit = np.quantile(depth[inside], 1 - share) if share else np.inf
    return dataclasses.replace(phantom, hounsfield=np.where(inside & (depth >= limit), hu, phantom.hounsfield).astype(np.int16))


def case_of(folder: Path, name: str, phantom: Phantom, percentages: tuple[float, float]) -> TrainingCase:
    case = folder / name
    write_case(case, *phantom.images())
    ct, lung_mask = (next((case / "images" / kind).iterdir()) for kind in ("ct", "lung-mask"))
    return TrainingCase(name, ct, lung_mask, Scores(0, 0), "validation", percentages=percentages)


def test_a_threshold_above_950_is_found_where_emphysema_is_less_dark(tmp_path: Path) -> None:
    """Lesions of -935 HU in the core: only thresholds above that see them; the line maps their share to the truth."""
    cases = []
    for number, share in enumerate((0.0, 0.1, 0.2, 0.3)):
        phantom = darkened(share, -935)
        lung = phantom.lungs > 0
        measured = 100 * float((phantom.hounsfield[lung] == -935).mean())
        cases.append(case_of(tmp_path, f"c{number}", phantom, (0.5 * measured + 1, 0.0)))
    rule = fit(cases, "four phantoms")
    assert rule.threshold_hu > -935
    assert (rule.centrilobular.slope, rule.centrilobular.offset) == pytest.approx((0.5, 1.0), abs=1e-3)
    assert rule.paraseptal(3.0) == pytest.approx(0.0, abs=1e-6)


def test_a_line_stays_within_0_and_100() -> None:
    line = Line(2.0, -5.0)
    assert [line(value) for value in (0.0, 10.0, 80.0)] == [0.0, 15.0, 100.0]


def test_the_baselines_score_with_a_rule_that_was_written(tmp_path: Path) -> None:
    """-960 HU in the deepest fifth: the core's share is measured, and the line halves it."""
    phantom = darkened(0.2, -960)
    write_case(tmp_path / "cases" / "a", *phantom.images())
    CalibratedRule(0.0, -950.0, 8.0, Line(0.5, 0.0), Line(1.0, 2.0), "phantoms").write(tmp_path / "rule.json")
    arguments = [str(tmp_path / "cases"), "--output", str(tmp_path / "out"), "--calibrated", str(tmp_path / "rule.json")]
    assert baselines(arguments) == 0
    (found,) = (tmp_path / "out" / "calibrated").glob("*/results.json")
    (result,) = json.loads(found.read_text())
    share = 100 * float((phantom.hounsfield[phantom.lungs > 0] == -960).mean())
    assert result["metrics"]["cle_percentage"] == pytest.approx(0.5 * share, abs=1e-3)
    assert result["metrics"]["pse_percentage"] == pytest.approx(2.0)
    assert result["provenance"]["trained_on"] == "phantoms"


def test_a_file_that_is_no_rule_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rule.json").write_text("{}")
    with pytest.raises(InputError, match="no calibrated rule"):
        CalibratedRule.read(tmp_path / "rule.json")


def test_a_rule_that_cannot_be_written_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rule = CalibratedRule(0.0, -950.0, 8.0, Line(0.5, 0.0), Line(1.0, 2.0), "phantoms")
    monkeypatch.setattr(calibrated_rule, "read_manifest", lambda _: None)
    monkeypatch.setattr(calibrated_rule, "fit_on_validation", lambda _: rule)
    assert calibrated_rule.main([str(tmp_path / "manifest.csv"), "--output", "/proc/nowhere/rule.json"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("/proc/nowhere/rule.json: [Errno 2] No such file or directory")
