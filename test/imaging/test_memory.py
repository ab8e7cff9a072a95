"""The available memory, and the check before an image is read."""

from __future__ import annotations

from pathlib import Path

import pytest
import SimpleITK as sitk

from model.errors import InputError
from model.imaging import memory
from model.imaging.memory import available_memory
from model.imaging.readers import read_header
from test.phantom import Phantom


@pytest.mark.parametrize("version", [1, 2])
def test_a_containers_memory_limit_counts_and_cached_files_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    names = {1: ("limit_in_bytes", "usage_in_bytes", "total_cache"), 2: ("max", "current", "file")}[version]
    folder = tmp_path / "memory" if version == 1 else tmp_path
    folder.mkdir(exist_ok=True)
    (folder / f"memory.{names[0]}").write_text("1000000\n")
    (folder / f"memory.{names[1]}").write_text("900000\n")
    (folder / "memory.stat").write_text(f"anon 300000\n{names[2]} 600000\n")
    monkeypatch.setattr(memory, "CONTROL_GROUP", tmp_path)
    assert available_memory() == 700000
    if version == 2:
        (folder / "memory.max").write_text("max\n")
        assert available_memory() > 1e9


def test_an_image_larger_than_the_memory_is_refused_before_it_is_read(
    phantom: Phantom, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sitk.WriteImage(phantom.images()[0], str(tmp_path / "ct.mha"))
    monkeypatch.setattr(memory, "available_memory", lambda: 2 * 2 * phantom.lungs.size - 1)
    with pytest.raises(InputError, match=r"its header asks for 2\.56e\+05 voxels"):
        read_header(tmp_path / "ct.mha")
    monkeypatch.setattr(memory, "available_memory", lambda: 2 * 2 * phantom.lungs.size)
    assert read_header(tmp_path / "ct.mha").size == (80, 64, 50)
