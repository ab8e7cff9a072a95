"""No pickled code runs, wherever in a file and in whatever layout it comes; every file here would make a folder if it did."""

from __future__ import annotations

import argparse
import ast
import builtins
import collections
import hashlib
import importlib
import io
import os
import pickle
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from model.errors import InputError
from model.weights import METADATA_FILE, convert_checkpoint, main, read_bundle
from test.conftest import ROOT
from test.phantom import write_dark_detector
from test.test_weights import edit_metadata, released_state


class Calls:
    """Unpickling it calls a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def makes_folder(marker: Path) -> Calls:
    return Calls(os.mkdir, str(marker))


def inner_pickle(marker: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save(makes_folder(marker), buffer)
    return buffer.getvalue()


CALLS: dict[str, Callable[[Path], Calls]] = {
    "os.mkdir": makes_folder,
    "os.system": lambda marker: Calls(os.system, f"mkdir {marker}"),
    "subprocess.Popen": lambda marker: Calls(subprocess.Popen, ["mkdir", str(marker)]),
    "builtins.eval": lambda marker: Calls(builtins.eval, f"__import__('os').mkdir({str(marker)!r})"),
    "builtins.exec": lambda marker: Calls(builtins.exec, f"import os; os.mkdir({str(marker)!r})"),
    "builtins.getattr": lambda _: Calls(builtins.getattr, Calls(importlib.import_module, "os"), "mkdir"),
    "pickle.loads": lambda marker: Calls(pickle.loads, pickle.dumps(makes_folder(marker))),
    "torch.storage._load_from_bytes": lambda marker: Calls(torch.storage._load_from_bytes, inner_pickle(marker)),
    "torch.load": lambda marker: Calls(torch.load, io.BytesIO, inner_pickle(marker)),
}


def within(state: dict[str, Any], evil: Any, place: str) -> Any:
    """A checkpoint that holds something in one of its places."""
    match place:
        case "alone":
            return evil
        case "beside":
            return {"state_dict": state, "callbacks": evil}
        case "as a tensor":
            return {"state_dict": {**state, "model.conv1.weight": evil}}
        case "as a key":
            return {"state_dict": state, "names": [(evil, 1)]}
        case "in the hyper-parameters":
            return {"state_dict": state, "hyper_parameters": {"args": argparse.Namespace(lr=evil)}}
        case "in an ordered dict":
            return {"state_dict": collections.OrderedDict(state), "more": collections.OrderedDict(evil=evil)}
    raise ValueError(place)


PLACES = ("alone", "beside", "as a tensor", "as a key", "in the hyper-parameters", "in an ordered dict")


def saved(content: Any, path: Path, layout: str) -> None:
    match layout:
        case "zip" | "legacy":
            torch.save(content, path, _use_new_zipfile_serialization=layout == "zip")
        case "plain pickle":
            path.write_bytes(pickle.dumps(content))
        case "tar":
            data = pickle.dumps(content)
            with tarfile.open(path, "w") as archive:
                for name in ("pickle", "tensors", "storages", "sys_info"):
                    entry = tarfile.TarInfo(name)
                    entry.size = len(data)
                    archive.addfile(entry, io.BytesIO(data))


def assert_refused(path: Path, marker: Path) -> None:
    bundle = path.with_name("bundle")
    assert main(["convert", str(path), str(bundle)]) == 2
    with pytest.raises(InputError):
        convert_checkpoint(path)
    assert not marker.exists()
    assert not bundle.exists()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("layout", ["zip", "legacy", "plain pickle", "tar"])
def test_code_is_not_run_wherever_it_lies(tmp_path: Path, layout: str, place: str) -> None:
    marker = tmp_path / "was-run"
    path = tmp_path / "evil.ckpt"
    saved(within(released_state(), makes_folder(marker), place), path, layout)
    assert_refused(path, marker)


@pytest.mark.parametrize("call", CALLS)
def test_no_function_is_called(tmp_path: Path, call: str) -> None:
    marker = tmp_path / "was-run"
    path = tmp_path / "evil.ckpt"
    saved({"state_dict": released_state(), "more": CALLS[call](marker)}, path, "zip")
    assert_refused(path, marker)


def test_no_method_of_an_imported_module_is_called(tmp_path: Path) -> None:
    """operator.methodcaller("mkdir", marker)(__import__("os")), written in the pickler's own instructions."""
    path, marker = tmp_path / "evil.ckpt", tmp_path / "was-run"
    code = f"coperator\nmethodcaller\n(Vmkdir\nV{marker}\ntR(cbuiltins\n__import__\n(Vos\ntRtR.".encode()
    path.write_bytes(code)
    assert_refused(path, marker)
    pickle.loads(code)
    assert marker.exists()


def test_the_files_would_do_harm_if_they_were_unpickled(tmp_path: Path) -> None:
    marker = tmp_path / "was-run"
    pickle.loads(pickle.dumps(within({}, makes_folder(marker), "in the hyper-parameters")))
    assert marker.exists()


def test_a_program_in_a_torchscript_archive_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "script.ckpt"
    torch.jit.save(torch.jit.script(torch.nn.Conv3d(1, 2, 3)), str(path))
    with pytest.raises(InputError, match=r"script\.ckpt: not a checkpoint"):
        convert_checkpoint(path)


def test_names_in_an_archive_that_lead_elsewhere_write_nothing(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "evil.ckpt"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("../../escaped", "/tmp/escaped", "archive/data.pkl", "archive/data/../../../escaped"):
            archive.writestr(name, pickle.dumps(makes_folder(tmp_path / "was-run")))
    assert_refused(path, tmp_path / "was-run")
    assert sorted(found.name for found in tmp_path.rglob("*")) == ["evil.ckpt", "folder"]


def test_a_pickle_in_a_bundle_is_not_run(tmp_path: Path) -> None:
    """Its sha256 is right: who makes the file can list it, too."""
    folder = write_dark_detector(tmp_path / "bundle")
    for name in ("weights.ckpt", "weights.safetensors"):
        saved(makes_folder(tmp_path / "was-run"), folder / name, "zip")
        edit_metadata(folder, files={name: hashlib.sha256((folder / name).read_bytes()).hexdigest()})
        with pytest.raises(InputError, match="not a safetensors file"):
            read_bundle(folder)
        assert main(["verify", str(folder)]) == 2
    assert not (tmp_path / "was-run").exists()
    assert (folder / METADATA_FILE).is_file()


SOURCES = sorted(path for path in [*ROOT.glob("*.py"), *(ROOT / "model").rglob("*.py")] if "test" not in path.parts)
FORBIDDEN = (
    "pickle.load",
    "pickle.loads",
    "eval",
    "exec",
    "os.system",
    "joblib.load",
    "numpy.load",
    "np.load",
    "marshal.loads",
)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_unpickles_or_runs_text(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        name = ast.unparse(node.func)
        assert name not in FORBIDDEN, f"line {node.lineno}: {name}"
        assert keywords.get("shell") != "True", f"line {node.lineno}: a shell"
        if name == "torch.load" or name.endswith(".load_from_checkpoint") or "ckpt_path" in keywords:
            assert keywords.get("weights_only") == "True", f"line {node.lineno}: {name} without weights_only=True"
