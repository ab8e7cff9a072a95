"""The class that users touch, on phantoms and with networks whose answer is known."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from scipy import ndimage

from model import subtyping
from model.errors import InputError
from model.fleischner import CENTRILOBULAR
from model.imaging.scan import Scan
from model.network import BackboneFeatures, ResNetBackbone
from model.preprocessing import MapPlacement
from model.subtyping import EmphysemaSubtyper, choose_device, choose_precision, precision_notes
from model.weights import BundleMetadata, read_bundle, untrained_bundle, write_bundle
from test.phantom import COARSE_INPUT, HALF_INPUT, Phantom, write_dark_detector


@pytest.fixture(scope="module")
def scan(lesioned: Phantom) -> Scan:
    return Scan.from_images(*lesioned.images())


def test_percentages_regions_and_map_tell_where_the_dark_part_is(full_bundle: Path, scan: Scan) -> None:
    result = EmphysemaSubtyper.from_bundle(full_bundle, "cpu", "float32").predict(scan)
    dark = 100 * np.count_nonzero(scan.hounsfield[scan.lung] == -1000) / np.count_nonzero(scan.lung)
    cle = result.centrilobular
    assert cle.percentage == pytest.approx(dark, abs=1.5)
    assert cle.score == CENTRILOBULAR.score(cle.percentage or 0) == 3
    assert cle.severity == "moderate"
    assert cle.region_percentages["right"] == pytest.approx(2 * dark, abs=3)
    assert cle.region_percentages["left"] == pytest.approx(0, abs=1)  # the lung's rim
    assert cle.activation_map[scan.lung].mean() / 2.55 == pytest.approx(cle.percentage, abs=0.5)
    assert not cle.activation_map[~scan.lung].any()
    assert result.paraseptal.score == 0
    assert result.paraseptal.percentage == pytest.approx(0.0123, abs=1e-4)  # sigmoid(-9)


@pytest.mark.parametrize("profile", ["paper", "released"])
def test_the_written_maps_mean_is_the_reported_percentage(tmp_path: Path, scan: Scan, profile: str) -> None:
    network, metadata = untrained_bundle(base_width=2, seed=1)
    write_bundle(tmp_path / "bundle", network, dataclasses.replace(metadata, profile=profile, input_shape=HALF_INPUT))
    result = EmphysemaSubtyper.from_bundle(tmp_path / "bundle", "cpu", "float32").predict(scan)
    for finding in (result.centrilobular, result.paraseptal):
        assert finding.percentage is not None
        assert finding.percentage > 5
        assert finding.activation_map[scan.lung].mean() / 2.55 == pytest.approx(finding.percentage, abs=0.5)


def test_a_bundle_says_where_its_maps_lie_and_its_percentages_do_not_depend_on_it(tmp_path: Path, phantom: Phantom) -> None:
    """The detector's map voxel k sees input voxel 2 k. With aligned corners a lesion near the far edges moves there."""
    phantom, lesion = phantom.with_lesion((200.0, 140.0, 210.0), 14.0)
    scan = Scan.from_images(*phantom.images())
    truth = np.argwhere(lesion).mean(axis=0)
    found: dict[str, tuple[float | None, np.ndarray]] = {}
    placements: tuple[MapPlacement, ...] = ("corners", "even")
    for placement in placements:
        folder = write_dark_detector(tmp_path / placement, input_shape=HALF_INPUT, map_placement=placement)
        result = EmphysemaSubtyper.from_bundle(folder, "cpu", "float32").predict(scan).centrilobular
        active = (result.activation_map > 127) & ndimage.binary_dilation(lesion, iterations=2)
        found[placement] = result.percentage, np.argwhere(active).mean(axis=0) - truth
    assert found["corners"][0] == found["even"][0]
    voxel = np.array([side.stop - side.start for side in scan.lung_box()]) / HALF_INPUT  # of the input, in voxels of the scan
    assert np.abs(found["even"][1] / voxel).max() < 0.5
    assert (found["corners"][1] / voxel).max() > 0.5


@pytest.mark.parametrize("option", [{"device": "cuda:0"}, {"device": "gpu"}, {"precision": "half"}])
def test_an_unknown_device_or_precision_is_refused(bundle: Path, option: dict[str, Any]) -> None:
    (name, value), *_ = option.items()
    with pytest.raises(InputError, match=f"{name}: it is '{value}'; expected one of auto, "):
        EmphysemaSubtyper.from_bundle(bundle, **option)
    with pytest.raises(InputError, match="precision: it is 'half'; expected one of auto, float32"):
        choose_precision("half", torch.device("cpu"))  # type: ignore[arg-type]


def test_an_unknown_type_of_map_is_refused(bundle: Path, scan: Scan) -> None:
    with pytest.raises(InputError, match="map_type: it is 'int8'; expected one of uint8, float32"):
        EmphysemaSubtyper.from_bundle(bundle, "cpu", "float32").predict(scan, "int8")  # type: ignore[arg-type]


def test_a_mask_of_lobes_with_a_stray_label_gives_a_warning(bundle: Path, lesioned: Phantom) -> None:
    lungs = lesioned.lungs.copy()
    lungs[tuple(np.argwhere(lungs == 1)[500])] = 6
    odd = Scan.from_images(*dataclasses.replace(lesioned, lungs=lungs).images(), lobes=True)
    warnings = EmphysemaSubtyper.from_bundle(bundle, "cpu", "float32").predict(odd).warnings
    assert "the mask of lobes has other labels than 1 to 5 (6): lobes are not reported" in warnings


def test_a_float32_map_is_the_uint8_map_before_rounding(bundle: Path, scan: Scan) -> None:
    subtyper = EmphysemaSubtyper.from_bundle(bundle, "cpu", "float32")
    levels = subtyper.predict(scan).centrilobular.activation_map
    activations = subtyper.predict(scan, map_type="float32").centrilobular.activation_map
    assert levels.dtype == np.uint8
    assert activations.dtype == np.float32
    assert np.array_equal(levels, np.rint(255 * activations))
    assert activations.max() <= 1


def test_a_classification_bundle_gives_probabilities_the_likeliest_score_and_no_percentages(tmp_path: Path, scan: Scan) -> None:
    folder = write_dark_detector(tmp_path / "bundle", head="classification", input_shape=COARSE_INPUT)
    result = EmphysemaSubtyper.from_bundle(folder, "cpu", "float32").predict(scan)
    cle, pse = result.centrilobular, result.paraseptal
    assert cle.percentage is None
    assert cle.region_percentages == {"right": None, "left": None}
    assert cle.probabilities is not None
    assert len(cle.probabilities) == 6
    assert sum(cle.probabilities) == pytest.approx(1)
    assert cle.score == int(np.argmax(cle.probabilities)) == 5  # air around the lung is dark, too
    assert pse.probabilities == pytest.approx((np.exp(-9) / (2 + np.exp(-9)), *(2 * [1 / (2 + np.exp(-9))])))
    assert pse.score == 1
    assert not pse.activation_map.any()  # its channels above 0 are nowhere positive
    dark = (scan.hounsfield == -1000) & scan.lung
    assert cle.activation_map[dark].mean() > 10 * cle.activation_map[scan.lung & ~dark].mean()


def test_the_percentage_is_the_mean_inside_the_lung_at_the_maps_resolution(bundle: Path, scan: Scan) -> None:
    """Against the dark detector written out: 60 (0.26 - x) before the sigmoid, x the input's every second voxel."""
    box = scan.lung_box()
    window = (np.clip(scan.hounsfield[box].astype(np.float64), -1150, -300) + 1150) / 850
    resized = torch.nn.functional.interpolate(
        torch.from_numpy(window)[None, None], COARSE_INPUT, mode="trilinear", align_corners=True
    )[0, 0].numpy()
    places = (np.rint(np.linspace(0, size - 1, n)).astype(int) for size, n in zip(window.shape, COARSE_INPUT, strict=True))
    lung = scan.lung[box][np.ix_(*places)][::2, ::2, ::2]
    activation = 1 / (1 + np.exp(-60 * (0.26 - resized[::2, ::2, ::2])))
    found = EmphysemaSubtyper.from_bundle(bundle, "cpu", "float32").predict(scan).centrilobular.percentage
    assert found == pytest.approx(100 * activation[lung].mean(), abs=2e-3)


def test_a_subtyper_leaves_the_bundle_it_is_given_as_it_was(bundle: Path, scan: Scan) -> None:
    """Networks of 38 normalisations, as a ResNet-34 has; in evaluation mode, as they are read."""
    given = read_bundle(bundle)
    image = torch.rand(1, 1, 16, 16, 16)
    with torch.no_grad():
        before = given.network(image)
        result = EmphysemaSubtyper(given, "cpu", "bfloat16").predict(scan)
        after = given.network(image)
    assert sum(isinstance(module, torch.nn.BatchNorm3d) for module in given.network.modules()) == 38
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    assert {tensor.dtype for tensor in given.network.parameters()} == {torch.float32}
    again = EmphysemaSubtyper(given, "cpu", "bfloat16").predict(scan)
    assert np.array_equal(again.centrilobular.activation_map, result.centrilobular.activation_map)


def test_threads_that_start_after_a_scan_use_as_many_cores_as_before(bundle: Path, scan: Scan) -> None:
    subtyper = EmphysemaSubtyper.from_bundle(bundle)
    with ThreadPoolExecutor(1) as first:
        before = first.submit(torch.get_num_threads).result()
        first.submit(torch.set_num_threads, 3).result()
        first.submit(subtyper.predict, scan).result()
        assert first.submit(torch.get_num_threads).result() == 3
    with ThreadPoolExecutor(1) as second:
        assert second.submit(torch.get_num_threads).result() == 3
        second.submit(torch.set_num_threads, before).result()


def test_output_that_is_not_finite_is_never_reported(tmp_path: Path, scan: Scan) -> None:
    network, metadata = untrained_bundle(base_width=2, seed=0)
    network.reconstruction.us3.normalisation.bias.data.fill_(1e30)
    network.head.paraseptal.weight.data.fill_(1e30)  # finite itself: a bundle may not hold anything else
    write_bundle(tmp_path / "bundle", network, dataclasses.replace(metadata, input_shape=COARSE_INPUT))
    with pytest.raises(InputError, match=r"^weights untrained-width2: the network's output is not finite in torch\.float32"):
        EmphysemaSubtyper.from_bundle(tmp_path / "bundle", "cpu", "float32").predict(scan)


def test_cuda_that_is_asked_for_and_cannot_be_had_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subtyping, "_why_no_cuda", lambda: "the driver is too old (found version 11040)")
    with pytest.raises(InputError, match=r"the GPU cannot be used: the driver is too old"):
        choose_device("cuda")
    device, _ = choose_device("auto")
    assert device.type == "cpu"
    assert choose_device("cpu") == (torch.device("cpu"), ())


def test_auto_takes_a_gpu_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subtyping, "_why_no_cuda", lambda: None)
    assert choose_device("auto") == (torch.device("cuda"), ())


@pytest.fixture
def small_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `auto` finds: something that computes as a CPU does, is not equal to it, and runs out of memory in the network."""
    gpu = torch.device("cpu", 0)
    forward = ResNetBackbone.forward
    monkeypatch.setattr(subtyping, "choose_device", lambda name: (torch.device("cpu") if name == "cpu" else gpu, ()))

    def limited(self: ResNetBackbone, image: torch.Tensor) -> BackboneFeatures:
        if len(runs) == 0:
            runs.append(image.shape)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(self, image)

    runs: list[torch.Size] = []
    monkeypatch.setattr(ResNetBackbone, "forward", limited)


@pytest.mark.usefixtures("small_gpu")
def test_a_gpu_that_runs_out_of_memory_gives_way_to_the_cpu_and_the_result_says_so(bundle: Path, scan: Scan) -> None:
    subtyper = EmphysemaSubtyper.from_bundle(bundle, "auto", "float32")
    assert subtyper.device != torch.device("cpu")
    result = subtyper.predict(scan)
    assert result.warnings == ("the GPU ran out of memory; the network was computed on the CPU in torch.float32",)
    assert subtyper.device == torch.device("cpu")
    again, expected = subtyper.predict(scan), EmphysemaSubtyper.from_bundle(bundle, "cpu", "float32").predict(scan)
    assert again.warnings == expected.warnings == ()
    for found in (result, again):
        assert found.centrilobular.percentage == expected.centrilobular.percentage
        assert np.array_equal(found.centrilobular.activation_map, expected.centrilobular.activation_map)


@pytest.mark.usefixtures("small_gpu")
def test_a_gpu_that_was_asked_for_and_runs_out_of_memory_is_an_error(bundle: Path, scan: Scan) -> None:
    with pytest.raises(torch.OutOfMemoryError):
        EmphysemaSubtyper.from_bundle(bundle, "cuda", "float32").predict(scan)


def test_weights_that_do_not_fit_onto_the_gpu_are_used_on_the_cpu(
    bundle: Path, scan: Scan, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = torch.device("cpu", 0)
    place = EmphysemaSubtyper._place_network

    def limited(self: EmphysemaSubtyper) -> None:
        if self.device == gpu:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        place(self)

    monkeypatch.setattr(subtyping, "choose_device", lambda _: (gpu, ()))
    monkeypatch.setattr(EmphysemaSubtyper, "_place_network", limited)
    subtyper = EmphysemaSubtyper.from_bundle(bundle, "auto", "float32")
    assert subtyper.notes == ("the GPU ran out of memory; the network was computed on the CPU in torch.float32",)
    assert subtyper.predict(scan).centrilobular.score == 3


@pytest.mark.parametrize(("native", "expected"), [(True, torch.bfloat16), (False, torch.float16)])
def test_auto_precision_on_a_gpu(monkeypatch: pytest.MonkeyPatch, native: bool, expected: torch.dtype) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native and not including_emulation)
    assert choose_precision("auto", torch.device("cuda")) == expected


@pytest.mark.parametrize(
    ("features", "expected"),
    [({"avx512_bf16": True}, torch.bfloat16), ({"amx_bf16": True}, torch.bfloat16), ({"avx2": True}, torch.float32)],
)
def test_auto_precision_on_a_cpu(monkeypatch: pytest.MonkeyPatch, features: dict[str, bool], expected: torch.dtype) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
    assert choose_precision("auto", torch.device("cpu")) == expected


@pytest.mark.parametrize(
    ("precision", "features", "told"),
    [
        ("bfloat16", {"avx2": True}, True),
        ("float16", {"avx2": True, "avx512_bf16": True}, True),
        ("bfloat16", {"avx512_bf16": True}, False),
        ("float16", {"avx512_fp16": True}, False),
        ("float32", {"avx2": True}, False),
    ],
)
def test_half_precision_that_a_cpu_emulates_is_said_to_be_slow(
    monkeypatch: pytest.MonkeyPatch,
    bundle: Path,
    precision: Literal["bfloat16", "float16", "float32"],
    features: dict[str, bool],
    told: bool,
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
    notes = (f"this CPU does not compute {precision} natively: it can take far longer than float32",) if told else ()
    assert EmphysemaSubtyper.from_bundle(bundle, "cpu", precision).notes == notes
    assert precision_notes(torch.float16, torch.device("cuda")) == ()


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_stays_within_a_tenth_of_a_point(
    tmp_path: Path, scan: Scan, precision: Literal["bfloat16", "float16"]
) -> None:
    network, metadata = untrained_bundle(base_width=2, seed=2)
    write_bundle(tmp_path / "bundle", network, dataclasses.replace(metadata, input_shape=HALF_INPUT))
    half, full = (
        EmphysemaSubtyper.from_bundle(tmp_path / "bundle", "cpu", name).predict(scan) for name in (precision, "float32")
    )
    assert half.centrilobular.percentage == pytest.approx(full.centrilobular.percentage, abs=0.1)
    assert half.paraseptal.percentage == pytest.approx(full.paraseptal.percentage, abs=0.1)


def test_metadata_of_an_unknown_profile_cannot_be_made() -> None:
    _, metadata = untrained_bundle(base_width=2, seed=0)
    with pytest.raises(ValueError, match="expected one of paper, released"):
        BundleMetadata(**{**dataclasses.asdict(metadata), "profile": "none"})


def test_8_bit_integers_need_a_bundle_that_has_them(full_bundle: Path) -> None:
    with pytest.raises(InputError, match="this bundle has no 8-bit network"):
        EmphysemaSubtyper.from_bundle(full_bundle, "auto", "int8")
