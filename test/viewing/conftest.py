from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmark.viewer import chromium_path
from test.conftest import ROOT, need
from test.phantom import Phantom, write_case

CHROMIUM = chromium_path()


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of a Chromium browser."""
    need(CHROMIUM is not None, "a Chromium browser (Debian: apt-get install chromium)")
    return str(CHROMIUM)


def write_finished_case(folder: Path, phantom: Phantom, bundle: Path, stem: str, *options: str) -> None:
    """Write `input`, a case, and the `output` of process.py for it into a folder."""
    write_case(folder / "input", *phantom.images("RAS"), stem=stem)
    paths = ("--input", folder / "input", "--output", folder / "output", "--weights", bundle)
    subprocess.run([sys.executable, ROOT / "process.py", *paths, *options], check=True, capture_output=True)
