"""The released profile against what the published implementation computes with the same weights and the same real scan."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from torch import nn

import process
from model.imaging.scan import Scan
from model.lungs.regions import Regions
from model.network import DenseLogits
from model.preprocessing import RELEASED_PROFILE, labels_on_map_grid, prepare
from model.subtyping import EmphysemaSubtyper
from model.weights import convert_checkpoint, write_bundle
from test.imaging.series import write_dicom_series
from test.phantom import write_dark_detector


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, np.ndarray]:
    with np.load(shared / "reference" / "golden_a0001-smooth_seed11.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def seeded_bundle(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights that the golden data was made with, brought in by converting a checkpoint."""
    folder = tmp_path_factory.mktemp("seeded")
    make = runpy.run_path(str(shared / "reference" / "seeded_checkpoint.py"))["seeded_state_dict"]
    keys = json.loads((shared / "reference" / "released_resnet34_regression_keys.json").read_text())
    torch.save({f"model.{name}": value for name, value in make(keys, 11).items()}, folder / "seed11.ckpt")
    write_bundle(folder / "bundle", *convert_checkpoint(folder / "seed11.ckpt"))
    return folder / "bundle"


@pytest.fixture(scope="module")
def smooth(shared: Path) -> Scan:
    images = shared / "data" / "a0001-smooth" / "images"
    return Scan.read(images / "ct" / "a0001-smooth.mha", images / "lung-mask" / "a0001-smooth.mha")


def test_crop_and_network_input_are_the_released_ones(golden: dict[str, np.ndarray], smooth: Scan) -> None:
    prepared = prepare(smooth, Regions.of(smooth), RELEASED_PROFILE)
    assert [[side.start, side.stop] for side in prepared.box] == golden["crop"].tolist()
    np.testing.assert_allclose(prepared.image[0, 0, ::8, ::8, ::8], golden["input_half"], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_maps_and_percentages_are_the_released_ones(
    golden: dict[str, np.ndarray],
    smooth: Scan,
    seeded_bundle: Path,
    precision: Literal["float32", "bfloat16"],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """float32 reproduces the release; bfloat16 stays within a tenth of a point of it."""
    exact = precision == "float32"
    by_hand = not exact and not any(torch.cpu.get_capabilities().get(feature) for feature in ("avx512_f", "bf16"))
    subtyper = EmphysemaSubtyper.from_bundle(seeded_bundle, "cpu", "float32" if by_hand else precision)
    if by_hand:
        for part in (subtyper._network.backbone, subtyper._network.reconstruction):
            round_to_bfloat16(part)
    prepared = prepare(smooth, Regions.of(smooth), RELEASED_PROFILE)
    logits = subtyper.logits(prepared.image)
    maps = [dense.sigmoid()[0, 0].numpy() for dense in logits]
    lung = labels_on_map_grid(prepared.labels) > 0
    means = [activation[lung].mean(dtype=np.float64) for activation in maps]
    assert means == pytest.approx(golden["mean_in_lung"].tolist(), abs=1e-4 if exact else 1e-3)
    if exact:
        np.testing.assert_allclose(maps[0][::4, ::4, ::4], golden["cle_dense"], atol=1e-3)
        np.testing.assert_allclose(maps[1][::4, ::4, ::4], golden["pse_dense"], atol=1e-3)

    def computed_above(image: torch.Tensor) -> DenseLogits:
        assert torch.equal(image, prepared.image)
        return logits

    monkeypatch.setattr(subtyper, "logits", computed_above)  # the full network takes half a minute on one core
    result = subtyper.predict(smooth)
    for finding, index, name in ((result.centrilobular, 0, "cle_map"), (result.paraseptal, 1, "pse_map")):
        assert finding.percentage == pytest.approx(100 * golden["percentages"][index], abs=0.01 if exact else 0.1)
        inside = smooth.lung[:, ::8, ::8]
        difference = finding.activation_map[:, ::8, ::8][inside].astype(int) - golden[name][inside]
        assert np.abs(difference).mean() < 1
        assert golden[name][~inside].mean() < 0.01  # the release leaves a trace outside the lung, ours leaves none


def round_to_bfloat16(network: nn.Module) -> None:
    """Round weights and what layers return, as bfloat16 does: oneDNN takes more than ten minutes with AVX2 alone."""
    for parameter in network.parameters():
        parameter.data = parameter.data.bfloat16().float()
    for layer in network.modules():
        if not list(layer.children()):
            layer.register_forward_hook(lambda _layer, _inputs, output: output.bfloat16().float())


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["smooth", "sharp"])
def test_the_released_profile_counts_less_of_the_real_scan_than_the_papers(shared: Path, tmp_path: Path, kernel: str) -> None:
    """These weights give all of the lung the same paraseptal activation; the suspect mask leaves part of it out."""
    found = {}
    for profile in ("paper", "released"):
        bundle, output = write_dark_detector(tmp_path / profile, profile=profile), tmp_path / f"output-{profile}"
        case = str(shared / "data" / f"a0001-{kernel}")
        assert process.main(["--input", case, "--output", str(output), "--weights", str(bundle)]) == 0
        (result,) = json.loads((output / "results.json").read_text())
        assert result["provenance"]["profile"] == profile
        found[profile] = metrics = result["metrics"]
        assert set(metrics["regions"]) == {"right", "left"}
        assert metrics["laa950_percentage"] == pytest.approx({"smooth": 0.3, "sharp": 13.9}[kernel], abs=0.1)
    assert found["released"]["cle_percentage"] < 0.9 * found["paper"]["cle_percentage"]
    assert found["released"]["pse_percentage"] < 0.5 * found["paper"]["pse_percentage"]


@pytest.mark.slow
def test_the_real_scan_scores_the_same_as_nifti_and_as_a_dicom_series(shared: Path, tmp_path: Path) -> None:
    bundle = write_dark_detector(tmp_path / "bundle")
    images = shared / "data" / "a0001-sharp" / "images"
    ct = sitk.ReadImage(str(images / "ct" / "a0001-sharp.mha"))
    sitk.WriteImage(ct, str(tmp_path / "ct.nii.gz"))
    write_dicom_series(ct, tmp_path / "series")
    metrics = []
    for path in (images / "ct" / "a0001-sharp.mha", tmp_path / "ct.nii.gz", tmp_path / "series"):
        mask, output = images / "lung-mask" / "a0001-sharp.mha", tmp_path / f"output-{path.name}"
        arguments = ["--ct", path, "--lung-mask", mask, "--output", output, "--weights", bundle]
        assert process.main([str(argument) for argument in arguments]) == 0
        metrics.append(json.loads((output / "results.json").read_text())[0]["metrics"])
    assert metrics[0] == metrics[1] == metrics[2]
