from __future__ import annotations

import shutil

import pytest

CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of a Chromium browser."""
    if CHROMIUM is None:
        pytest.skip("needs a Chromium browser (Debian: apt-get install chromium)")
    return CHROMIUM
