"""The 8-bit runtime, with a network that OpenVINO computes in floating point."""

from __future__ import annotations

import importlib.util
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from model.eight_bit import EightBitRuntime
from model.errors import InputError
from model.network import fold_batch_normalisation
from model.training.quantize import openvino_model
from model.weights import EIGHT_BIT_FILES, EightBitBundle, read_bundle
from test.conftest import need


def runtime_of(bundle: Path, folder: Path) -> EightBitRuntime:
    import openvino

    whole = read_bundle(bundle)
    model = openvino_model(fold_batch_normalisation(whole.network), whole.metadata.input_shape)
    openvino.save_model(model, folder / EIGHT_BIT_FILES[0], compress_to_fp16=False)
    layers, numbers = ((folder / name).read_bytes() for name in EIGHT_BIT_FILES)
    return EightBitRuntime(EightBitBundle(whole.metadata, whole.sha256, layers, numbers, (0.0, 0.0), {}), threads=1)


def test_a_network_that_openvino_cannot_read_is_named_with_its_bundle(bundle: Path) -> None:
    need(importlib.util.find_spec("openvino") is not None, "the package openvino (requirements/int8.lock)")
    whole = read_bundle(bundle)
    odd = EightBitBundle(whole.metadata, whole.sha256, b"<net/>", b"", (0.0, 0.0), {}, bundle)
    with pytest.raises(InputError, match=rf"{bundle}/int8\.xml: OpenVINO cannot use it"):
        EightBitRuntime(odd, threads=1)


@pytest.mark.slow
def test_each_thread_gets_the_logits_of_its_own_image(bundle: Path, tmp_path: Path) -> None:
    """Without a lock, some calls return the logits of another thread's image."""
    need(importlib.util.find_spec("openvino") is not None, "the package openvino (requirements/int8.lock)")
    runtime = runtime_of(bundle, tmp_path)
    images = [torch.full((1, 1, *read_bundle(bundle).metadata.input_shape), level / 8) for level in range(8)]
    alone = [runtime(image).centrilobular for image in images]
    assert len({logits.mean().item() for logits in alone}) == len(images)
    with ThreadPoolExecutor(4) as threads:
        for _ in range(25):
            together = threads.map(runtime, images)
            for found, expected in zip(together, alone, strict=True):
                assert torch.equal(found.centrilobular, expected)
