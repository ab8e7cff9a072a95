"""Who may know what: the rules that keep the inference road on its own."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from test.conftest import ROOT

ROAD = sorted((ROOT / "model").glob("*.py"))
STAGES = ("model.training", "model.evaluation", "model.simulation", "model.slices", "model.viewing")
ENTRY_POINTS = ("process", "algorithm", "train", "evaluate", "viewer", "evalutils")


def imports_of(path: Path) -> set[str]:
    """Every module that a file imports, and for `from a import b` also a.b."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def is_under(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize("path", ROAD, ids=lambda path: path.name)
def test_the_inference_road_imports_no_other_stage_and_no_entry_point(path: Path) -> None:
    assert not {name for name in imports_of(path) if is_under(name, STAGES + ENTRY_POINTS)}


def test_the_entry_point_can_read_before_it_imports_what_takes_seconds() -> None:
    code = "import sys, process; print(sorted({'torch', 'evalutils', 'pandas', 'scipy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_inference_imports_only_what_its_requirements_bring() -> None:
    """The direct requirements, and pandas, which evalutils hands its cases around in."""
    imported = {
        name.partition(".")[0] for path in (*ROAD, ROOT / "process.py", ROOT / "algorithm.py") for name in imports_of(path)
    }
    third_party = imported - sys.stdlib_module_names - {"model", "algorithm"}
    third_party -= {"lungmask"}  # imported only when its weights are given; model.lung_segmentation says where it is missing
    assert third_party <= {"PIL", "SimpleITK", "evalutils", "numpy", "pandas", "safetensors", "scipy", "torch"}


def test_only_one_module_holds_the_intervals_of_table_1() -> None:
    holders = [path.name for path in ROAD if "advanced destructive" in path.read_text(encoding="utf-8")]
    assert holders == ["fleischner.py"]


def test_only_one_module_knows_the_platforms_folders() -> None:
    holders = [
        path.name
        for path in ROAD
        if '"images/ct"' in path.read_text(encoding="utf-8") or "/opt/ml" in path.read_text(encoding="utf-8")
    ]
    assert holders == ["grand_challenge.py"]
