"""The locks: every file has a hash, versions are those of the requirements, and nothing is installed that nothing imports."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from test.conftest import ROOT

FOLDER = ROOT / "requirements"
SOURCES = {"inference": "requirements.txt"} | {
    name: f"requirements/{name}.txt"
    for name in ("int8", "training", "evaluation", "cohort", "viewer", "development", "bill_of_materials")
}
PINNED = re.compile(r"^([\w.-]+)==([^\s;]+)", re.MULTILINE)

COMPILED = f"""\
click==8.5.1 \\
    --hash=sha256:{"1" * 64}
    # via cookiecutter, evalutils, pip-tools
cookiecutter==2.7.1 \\
    --hash=sha256:{"2" * 64}
    # via -c /somewhere/constraints, evalutils
evalutils==0.4.2 \\
    --hash=sha256:{"3" * 64} \\
    --hash=sha256:{"4" * 64}
    # via -r requirements.txt
numpy==2.4.6 \\
    --hash=sha256:{"5" * 64}
    # via -r requirements.txt, evalutils
pip-tools==7.6.2 \\
    --hash=sha256:{"6" * 64}
    # via evalutils
requests==2.34.2 \\
    --hash=sha256:{"7" * 64}
    # via cookiecutter
torch==2.13.0+cpu \\
    --hash=sha256:{"8" * 64}
    # via -r requirements.txt
"""
"""As pip-compile writes it; hashes are made up."""


@pytest.fixture(scope="module")
def lock() -> ModuleType:
    """requirements/lock.py, which is no module of a package."""
    spec = importlib.util.spec_from_file_location("lock", FOLDER / "lock.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["lock"] = module
    spec.loader.exec_module(module)
    return module


def versions(text: str) -> dict[str, str]:
    return {name.lower().replace("_", "-"): version for name, version in PINNED.findall(text)}


@pytest.mark.parametrize("name", [*SOURCES, "torch", "cuda"])
def test_every_package_of_a_lock_has_the_sha256_of_its_files(name: str) -> None:
    entries = re.sub(r" \\\n *", " ", (FOLDER / f"{name}.lock").read_text(encoding="utf-8")).splitlines()
    packages = [line for line in entries if not line.startswith(("#", "-r torch.lock"))]
    assert packages
    for line in packages:
        assert re.fullmatch(r"[\w.-]+==[^\s;]+(; [^-]+)?( --hash=sha256:[0-9a-f]{64})+", line), line


@pytest.mark.parametrize("name", SOURCES)
def test_a_lock_pins_what_its_requirements_name_and_agrees_with_the_lock_of_inference(name: str) -> None:
    text = (FOLDER / f"{name}.lock").read_text(encoding="utf-8")
    torch = (FOLDER / "torch.lock").read_text(encoding="utf-8")
    locked = versions(text) | (versions(torch) if "-r torch.lock" in text else {})
    assert versions((ROOT / SOURCES[name]).read_text(encoding="utf-8")).items() <= locked.items()
    inference = versions((FOLDER / "inference.lock").read_text(encoding="utf-8"))
    if name != "bill_of_materials":  # an environment of its own
        shared = locked.keys() & inference.keys()
        assert {name: locked[name] for name in shared} == {name: inference[name] for name in shared}


def test_both_builds_of_torch_are_listed_in_one_place() -> None:
    """PyPI's wheel for Python 3.11 on x86_64 needs CUDA's packages; the CPU build's is that of PyTorch's own index."""
    listed = (FOLDER / "torch.lock").read_text(encoding="utf-8")
    assert "6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b" in listed, "torch-2.13.0+cpu"
    assert listed.count("--hash") > 1
    for name in SOURCES:
        assert "torch" not in versions((FOLDER / f"{name}.lock").read_text(encoding="utf-8"))


def test_what_only_the_command_line_of_evalutils_imports_is_left_out_with_all_that_it_needs(lock: ModuleType) -> None:
    kept = lock.needed(lock.parse(COMPILED))
    assert [package.name for package in kept] == ["evalutils", "numpy", "torch"]
    assert kept[0].hashes == {"3" * 64, "4" * 64}
    assert kept[2].version == "2.13.0"


def test_evalutils_algorithm_needs_none_of_the_tools_that_the_lock_leaves_out() -> None:
    tools = ("click", "cookiecutter", "piptools", "build", "requests")
    code = f"import sys; sys.modules.update(dict.fromkeys({tools}, None)); import model.container.algorithm"
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, check=True)


def test_an_environment_that_could_not_be_installed_is_not_taken_for_one(tmp_path: Path) -> None:
    """As the documents show it, in a shell that goes on after an error."""
    folder = tmp_path / "a copy" / "requirements"
    folder.mkdir(parents=True)
    shutil.copy(FOLDER / "environment.sh", folder)
    for name in ("training", "torch", "cuda"):
        (folder / f"{name}.lock").write_text("nothing==1\n")
    install, python = folder / "install.sh", folder.parent / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    for path, content in ((install, "echo 'ERROR: no network' >&2; exit 1"), (python, "exit 0")):
        path.write_text(f"#!/bin/sh\n{content}\n")
        path.chmod(0o755)
    command = ["bash", "-c", "(source requirements/environment.sh && ensure_environment training)"]
    for _ in range(2):  # the second time, too
        done = subprocess.run(command, cwd=folder.parent, env={"CDPATH": "."}, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (1, "ERROR: no network\n")
    install.write_text("#!/bin/sh\nexit 0\n")
    done = subprocess.run(command, cwd=folder.parent, env={"CDPATH": "."}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (folder.parent / ".venv/training.lock").read_text() == "nothing==1\nnothing==1\nnothing==1\n"
