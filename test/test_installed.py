"""The wheel: what it holds, and that an environment with nothing but it and its dependencies scores a scan."""

from __future__ import annotations

import json
import re
import shutil
import site
import subprocess
import sys
import tomllib
import venv
from email.parser import HeaderParser
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from test.conftest import ROOT

PINS = (
    "requirements.txt",
    "requirements/training.txt",
    "requirements/evaluation.txt",
    "requirements/cohort.txt",
    "requirements/viewer.txt",
)
EXAMPLE = ROOT / "test/input/images"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the working tree, built in a copy without a network: a build leaves folders behind."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("model", "weights", "test"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.mha"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "process.py"):
        shutil.copy(ROOT / name, source)
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(folder))
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(source)], check=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with the wheel; its dependencies are those of the environment that runs the tests."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    venv.create(folder, symlinks=True)
    options = ("--quiet", "--no-deps", "--no-index", str(wheel))
    subprocess.run([sys.executable, "-m", "pip", "--python", str(folder), "install", *options], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()))
    return folder


def python(environment: Path, code: str, cwd: Path) -> str:
    """Run code in an environment and in a folder that is not the repository; return what it prints."""
    command: list[str | Path] = [environment / "bin/python", "-c", code]
    return subprocess.run(command, cwd=cwd, env={"PATH": ""}, check=True, capture_output=True, text=True).stdout


def test_the_wheel_holds_every_module_of_model_and_the_bundles_that_ship(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if not name.split("/")[0].endswith(".dist-info")}
    files = [path for path in (ROOT / "model").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    modules = {f"emphysema_subtyping/{path.relative_to(ROOT / 'model')}" for path in files}
    bundles = [path for path in (ROOT / "weights").glob("*/*") if path.is_file()]
    assert held == modules | {f"emphysema_subtyping/bundles/{path.relative_to(ROOT / 'weights')}" for path in bundles}


def test_the_wheel_carries_the_licence_and_needs_what_requirements_txt_pins(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        (metadata,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        headers = HeaderParser().parsestr(archive.read(metadata).decode())
        licence = archive.read(metadata.replace("METADATA", "licenses/LICENSE"))
    assert licence == (ROOT / "LICENSE").read_bytes()
    assert headers["License-Expression"] == "Apache-2.0"
    needed = [Requirement(line) for line in headers.get_all("Requires-Dist", [])]
    named = {requirement.name.lower() for requirement in needed if requirement.marker is None}
    assert named == {name.lower() for name in pins(ROOT / "requirements.txt")}


def pins(path: Path) -> dict[str, Version]:
    """The packages that a file of requirements pins, without those of files that it includes."""
    found = re.findall(r"^([\w.-]+)==(\S+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {name: Version(version) for name, version in found}


def test_the_pinned_versions_lie_in_the_ranges_of_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pinned = {name.lower(): version for path in PINS for name, version in pins(ROOT / path).items()}
    ranges = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    for requirement in map(Requirement, ranges):
        assert pinned[requirement.name.lower()] in requirement.specifier, requirement


@pytest.mark.slow
def test_a_scan_is_read_from_any_folder_before_torch_is_imported(environment: Path, tmp_path: Path) -> None:
    code = f"""
import sys
from emphysema_subtyping import Scan
scan = Scan.read({str(EXAMPLE / "ct/example.mha")!r}, {str(EXAMPLE / "lung-mask/example.mha")!r})
print(scan.lung.any(), "torch" in sys.modules, "model" in sys.modules)
"""
    assert python(environment, code, tmp_path).split() == ["True", "False", "False"]


@pytest.mark.slow
def test_three_lines_of_python_and_the_console_command_score_as_process_py_does(environment: Path, tmp_path: Path) -> None:
    paths = [EXAMPLE / "ct/example.mha", EXAMPLE / "lung-mask/example.mha"]
    code = f"""
from emphysema_subtyping import EmphysemaSubtyper, Scan
subtyper = EmphysemaSubtyper.from_bundle(device="cpu", precision="float32")
result = subtyper.predict(Scan.read({str(paths[0])!r}, {str(paths[1])!r}))
print(result.centrilobular.score, result.centrilobular.percentage, result.paraseptal.score, result.paraseptal.percentage)
"""
    options: list[str | Path] = ["--ct", paths[0], "--lung-mask", paths[1], "--device", "cpu", "--precision", "float32"]
    runs: dict[str, list[str | Path]] = {
        "installed": [environment / "bin/emphysema-subtyping"],
        "here": [sys.executable, ROOT / "process.py"],
    }
    for name, command in runs.items():
        done = subprocess.run(
            [*command, *options, "--output", tmp_path / name], cwd=tmp_path, env={"PATH": ""}, capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (0, ""), name
    outputs = {name: sorted(path.relative_to(tmp_path / name) for path in (tmp_path / name).rglob("*")) for name in runs}
    assert outputs["installed"] == outputs["here"]
    for path in outputs["here"]:
        if (tmp_path / "here" / path).is_file():
            assert (tmp_path / "installed" / path).read_bytes() == (tmp_path / "here" / path).read_bytes(), path
    (result,) = json.loads((tmp_path / "here/results.json").read_text(encoding="utf-8"))
    metrics = result["metrics"]
    expected = [metrics[f"{prefix}_{name}"] for prefix in ("cle", "pse") for name in ("severity_score", "percentage")]
    assert [float(number) for number in python(environment, code, tmp_path).split()] == pytest.approx(expected, abs=1e-3)


@pytest.mark.slow
def test_the_console_command_and_the_modules_name_themselves_in_their_messages(environment: Path, tmp_path: Path) -> None:
    calls: dict[str, list[str | Path]] = {
        "emphysema-subtyping": [environment / "bin/emphysema-subtyping", "--nonsense"],
        "python -m emphysema_subtyping.simulation": [environment / "bin/python", "-m", "emphysema_subtyping.simulation"],
    }
    for name, command in calls.items():
        done = subprocess.run(command, cwd=tmp_path, env={"PATH": ""}, capture_output=True, text=True)
        assert done.returncode == 2
        assert done.stderr.startswith(f"{name}: "), done.stderr
