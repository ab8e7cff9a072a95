from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from evaluate import main
from model.errors import InputError
from model.evaluation import challenge
from model.evaluation.challenge import ground_truth, read_job
from test.evaluation.results import write_simulated_reference
from test.evaluation.test_voxels import write_map

SLUGS = {"centrilobular": "centrilobular-emphysema-score", "paraseptal": "paraseptal-emphysema-score"}
REFERENCE = {"scan-a": (14.0, 3.0), "scan-b": (0.0, 8.0), "scan-c": (35.0, 0.5)}


def job(pk: str, entity: str, kind: str = "interface", **changes: Any) -> dict[str, Any]:
    """A job as the platform lists it; `kind` is what it calls its inputs and outputs."""
    inputs = [
        {"image": {"name": f"{entity}-lungs.mha"}, kind: {"slug": "lung-mask", "relative_path": "images/lung-mask"}},
        {"image": {"name": f"{entity}.mha"}, kind: {"slug": "ct-image", "relative_path": "images/ct"}},
    ]
    outputs: list[dict[str, Any]] = [
        {"image": None, "value": None, kind: {"slug": slug, "relative_path": f"{slug}.json"}} for slug in SLUGS.values()
    ]
    return {"pk": pk, "status": "Succeeded", "inputs": inputs, "outputs": outputs} | changes


def write_scores(root: Path, pk: str, cle: Any, pse: Any) -> None:
    folder = root / "input" / pk / "output"
    folder.mkdir(parents=True)
    for slug, content in zip(SLUGS.values(), (cle, pse), strict=True):
        (folder / f"{slug}.json").write_text(json.dumps(content))


def run(root: Path, jobs: Any, *arguments: str) -> tuple[int, dict[str, Any]]:
    (root / "input").mkdir(exist_ok=True)
    (root / "input" / "predictions.json").write_text(json.dumps(jobs))
    write_simulated_reference(root / "truth" / "reference.csv", REFERENCE)
    folders = ["--input", str(root / "input"), "--ground-truth", str(root / "truth"), "--output", str(root / "output")]
    code = main([*folders, "--workers", "2", "--resamples", "200", *arguments])
    metrics = root / "output" / "metrics.json"
    return code, json.loads(metrics.read_text()) if metrics.exists() else {}


@pytest.fixture
def submitted(tmp_path: Path) -> Path:
    """Three jobs' files: one right, one off by a grade, one that tells scores alone."""
    write_scores(tmp_path, "job-1", {"score": 3, "severity": "moderate", "percentage": 13.0}, {"score": 1, "percentage": 2.0})
    write_scores(tmp_path, "job-2", {"score": 1, "severity": "trace", "percentage": 1.5}, {"score": 2, "percentage": 9.0})
    write_scores(tmp_path, "job-3", 5, 0)
    return tmp_path


@pytest.mark.parametrize("kind", ["interface", "socket"])
def test_jobs_become_results_a_case_and_aggregates(submitted: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = [job("job-1", "scan-a", kind), job("job-2", "scan-b", kind), job("job-3", "scan-c", kind)]
    code, metrics = run(submitted, jobs)
    captured = capsys.readouterr()
    assert (code, captured.err) == (0, "")
    assert metrics["failures"] == []
    assert [case["entity"] for case in metrics["results"]] == ["scan-a", "scan-b", "scan-c"]
    assert metrics["results"][1] == {
        "entity": "scan-b",
        "job": "job-2",
        "centrilobular": {"reference": 0, "predicted": 1, "reference_percentage": 0.0, "predicted_percentage": 1.5},
        "paraseptal": {"reference": 2, "predicted": 2, "reference_percentage": 8.0, "predicted_percentage": 9.0},
    }
    aggregates = metrics["aggregates"]
    assert aggregates["centrilobular"]["n"] == 3
    assert aggregates["centrilobular"]["accuracy"] == pytest.approx(2 / 3)
    assert aggregates["paraseptal"]["linear_weighted_kappa"] == 1
    assert aggregates["centrilobular"]["percentages"]["mean_absolute_error_points"] == pytest.approx((1 + 1.5) / 2)


MALFORMED: dict[str, tuple[Any, str]] = {
    "failed": (job("job-3", "scan-c", status="Failed"), "job-3: its status is 'Failed'; expected Succeeded"),
    "without outputs": (job("job-3", "scan-c", outputs=[]), "job-3: malformed (KeyError: 'centrilobular-emphysema-score')"),
    "without a CT": (job("job-3", "scan-c", inputs=[]), "job-3: malformed (LookupError: 0 images at images/ct)"),
    "of another shape": (job("job-3", "scan-c", outputs={"a": 1}), "job-3: malformed"),
    "without pk": ({"status": "Succeeded"}, "a job without pk"),
    "no object": ("job-3", "a job without pk"),
    "without files": (job("job-4", "scan-c"), "job-4/output/centrilobular-emphysema-score.json: no score can be read"),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_a_malformed_job_says_what_is_wrong_with_it(submitted: Path, kind: str) -> None:
    malformed, problem = MALFORMED[kind]
    with pytest.raises(InputError, match=re.escape(problem)):
        read_job(malformed, submitted / "input", None)


@pytest.mark.parametrize("content", [9, {"percentage": 3}, {"score": None}, {"score": 2, "percentage": 200}, [3], None, "x"])
def test_a_score_that_is_none_names_its_file(submitted: Path, content: Any) -> None:
    write_scores(submitted, "job-4", content, 0)
    with pytest.raises(InputError, match=r"job-4/output/centrilobular-emphysema-score\.json: "):
        read_job(job("job-4", "scan-c"), submitted / "input", None)


def test_jobs_that_cannot_be_scored_are_named_and_the_others_are_scored(
    submitted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scores(submitted, "job-x", 1, 1)
    failed = job("job-3", "scan-c", status="Failed")
    code, metrics = run(
        submitted, [job("job-1", "scan-a"), failed, {"status": "?"}, job("job-2", "scan-b"), job("job-x", "scan-x")]
    )
    lines = capsys.readouterr().err.splitlines()
    assert code == 2
    assert [line.partition(": ")[0] for line in lines] == ["job-3", "job 3 of the list", "scan-c", "scan-x"]
    assert [case["entity"] for case in metrics["results"]] == ["scan-a", "scan-b"]
    assert [failure["job"] for failure in metrics["failures"]] == ["job-3", "job 3 of the list"]
    assert metrics["aggregates"]["cases"] == {"paired": 2, "not_predicted": ["scan-c"], "not_in_reference": ["scan-x"]}
    assert metrics["aggregates"]["centrilobular"]["n"] == 2


def test_two_jobs_of_one_scan_are_both_left_out_and_allow_missing_lets_that_pass(submitted: Path) -> None:
    write_scores(submitted, "job-4", 0, 0)
    jobs = [job("job-1", "scan-a"), job("job-2", "scan-b"), job("job-3", "scan-c"), job("job-4", "scan-c")]
    code, metrics = run(submitted, jobs, "--allow-missing")
    assert code == 0
    assert metrics["failures"] == [
        {"job": name, "error": "scan-c is the scan of 2 jobs, expected one"} for name in ("job-3", "job-4")
    ]
    assert [case["entity"] for case in metrics["results"]] == ["scan-a", "scan-b"]


def test_a_process_that_dies_loses_its_own_job_alone(
    submitted: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("model.evaluation.challenge.read_job", dying_read_job)
    code, metrics = run(submitted, [job("job-1", "scan-a"), job("job-2", "scan-b"), job("dies", "scan-c")])
    assert code == 1
    assert "dies: its process ended with exit code -9" in capsys.readouterr().err
    assert [case["entity"] for case in metrics["results"]] == ["scan-a", "scan-b"]
    assert metrics["failures"] == [{"job": "dies", "error": "its process ended with exit code -9"}]


def dying_read_job(job: Any, folder: Path, truth: Path | None) -> Any:
    """Stands for `read_job` in another process, where nothing is patched."""
    if job["pk"] == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    return challenge.read_job(job, folder, truth)


@pytest.mark.parametrize("jobs", [{"pk": "job-1"}, [], [job("job-9", "scan-a")]])
def test_without_any_job_that_can_be_read_nothing_is_written(
    submitted: Path, jobs: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    code, metrics = run(submitted, jobs)
    assert (code, metrics) == (2, {})
    assert capsys.readouterr().err.count("\n") == 1


def test_maps_are_measured_where_the_ground_truth_has_voxels(submitted: Path) -> None:
    outputs = job("job-1", "scan-a")["outputs"]
    for name, claimed in (("centrilobular", {0: 255, 1: 255}), ("paraseptal", {2: 255})):
        slug = f"{name}-emphysema-heatmap"
        outputs.append({"interface": {"slug": slug, "relative_path": f"images/{slug}"}})
        write_map(submitted / "input/job-1/output/images" / slug / "1f3a.mha", claimed)
        write_map(submitted / "truth/scan-a/truth" / f"{name}.mha", {0: 1, 2: 1} if name == "centrilobular" else {})
    jobs = [job("job-1", "scan-a", outputs=outputs), job("job-2", "scan-b"), job("job-3", "scan-c")]
    code, metrics = run(submitted, jobs)
    assert code == 0
    voxels = metrics["results"][0]["centrilobular"]["voxels"]
    assert (voxels["pooled_dice"], voxels["claimed_by_other"]) == (0.5, 0.5)
    assert "voxels" not in metrics["results"][1]["centrilobular"]
    assert metrics["aggregates"]["centrilobular"]["voxels"]["n"] == 1


def test_the_ground_truth_is_the_first_folder_that_holds_a_reference(tmp_path: Path) -> None:
    write_simulated_reference(tmp_path / "beside" / "reference.csv", REFERENCE)
    assert ground_truth(tmp_path / "mounted", tmp_path / "beside") == tmp_path / "beside"
    write_simulated_reference(tmp_path / "mounted" / "reference.csv", REFERENCE)
    assert ground_truth(tmp_path / "mounted", tmp_path / "beside") == tmp_path / "mounted"


def test_a_job_whose_scan_the_ground_truth_has_no_score_of_is_told_from_one_that_it_does_not_hold(
    submitted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(submitted, [job("job-1", "scan-a"), job("job-2", "scan-b"), job("job-3", "scan-x")])
    reference = submitted / "truth" / "reference.csv"
    reference.write_text("entity,centrilobular,paraseptal\nscan-a,3,1\nscan-b,,\n")
    capsys.readouterr()
    folders = ["--input", str(submitted / "input"), "--ground-truth", str(reference.parent)]
    assert main([*folders, "--output", str(submitted / "output"), "--workers", "2", "--resamples", "50"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"scan-b: {reference} has no score of it", f"scan-x: {reference} does not hold it"]
