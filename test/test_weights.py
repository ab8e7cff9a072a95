"""Bundles and checkpoints: what goes in comes out, and what does not fit is refused by name."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from model import weights
from model.errors import InputError
from model.network import BackboneName, HeadName, NetworkConfig, build_network
from model.weights import (
    METADATA_FILE,
    EightBitBundle,
    convert_checkpoint,
    locate_bundle,
    main,
    read_bundle,
    read_eight_bit,
    released_name,
    untrained_bundle,
    write_bundle,
)
from test.phantom import write_dark_detector


def released_state(backbone: BackboneName = "resnet34", head: HeadName = "regression") -> dict[str, Tensor]:
    """A small network's tensors under the names that the released implementation gives them."""
    network = build_network(NetworkConfig(backbone, head, base_width=2))
    return {f"model.{released_name(name)}": value for name, value in network.state_dict().items()}


@pytest.mark.parametrize(
    ("backbone", "head", "keys"),
    [
        ("resnet18", "regression", "released_resnet18_regression_keys.json"),
        ("resnet34", "regression", "released_resnet34_regression_keys.json"),
        ("resnet50", "regression", "released_resnet50_regression_keys.json"),
        ("resnet34", "classification", "released_resnet34_classification_keys.json"),
    ],
)
def test_tensor_names_and_shapes_are_the_released_ones(shared: Path, backbone: BackboneName, head: HeadName, keys: str) -> None:
    with torch.device("meta"):
        network = build_network(NetworkConfig(backbone, head))
    ours = {released_name(name): list(value.shape) for name, value in network.state_dict().items()}
    released = json.loads((shared / "reference" / keys).read_text())
    assert ours == {name: shape for name, shape, _ in released}


def wrapped(state: dict[str, Tensor], layout: str) -> dict[str, Any]:
    """The layouts in which checkpoints come."""
    if layout == "bare":
        return dict(state)
    if layout == "without prefix":
        return {name.removeprefix("model."): value for name, value in state.items()}
    return {
        "epoch": 1,
        "state_dict": state,
        "optimizer_states": [{"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 1e-4}]}],
        "hyper_parameters": {"args": argparse.Namespace(lr=1e-4)},
    }


@pytest.mark.parametrize("layout", ["bare", "without prefix", "lightning"])
@pytest.mark.parametrize("backbone", get_args(BackboneName))
@pytest.mark.parametrize("head", get_args(HeadName))
def test_a_converted_checkpoint_becomes_a_bundle_with_the_same_tensors(
    tmp_path: Path, backbone: BackboneName, head: HeadName, layout: str
) -> None:
    state = released_state(backbone, head)
    torch.save(wrapped(state, layout), tmp_path / "some.ckpt")
    assert main(["convert", str(tmp_path / "some.ckpt"), str(tmp_path / "bundle")]) == 0
    bundle = read_bundle(tmp_path / "bundle")
    assert bundle.metadata.network == NetworkConfig(backbone, head, base_width=2)
    assert bundle.metadata.profile == "released"
    assert bundle.metadata.source_sha256 == hashlib.sha256((tmp_path / "some.ckpt").read_bytes()).hexdigest()
    assert "none of the published files" in bundle.metadata.origin
    assert bundle.metadata.validated_on is None
    for name, value in bundle.network.state_dict().items():
        assert torch.equal(value, state[f"model.{released_name(name)}"]), name


def test_a_published_file_is_recognised_by_its_sha256(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(released_state(), tmp_path / "renamed.bin")
    digest = hashlib.sha256((tmp_path / "renamed.bin").read_bytes()).hexdigest()
    monkeypatch.setitem(weights.PUBLISHED_CHECKPOINTS, digest, "paper.ckpt")
    _, metadata = convert_checkpoint(tmp_path / "renamed.bin")
    assert "published paper.ckpt" in metadata.origin
    assert metadata.licence == "MIT"
    assert "COPDGene" in metadata.trained_on
    assert metadata.validated_on == "COPDGene, evaluation set of 7143 subjects (Xie et al., Sci Rep 2023)"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("model.layer2.1.bn2.running_var"), "missing tensors: layer2.1.bn2.running_var"),
        (lambda state: state.update({"model.fcs.2.weight": torch.zeros(1)}), "extra tensors: fcs.2.weight"),
        (
            lambda state: state.update({"model.us3.0.bias": torch.zeros(3)}),
            r"misshapen tensors: us3.0.bias \(3,\) instead of \(1,\)",
        ),
        (lambda state: state.pop("model.conv1.weight"), "missing tensors: conv1.weight"),
        (lambda state: state.update({"model.fcs.0.weight": torch.zeros(())}), r"misshapen tensors: fcs.0.weight \(\)"),
        (lambda state: state.update({"model.conv1.weight": torch.zeros(0, 1, 7, 7, 7)}), "base width is 0, expected an even"),
        (
            lambda state: state.update({"model.us3.0.bias": torch.zeros(1, dtype=torch.int8)}),
            r"tensors of another type: us3.0.bias torch.int8 instead of torch.float32",
        ),
        (
            lambda state: state.update({"model.us3.0.bias": torch.zeros(1).to_sparse()}),
            r"tensors of another type: us3.0.bias",
        ),
        (lambda state: state["model.us3.0.bias"].fill_(float("nan")), "tensors that are not finite: us3.0.bias"),
        (lambda state: state.update({"us3.0.bias": torch.zeros(1)}), "both with and without the prefix model."),
        (lambda state: state.update({3: torch.zeros(1)}), "no state dict of tensors"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(tmp_path: Path, change: Any, message: str) -> None:
    state = released_state()
    change(state)
    torch.save(state, tmp_path / "odd.ckpt")
    with pytest.raises(InputError, match=message):
        convert_checkpoint(tmp_path / "odd.ckpt")


class Malicious:
    """Unpickling it would make a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.marker),)


def test_pickled_code_is_named_and_does_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    marker = tmp_path / "was-run"
    torch.save({"state_dict": released_state(), "callbacks": Malicious(marker)}, tmp_path / "evil.ckpt")
    assert main(["convert", str(tmp_path / "evil.ckpt"), str(tmp_path / "bundle")]) == 2
    assert "pickled code of type posix.mkdir, which is not run" in capsys.readouterr().err
    assert not marker.exists()
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut off", b"\x80\x02}q\x00.", b"(" * 100000])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "odd.ckpt").write_bytes(content)
    with pytest.raises(InputError, match=r"odd\.ckpt: not a checkpoint"):
        convert_checkpoint(tmp_path / "odd.ckpt")


def test_a_bundle_keeps_every_file_under_60_mb_and_comes_back_whole(tmp_path: Path) -> None:
    network, metadata = untrained_bundle(base_width=64, seed=3)
    write_bundle(tmp_path / "bundle", network, metadata)
    files = sorted((tmp_path / "bundle").iterdir())
    assert len(files) > 2
    assert {path.stat().st_mode & 0o777 for path in files} == {(tmp_path / "bundle" / METADATA_FILE).stat().st_mode & 0o777}
    assert all(path.stat().st_size < 60_000_000 for path in files)
    bundle = read_bundle(tmp_path / "bundle")
    assert bundle.metadata == metadata
    for name, value in bundle.network.state_dict().items():
        assert torch.equal(value, network.state_dict()[name]), name


def test_metadata_hold_the_inputs_size_where_it_is_not_the_papers(tmp_path: Path) -> None:
    network, metadata = untrained_bundle(base_width=2, seed=0)
    write_bundle(tmp_path / "paper", network, metadata)
    write_bundle(tmp_path / "coarse", network, replace(metadata, profile="released", input_shape=(32, 56, 72)))
    documents = [json.loads((tmp_path / name / METADATA_FILE).read_text()) for name in ("paper", "coarse")]
    assert "input_shape" not in documents[0]
    assert (documents[1]["profile"], documents[1]["input_shape"]) == ("released", [32, 56, 72])
    paper, coarse = (read_bundle(tmp_path / name).metadata.preprocessing for name in ("paper", "coarse"))
    assert (paper.name, paper.input_shape, paper.map_shape) == ("paper", (128, 224, 288), (64, 112, 144))
    assert (coarse.name, coarse.input_shape, coarse.map_shape) == ("released", (32, 56, 72), (16, 28, 36))
    assert (coarse.margin_mm, coarse.suspect_below_hu) == (5.0, -910.0)


def test_metadata_hold_where_maps_lie_only_where_it_is_not_at_the_corners(tmp_path: Path) -> None:
    network, metadata = untrained_bundle(base_width=2, seed=0)
    write_bundle(tmp_path / "corners", network, metadata)
    write_bundle(tmp_path / "even", network, replace(metadata, map_placement="even"))
    documents = [json.loads((tmp_path / name / METADATA_FILE).read_text()) for name in ("corners", "even")]
    assert "map_placement" not in documents[0]
    assert documents[1]["map_placement"] == "even"
    assert read_bundle(tmp_path / "corners").metadata.preprocessing.map_placement == "corners"
    assert read_bundle(tmp_path / "even").metadata.preprocessing.map_placement == "even"


def test_metadata_hold_what_the_weights_were_validated_on_where_they_were(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network, metadata = untrained_bundle(base_width=2, seed=0)
    write_bundle(tmp_path / "plain", network, metadata)
    write_bundle(tmp_path / "validated", network, replace(metadata, validated_on="500 scans\nof a hospital"))
    assert "validated_on" not in json.loads((tmp_path / "plain" / METADATA_FILE).read_text())
    said = [None, "500 scans\\nof a hospital"]
    assert [read_bundle(tmp_path / name).metadata.validated_on for name in ("plain", "validated")] == said
    for name, text in zip(("plain", "validated"), said, strict=True):
        assert main(["show", str(tmp_path / name)]) == 0
        assert json.loads(capsys.readouterr().out)["validated_on"] == text


def test_a_bundle_keeps_an_8_bit_network_beside_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network, metadata = untrained_bundle(base_width=2, seed=0)
    write_bundle(tmp_path / "plain", network, metadata)
    made = EightBitBundle(metadata, "", b"<net/>", b"numbers", (0.1, -0.2), {"made_with": "a tool"})
    write_bundle(tmp_path / "both", network, metadata, made)
    assert replace(read_eight_bit(tmp_path / "both"), sha256="", folder=None) == made
    assert read_eight_bit(tmp_path / "both").folder == tmp_path / "both"
    assert read_eight_bit(tmp_path / "both").sha256 == read_bundle(tmp_path / "both").sha256
    assert read_bundle(tmp_path / "both").metadata == read_bundle(tmp_path / "plain").metadata
    assert main(["verify", str(tmp_path / "both")]) == 0
    with pytest.raises(InputError, match=r"this bundle has no 8-bit network; expected one that .* has made"):
        read_eight_bit(tmp_path / "plain")
    (tmp_path / "both" / "int8.bin").write_bytes(b"nombers")
    with pytest.raises(InputError, match=r"int8\.bin: the file is damaged"):
        read_eight_bit(tmp_path / "both")
    assert main(["verify", str(tmp_path / "both")]) == 2
    assert "int8.bin" in capsys.readouterr().err
    (tmp_path / "both" / "int8.xml").unlink()
    with pytest.raises(InputError, match=r"int8\.xml: a file of the bundle is missing"):
        read_eight_bit(tmp_path / "both")


@pytest.mark.parametrize("seed", ["-1", "4294967296", "99999999999999999999"])
def test_a_seed_that_torch_does_not_take_is_refused(seed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["untrained", str(tmp_path / "bundle"), "--base-width", "2", "--seed", seed])
    assert caught.value.code == 2
    assert f"--seed: '{seed}': expected a whole number from 0 to 4294967295" in capsys.readouterr().err
    assert not (tmp_path / "bundle").exists()


def test_an_untrained_bundle_says_so_and_is_the_same_each_time(tmp_path: Path) -> None:
    for name, seed in (("one", "0"), ("two", "0"), ("other", "1")):
        assert main(["untrained", str(tmp_path / name), "--base-width", "4", "--seed", seed]) == 0
        torch.rand(1)  # the state that the caller's random numbers are in does not matter
    one, two, other = (read_bundle(tmp_path / name) for name in ("one", "two", "other"))
    assert one.metadata.trained_on == "untrained: outputs carry no meaning"
    assert one.sha256 == two.sha256
    weight = "backbone.conv1.weight"
    assert not torch.equal(one.network.state_dict()[weight], other.network.state_dict()[weight])


def test_writing_replaces_a_bundle_but_nothing_else(tmp_path: Path) -> None:
    network, metadata = untrained_bundle(base_width=2, seed=0)
    write_bundle(tmp_path / "bundle", network, metadata)
    write_bundle(tmp_path / "bundle", network, metadata)
    (tmp_path / "precious").mkdir()
    with pytest.raises(InputError, match="it exists and is no bundle"):
        write_bundle(tmp_path / "precious", network, metadata)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "precious"]


def test_a_bundle_in_the_working_directory_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = read_bundle(write_dark_detector(tmp_path / "bundle")).sha256
    monkeypatch.chdir(tmp_path / "bundle")
    assert main(["untrained", ".", "--base-width", "2"]) == 2
    assert capsys.readouterr().err == ".: it cannot be replaced as a whole; expected a new folder, such as new\n"
    assert read_bundle(tmp_path / "bundle").sha256 == before


def test_a_checkpoint_inside_the_bundle_that_it_would_replace_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_dark_detector(tmp_path / "bundle")
    checkpoint = folder / "mine.ckpt"
    torch.save(released_state(), checkpoint)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert main(["convert", str(checkpoint), str(folder)]) == 2
    assert f"mine.ckpt: it lies in {folder}, which would be replaced" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_bundle_with_other_files_is_not_replaced(tmp_path: Path) -> None:
    folder = write_dark_detector(tmp_path / "bundle")
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"it holds files that are not a bundle's \(notes\.txt\)"):
        write_dark_detector(folder)
    assert (folder / "notes.txt").read_text() == "mine"


def test_a_checkpoint_whose_name_is_not_utf_8_becomes_a_bundle_that_can_be_read(tmp_path: Path) -> None:
    checkpoint = tmp_path / "poumon-\udce9\n.ckpt"
    torch.save(released_state(), checkpoint)
    assert main(["convert", str(checkpoint), str(tmp_path / "bundle")]) == 0
    assert read_bundle(tmp_path / "bundle").metadata.name == "poumon-\\udce9\\n"


def test_a_path_that_is_too_long_is_refused(tmp_path: Path) -> None:
    for place in (tmp_path / (300 * "a"), tmp_path / (300 * "a") / "bundle"):
        with pytest.raises(InputError, match=r"weight bundle"):
            read_bundle(place)


def test_an_8_bit_network_with_a_number_beyond_floating_point_is_refused(tmp_path: Path) -> None:
    folder = write_dark_detector(tmp_path / "bundle")
    edit_metadata(folder, int8={"files": {"int8.xml": "0", "int8.bin": "0"}, "offsets": [10**400, 0]})
    with pytest.raises(InputError, match="the field int8 is wrong"):
        read_eight_bit(folder)


def with_four_bit_tensor(folder: Path) -> None:
    """A valid file of safetensors, of a type that torch's loader does not know."""
    header = json.dumps({"x": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}).encode()
    content = len(header).to_bytes(8, "little") + header + b"\0"
    path = next(folder.glob("*.safetensors"))
    path.write_bytes(content)
    edit_metadata(folder, files={path.name: hashlib.sha256(content).hexdigest()})


def damage_tensors(folder: Path) -> None:
    path = next(folder.glob("*.safetensors"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def with_tensor(folder: Path, value: Tensor) -> None:
    """Replace one tensor of a bundle, and list its file's new sha256."""
    path = next(folder.glob("*.safetensors"))
    content = save(load(path.read_bytes()) | {"head.centrilobular.bias": value})
    path.write_bytes(content)
    edit_metadata(folder, files={path.name: hashlib.sha256(content).hexdigest()})


def edit_metadata(folder: Path, **changes: Any) -> None:
    path = folder / METADATA_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (damage_tensors, r"safetensors: the file is damaged \(sha256 "),
        (lambda folder: next(folder.glob("*.safetensors")).unlink(), "a file of the bundle is missing"),
        (lambda folder: (folder / METADATA_FILE).write_text("{"), "not JSON"),
        (lambda folder: edit_metadata(folder, format=2), "bundle format 2; expected format 1"),
        (lambda folder: edit_metadata(folder, profile="mine"), "profile is 'mine'"),
        (lambda folder: edit_metadata(folder, network={"backbone": "vgg"}), "backbone is 'vgg'"),
        (lambda folder: edit_metadata(folder, surprise=1), "a field is missing or wrong"),
        (lambda folder: edit_metadata(folder, name=7), "name is int, expected text"),
        (lambda folder: edit_metadata(folder, source_sha256=[]), "source_sha256 is list, expected text"),
        (lambda folder: edit_metadata(folder, validated_on=500), "validated_on is int, expected text"),
        (lambda folder: edit_metadata(folder, validated_on="a\n"), r"validated_on is 'a\\n', expected one line"),
        (lambda folder: edit_metadata(folder, performance=[]), "performance is list, expected an object"),
        (lambda folder: edit_metadata(folder, profile=[]), "a field is missing or wrong"),
        (
            lambda folder: edit_metadata(folder, input_shape=[128, 224]),
            r"input_shape is \(128, 224\), expected three multiples of 8",
        ),
        (lambda folder: edit_metadata(folder, map_placement="odd"), "map_placement is 'odd', expected one of corners, even"),
        (
            lambda folder: edit_metadata(folder, map_placement="even", profile="released"),
            "expected 'corners' for a profile with a suspect mask",
        ),
        (lambda folder: edit_metadata(folder, input_shape=[128, 224, 290]), "expected three multiples of 8 up to 512"),
        (lambda folder: edit_metadata(folder, input_shape=[8, 8, 8 * 10**9]), "expected three multiples of 8 up to 512"),
        (lambda folder: edit_metadata(folder, input_shape="128 224 288"), "expected three multiples of 8 up to 512"),
        (lambda folder: edit_metadata(folder, input_shape=None), "a field is missing or wrong"),
        (lambda folder: edit_metadata(folder, network={"base_width": 10**18}), "expected an even number from 2 to 512"),
        (lambda folder: (folder / METADATA_FILE).write_text("[" * 100000), "not JSON"),
        (lambda folder: (folder / METADATA_FILE).write_bytes(b"\xff"), "not JSON"),
        (lambda folder: (folder / METADATA_FILE).write_text(" " * (1 << 21)), "too large to be a bundle's metadata"),
        (
            lambda folder: with_tensor(folder, torch.full((1,), float("inf"))),
            "tensors that are not finite: head.centrilobular.bias",
        ),
        (lambda folder: with_tensor(folder, torch.zeros(1, dtype=torch.bool)), "head.centrilobular.bias torch.bool instead of"),
        (
            lambda folder: edit_metadata(folder, network={"backbone": "resnet34", "head": "regression", "base_width": 4}),
            "misshapen tensors: backbone.conv1.weight",
        ),
        (lambda folder: edit_metadata(folder, files={"../elsewhere.safetensors": "0"}), "a file of the bundle is missing"),
        (lambda folder: edit_metadata(folder, files={300 * "a": "0"}), "the file cannot be read"),
        (lambda folder: edit_metadata(folder, validated_range={"noise_hu": [0, 10**400]}), "a field is missing or wrong"),
        (lambda folder: edit_metadata(folder, name="a\ud800"), r"name is 'a\\ud800', expected one line"),
        (lambda folder: edit_metadata(folder, trained_on="a\n\x1b[31m"), r"trained_on is 'a\\n\\x1b\[31m', expected one line"),
        (with_four_bit_tensor, "not a safetensors file"),
    ],
)
def test_a_bundle_that_is_damaged_or_of_another_kind_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    folder = write_dark_detector(tmp_path / "bundle")
    change(folder)
    with pytest.raises(InputError, match=message):
        read_bundle(folder)
    assert main(["verify", str(folder)]) == 2


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16, torch.float64])
def test_tensors_of_another_precision_are_read_as_the_networks(tmp_path: Path, precision: torch.dtype) -> None:
    folder = write_dark_detector(tmp_path / "bundle")
    with_tensor(folder, torch.full((1,), 0.5, dtype=precision))
    value = read_bundle(folder).network.state_dict()["head.centrilobular.bias"]
    assert (value.dtype, value.item()) == (torch.float32, 0.5)


def test_the_first_place_that_holds_something_is_taken(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_dark_detector(tmp_path / "weights" / "dark")
    (tmp_path / "weights" / "README.md").write_text("Where they came from")
    places = (tmp_path / "missing", tmp_path / "empty", tmp_path / "weights")
    assert locate_bundle(*places) == tmp_path / "weights" / "dark"
    write_dark_detector(tmp_path / "weights" / "other")
    with pytest.raises(InputError, match=r"2 weight bundles in this folder \(dark, other\)"):
        locate_bundle(*places)
    with pytest.raises(InputError, match="no weight bundle"):
        locate_bundle(*places[:2])


def test_a_folder_with_a_bundle_of_the_slice_network_alone_is_refused_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "weights" / "slices").mkdir(parents=True)
    (tmp_path / "weights" / "README.md").write_text("Where they came from")
    with pytest.raises(InputError, match="weights: no weight bundle in this folder; expected a weight bundle"):
        locate_bundle(tmp_path / "weights")
    (tmp_path / "weights" / "slices" / "slices.json").write_text("{}")
    for place, name in ((tmp_path / "weights", r"slices/slices\.json"), (tmp_path / "weights" / "slices", r"slices\.json")):
        with pytest.raises(InputError, match=rf"no weight bundle in this folder, but one of the slice network \({name}\)"):
            locate_bundle(place)


def test_show_prints_the_metadata_and_verify_the_sha256(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_dark_detector(tmp_path / "bundle")
    assert main(["show", str(folder)]) == 0
    assert json.loads(capsys.readouterr().out)["trained_on"] == "nothing"
    assert main(["verify", str(folder)]) == 0
    digest = hashlib.sha256((folder / METADATA_FILE).read_bytes()).hexdigest()
    assert f"dark-detector is intact, sha256 {digest}" in capsys.readouterr().out
