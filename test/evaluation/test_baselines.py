from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from evaluate import main as evaluate
from model.container.grand_challenge import MAP_FOLDERS
from model.evaluation.baselines import RIM_MM, all_centrilobular, low_attenuation, main, rim_paraseptal
from model.evaluation.calibrated_rule import pleural_depth as depth
from model.fleischner import CENTRILOBULAR, PARASEPTAL
from model.imaging.scan import Scan
from model.lungs.densitometry import measure
from model.lungs.regions import Regions
from test.container.schema import problems_of
from test.evaluation.results import write_simulated_reference
from test.phantom import LESION_HU, Phantom, make_phantom, write_case


def scan_of(phantom: Phantom, orientation: str = "LPS") -> Scan:
    return Scan.from_images(*phantom.images(orientation))


@pytest.fixture(scope="module")
def rimmed() -> Phantom:
    """A phantom whose right lung is emphysema throughout, and the left lung sound."""
    phantom = make_phantom((50, 64, 80), (5.0, 4.0, 4.0))
    return dataclasses.replace(phantom, hounsfield=np.where(phantom.lungs == 1, LESION_HU, phantom.hounsfield).astype(np.int16))


def test_depth_is_the_distance_to_the_outside_in_mm(rimmed: Phantom) -> None:
    """Through the middle of the right lung along x: voxels of 4 mm, so 4, 8, 12, ... from either side."""
    scan = scan_of(rimmed)
    row = depth(scan)[25, 32]
    inside = np.flatnonzero(scan.lung[25, 32, :40])
    first, last = inside[0], inside[-1]
    assert row[[first, first + 1, last]] == pytest.approx([4, 8, 4], abs=0.5)
    assert not depth(scan)[~scan.lung].any()


def test_what_lies_beyond_the_image_is_outside() -> None:
    """A lung that fills its image, 20 voxels of 3 mm, is 3 mm deep at its first voxel."""
    hounsfield = np.full((20, 20, 20), -860, np.int16)
    images = [sitk.GetImageFromArray(array) for array in (hounsfield, np.ones((20, 20, 20), np.uint8))]
    hounsfield[0, 0, 0] = -700
    images[0] = sitk.GetImageFromArray(hounsfield)
    for image in images:
        image.SetSpacing((3.0, 3.0, 3.0))
    deep = depth(Scan.from_images(*images))
    assert deep[0, 10, 10] == 3
    assert deep[9, 9, 9] == 30


def test_the_rule_without_a_rim_is_laa_950(rimmed: Phantom) -> None:
    scan = scan_of(rimmed)
    centrilobular, paraseptal = all_centrilobular(scan)
    share = 100 * np.count_nonzero(centrilobular) / np.count_nonzero(scan.lung)
    assert share == pytest.approx(measure(scan, Regions.of(scan))[0].laa950_percentage)
    assert not paraseptal.any()


def test_the_rim_is_paraseptal_and_the_core_centrilobular(rimmed: Phantom) -> None:
    scan = scan_of(rimmed)
    centrilobular, paraseptal = rim_paraseptal(scan)
    assert not (centrilobular & paraseptal).any()
    assert ((centrilobular | paraseptal) == low_attenuation(scan)).all()
    assert depth(scan)[paraseptal].max() <= RIM_MM < depth(scan)[centrilobular].min()
    row = [("C" if c else "P" if p else ".") for c, p in zip(centrilobular[25, 32, :40], paraseptal[25, 32, :40], strict=True)]
    assert "".join(row).strip(".").startswith("PPC")
    assert "".join(row).strip(".").endswith("CPP")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory, rimmed: Phantom) -> Path:
    """Two cases laid out as a cohort, the second stored in another orientation, with truth of which all is centrilobular."""
    root = tmp_path_factory.mktemp("cohort")
    for entity, orientation in (("one", "LPS"), ("two", "RAS")):
        ct, mask = rimmed.images(orientation)
        write_case(root / entity, ct, mask, stem=entity)
        truth = sitk.BinaryThreshold(mask, 1, 1, 1, 0)
        (root / entity / "truth").mkdir()
        sitk.WriteImage(truth, str(root / entity / "truth" / "centrilobular.mha"))
        sitk.WriteImage(truth * 0, str(root / entity / "truth" / "paraseptal.mha"))
    return root


def metrics(folder: Path) -> dict[str, Any]:
    (result,) = json.loads((folder / "results.json").read_text())
    return dict(result["metrics"])


def test_rules_are_written_as_results_that_evaluate_measures(cohort: Path, tmp_path: Path) -> None:
    rules = tmp_path / "rules"
    assert main([str(cohort), "--output", str(rules), "--workers", "2"]) == 0
    plain, rim = (metrics(rules / rule / "two") for rule in ("laa950", "laa950-rim"))
    assert plain == metrics(rules / "laa950" / "one")  # whatever the orientation
    assert problems_of(rules / "laa950" / "two") == []
    assert plain["laa950_percentage"] == pytest.approx(plain["cle_percentage"], abs=1e-4)
    assert [plain["regions"][side]["cle_percentage"] for side in ("right", "left")] == [100, 0]
    assert plain["cle_percentage"] == pytest.approx(50, abs=1)
    assert plain["pse_percentage"] == 0
    assert rim["cle_percentage"] + rim["pse_percentage"] == pytest.approx(plain["cle_percentage"], abs=2e-4)
    assert rim["cle_severity_score"] == CENTRILOBULAR.score(rim["cle_percentage"])
    assert rim["pse_severity_score"] == PARASEPTAL.score(rim["pse_percentage"])

    reference = write_simulated_reference(
        tmp_path / "reference.csv", dict.fromkeys(("one", "two"), (plain["cle_percentage"], 0))
    )
    arguments = ["--reference", str(reference), "--truth", str(cohort), "--output"]
    for rule in ("laa950", "laa950-rim"):
        assert evaluate(["--predictions", str(rules / rule), *arguments, str(tmp_path / rule)]) == 0
    perfect, confused = (json.loads((tmp_path / rule / "metrics.json").read_text()) for rule in ("laa950", "laa950-rim"))
    assert perfect["method"] == "laa950"
    assert perfect["centrilobular"]["voxels"]["pooled_dice"] == 1
    assert perfect["centrilobular"]["percentages"]["mean_absolute_error_points"] == pytest.approx(0, abs=1e-4)
    claimed = confused["centrilobular"]["voxels"]["claimed_by_other"]
    assert claimed == pytest.approx(rim["pse_percentage"] / plain["cle_percentage"], abs=1e-4)


def test_maps_lie_on_the_ct_s_own_grid(cohort: Path, tmp_path: Path) -> None:
    assert main([str(cohort), "--output", str(tmp_path)]) == 0
    ct = sitk.ReadImage(str(cohort / "two/images/ct/two.mha"))
    for folder in MAP_FOLDERS.values():
        found = sitk.ReadImage(str(tmp_path / "laa950-rim/two" / folder / "two.mha"))
        assert found.GetDirection() == ct.GetDirection()
        assert found.GetSize() == ct.GetSize()
        assert found.GetPixelIDTypeAsString() == "8-bit unsigned integer"


def test_a_case_that_cannot_be_used_is_named_and_the_others_go_on(
    tmp_path: Path, rimmed: Phantom, capsys: pytest.CaptureFixture[str]
) -> None:
    for entity in ("good", "broken"):
        write_case(tmp_path / "cases" / entity, *rimmed.images(), stem=entity)
    (tmp_path / "cases/broken/images/lung-mask/broken.mha").write_bytes(b"")
    assert main([str(tmp_path / "cases"), "--output", str(tmp_path / "rules")]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "broken.mha: the file is empty" in captured.err
    assert "1 cases scored" in captured.out
    (failed,) = json.loads((tmp_path / "rules/laa950/broken/results.json").read_text())
    assert failed.keys() == {"entity", "warnings", "error_messages"}
    assert problems_of(tmp_path / "rules/laa950/broken") == []
    assert metrics(tmp_path / "rules/laa950/good")["cle_percentage"] > 40


@pytest.mark.parametrize("name", ["rules", "rules/laa950-rim"])
def test_an_output_that_is_a_file_is_refused_in_one_line(
    name: str, cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    assert main([str(cohort), "--output", str(tmp_path / "rules")]) == 2
    error = capsys.readouterr().err
    assert "it cannot be created" in error
    assert error.count("\n") == 1


def test_a_folder_without_cases_or_with_two_of_one_name_is_refused(
    tmp_path: Path, rimmed: Phantom, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path), "--output", str(tmp_path / "rules")]) == 2
    for folder in ("one", "two"):
        write_case(tmp_path / folder, *rimmed.images(), stem="scan")
    assert main([str(tmp_path), "--output", str(tmp_path / "rules")]) == 2
    assert not (tmp_path / "rules").exists()
    lines = capsys.readouterr().err.splitlines()
    assert "no folder in it holds a case" in lines[0]
    assert "several CTs are called scan" in lines[1]
