"""Runs with Ray: plans without it, and a cluster of two nodes on this machine for what goes wrong on real ones."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from model.batch.cases import CohortCase
from model.batch.cluster import Outcome, Plan, RayRun, connected
from model.cohort.summary import read_summary
from model.errors import InputError
from test.batch.fakes import fake_work, one_for_each_node
from test.conftest import ROOT
from test.phantom import Phantom, write_case

GB = 1 << 30


def test_a_plan_has_a_network_for_each_gpu_and_readers_for_the_cpus_that_are_left() -> None:
    nodes = [{"CPU": 64.0, "GPU": 8.0}, {"CPU": 64.0, "GPU": 8.0}, {"CPU": 32.0}]
    assert Plan.of(nodes) == Plan(16, 1.0, 1.0, 4, 4, 1.0)
    assert Plan.of(nodes, per_gpu=2) == Plan(32, 1.0, 0.5, 2, 3, 1.0)
    assert Plan.of(nodes, networks=3, readers=1) == Plan(3, 1.0, 1.0, 4, 1, 1.0)


def test_a_plan_without_gpus_has_as_many_networks_as_cpus_and_memory_bear() -> None:
    assert Plan.of([{"CPU": 2.0, "memory": 16.0 * GB}]) == Plan(1, 1.75, 0.0, 2, 1, 0.25)
    assert Plan.of([{"CPU": 16.0, "memory": 64.0 * GB}]).networks == 4
    assert Plan.of([{"CPU": 64.0, "memory": 16.0 * GB}, {"CPU": 8.0, "memory": 64.0 * GB}]).networks == 4 + 2
    assert Plan.of([{"CPU": 8.0, "GPU": 1.0}], use_gpus=False).gpus == 0
    assert Plan.of([{"CPU": 1.0}]) == Plan(1, 0.75, 0.0, 1, 1, 0.25)


def test_a_cluster_whose_workers_have_not_joined_yet_has_no_networks() -> None:
    assert Plan.of([{"CPU": 0.0, "memory": 8.0 * GB}]).networks == 0
    assert Plan.of([]).networks == 0


@pytest.mark.parametrize("cpus", [1, 2, 3, 5, 8, 17])
def test_networks_and_their_readers_fit_on_a_node(cpus: int) -> None:
    """Else a network would wait for readers that can never start."""
    for gpus in (0, 1):
        plan = Plan.of([{"CPU": float(cpus), "GPU": float(gpus), "memory": 999.0 * GB}])
        assert plan.networks * (plan.cpus + plan.reader_cpus) <= cpus
        assert plan.networks >= 1


def test_no_cluster_at_the_address_is_said_in_one_line() -> None:
    with pytest.raises(InputError, match=r"--address 127\.0\.0\.1:1: nobody can be reached"), connected("127.0.0.1:1", 1):
        pass


class Nodes:
    """A Ray cluster of two nodes on this machine."""

    def __init__(self) -> None:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        from ray.cluster_utils import Cluster

        options: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}
        self.cluster = Cluster(initialize_head=True, connect=False, head_node_args=options)
        self.second = self.cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
        self.cluster.wait_for_nodes()

    def lose_second(self) -> None:
        self.cluster.remove_node(self.second, allow_graceful=False)


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    running = Nodes()
    yield running
    running.cluster.shutdown()


def cases(*names: str) -> list[CohortCase]:
    return [CohortCase(name, Path(f"{name}.mha")) for name in names]


def attempts(notes: Path, entity: str) -> int:
    return len((notes / entity).read_text().splitlines())


@pytest.mark.slow
def test_what_ends_a_worker_is_tried_twice_and_takes_no_other_case_with_it(nodes: Nodes, tmp_path: Path) -> None:
    names = ["a", "poison", "b", "once", "c", "unreadable", *(f"more-{k}" for k in range(10))]
    with connected(nodes.cluster.address, 1):
        run = RayRun(fake_work(tmp_path), one_for_each_node)
        assert run.start() == "fake"
        outcomes = {outcome.case.entity: outcome for outcome in run.score(iter(cases(*names)))}
    assert outcomes.keys() == set(names)
    lost = {name: outcome for name, outcome in outcomes.items() if outcome.value is None}
    assert {name: outcome.attempts for name, outcome in lost.items()} == {"poison": 2, "unreadable": 2}
    assert all(outcome.crashed for outcome in lost.values())
    assert (outcomes["once"].value, outcomes["once"].attempts) == (("once", "read once"), 2)
    assert attempts(tmp_path, "poison") == 2
    assert [attempts(tmp_path, name) for name in ("a", "b", "c", "more-0", "more-9")] == [1, 1, 1, 1, 1]
    assert {outcomes[name].attempts for name in ("a", "b", "c", "more-0", "more-9")} == {1}


@pytest.mark.slow
def test_the_cases_of_a_lost_node_are_scored_on_another(nodes: Nodes, tmp_path: Path) -> None:
    names = [f"slow-{k}" for k in range(6)]
    with connected(nodes.cluster.address, 1):
        run = RayRun(fake_work(tmp_path), one_for_each_node)
        run.start()
        finished: list[Outcome] = []
        for outcome in run.score(iter(cases(*names))):
            if not finished:
                nodes.lose_second()
            finished.append(outcome)
    assert sorted(outcome.case.entity for outcome in finished) == names
    assert {outcome.value is None for outcome in finished} == {False}
    assert {outcome.attempts for outcome in finished} <= {1, 2}  # a case may be scored anew before Ray knows of the loss


@pytest.fixture(scope="module")
def tree(lesioned: Phantom, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree")
    for name in ("a", "b", "c"):
        write_case(root / name, *lesioned.images(), stem=name)
    (root / "a/images/ct/a.mha").write_bytes(b"no image")
    return root


def start(tree: Path, output: Path, bundle: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, f"{ROOT}/cohort.py", f"--input={tree}", f"--output={output}", f"--weights={bundle}", *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def lines(output: Path) -> int:
    journal = output / "journal/driver.jsonl"
    return journal.read_text().count("\n") if journal.exists() else 0


@pytest.mark.slow
def test_a_killed_driver_is_continued_by_the_same_command_and_a_second_one_is_refused(
    tree: Path, bundle: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    first = start(tree, output, bundle)
    end = time.monotonic() + 240
    while lines(output) < 2 and time.monotonic() < end:
        time.sleep(0.1)
    second = start(tree, output, bundle)
    assert "another run is writing this output" in second.communicate(timeout=120)[1]
    assert second.returncode == 2
    first.send_signal(signal.SIGKILL)
    first.communicate(timeout=60)
    known = lines(output)
    maps = {path: path.stat().st_mtime_ns for path in output.rglob("b.mha")}
    again = start(tree, output, bundle)
    stdout, stderr = again.communicate(timeout=300)
    assert (again.returncode, len(stderr.splitlines())) == (2, 1), stderr
    assert "a.mha" in stderr
    assert "of 3 cases were finished before" in stdout
    assert known >= 2
    rows = {row["entity"]: row for row in read_summary(output / "cohort.parquet")}
    assert {name: row["state"] for name, row in rows.items()} == {"a": "failed", "b": "scored", "c": "scored"}
    assert {path: path.stat().st_mtime_ns for path in maps} == maps
    (result,) = json.loads((output / "cases/c/results.json").read_text())
    assert result["metrics"]["cle_severity_score"] == rows["c"]["cle_severity_score"] == 3
    shutil.rmtree(output)
