"""Who may know what: the rules that keep the inference road on its own."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from test.conftest import ROOT

MODEL = ROOT / "model"
MODULES = sorted(MODEL.rglob("*.py"))
ROOMS = {
    "road": {"imaging", "lungs", "dicom_output", "container"},
    "cohort": {"cohort"},
    "batch": {"batch"},
    "stages": {"simulation", "training", "evaluation", "slices", "viewing"},
}
"""Who builds on whom, in this order: modules of a later group may import from earlier ones, never the reverse."""
LATE_IMPORT = ("imaging/scan.py", "model.lungs.segmentation")
"""The one exception: `Scan.read` segments the lungs where there is no mask, and imports this module then."""
ENTRY_POINTS = ("process", "cohort", "train", "evaluate", "viewer")


def room_of(path: Path) -> str:
    """The room of a module, or the module itself where it lies open in `model/`."""
    return path.relative_to(MODEL).parts[0].removesuffix(".py")


ROAD = [path for path in MODULES if not any(room_of(path) in ROOMS[group] for group in ("cohort", "batch", "stages"))]


@cache
def imports_of(path: Path) -> set[str]:
    """Every module that a file imports by its full name, and for `from a import b` also a.b."""
    package = path.relative_to(ROOT).parent.parts
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*above, *filter(None, [node.module])))
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return names


def is_under(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def imported_rooms(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imports_of(path) if name.startswith("model.")}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(MODEL)))
def test_no_module_imports_against_the_order_of_the_rooms(path: Path) -> None:
    groups = list(ROOMS)
    own = next((place for place, rooms in enumerate(ROOMS.values()) if room_of(path) in rooms), 0)
    later = set().union(*(ROOMS[group] for group in groups[own + 1 :]))
    assert not imported_rooms(path) & later
    assert not {name for name in imports_of(path) if is_under(name, ENTRY_POINTS)}


def test_the_road_runs_one_way() -> None:
    """imaging -> lungs -> preprocessing -> network -> subtyping -> dicom_output -> container."""
    order = [
        "imaging",
        "lungs",
        "slice_sequence",
        "network",
        "preprocessing",
        "weights",
        "eight_bit",
        "subtyping",
        "rendering",
        "dicom_output",
        "container",
    ]
    against = set()
    for path in MODULES:
        if room_of(path) in order:
            later = tuple(f"model.{room}" for room in order[order.index(room_of(path)) + 1 :])
            names = {name for name in imports_of(path) if is_under(name, later)}
            against |= {(str(path.relative_to(MODEL)), name) for name in names}
    file, module = LATE_IMPORT
    assert {file for file, _ in against} == {file}
    assert all(is_under(name, (module,)) for _, name in against)


def test_evalutils_stays_with_the_container_and_the_readers_of_tables() -> None:
    holders = [path for path in MODULES if any(is_under(name, ("evalutils",)) for name in imports_of(path))]
    assert {room_of(path) for path in holders} <= {"container", "cohort", "evaluation"}


def test_the_entry_point_can_read_before_it_imports_what_takes_seconds() -> None:
    heavy = {"torch", "evalutils", "pandas", "scipy", "ray", "pyarrow"}
    for entry in ("process", "cohort"):
        code = f"import sys, {entry}; print(sorted({heavy} & set(sys.modules)))"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        assert done.stdout == "[]\n", entry


def test_inference_imports_only_what_its_requirements_bring() -> None:
    """The direct requirements, and two that evalutils brings: pandas, and scikit-learn, imported only when it is used."""
    imported = {name.partition(".")[0] for path in (*ROAD, ROOT / "process.py") for name in imports_of(path)}
    third_party = imported - sys.stdlib_module_names - {"model"}
    third_party -= {"lungmask", "openvino"}  # imported only when an option asks for them, which says where they are missing
    required = {"PIL", "SimpleITK", "evalutils", "highdicom", "numpy", "pandas", "pydicom", "reportlab"}
    required |= {"safetensors", "scipy", "sklearn", "torch"}
    assert third_party <= required


def test_what_only_some_runs_need_is_imported_late() -> None:
    """highdicom and pydicom take about a second."""
    for path in ROAD:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = [alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names]
        names += [node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom)]
        assert not [name for name in names if is_under(name, ("highdicom", "openvino", "pydicom", "reportlab"))], path


def test_ray_stays_with_one_module_and_pyarrow_with_the_tables_of_a_cohort() -> None:
    def holders(package: str) -> set[str]:
        return {
            str(path.relative_to(MODEL)) for path in MODULES if any(is_under(name, (package,)) for name in imports_of(path))
        }

    assert holders("ray") == {"batch/cluster.py"}
    assert holders("pyarrow") == {"cohort/summary.py"}


def test_nothing_builds_on_the_run_of_a_cohort() -> None:
    assert {room_of(path) for path in MODULES if "batch" in imported_rooms(path)} == {"batch"}


def test_only_one_module_holds_the_intervals_of_table_1() -> None:
    holders = [path.name for path in MODULES if '"advanced destructive"' in path.read_text(encoding="utf-8")]
    assert holders == ["fleischner.py"]


def test_only_one_module_knows_the_platforms_folders() -> None:
    holders = [
        path.name
        for path in MODULES
        if '"images/ct"' in path.read_text(encoding="utf-8") or "/opt/ml" in path.read_text(encoding="utf-8")
    ]
    assert holders == ["grand_challenge.py"]
