"""Emphysema subtyping on chest CT: a scan in, Fleischner scores, percentages and activation maps out.

    from emphysema_subtyping import EmphysemaSubtyper, Scan

`pip install` offers this folder under that name; inside the repository it is called `model`. Research software, not a medical
device.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .imaging.scan import Scan
    from .subtyping import EmphysemaSubtyper

__all__ = ["DISCLAIMER", "SHIPPED_WEIGHTS", "EmphysemaSubtyper", "Scan", "__version__"]

__version__ = "0.1.0"

DISCLAIMER = "Research software, not a medical device."

_CODE = Path(__file__).resolve().parent

SHIPPED_WEIGHTS = _CODE / "bundles" if (_CODE / "bundles").is_dir() else _CODE.parent / "weights"
"""The folder with the weights that come with the code: inside an installed package, beside the code in the repository."""

_HOMES = {"EmphysemaSubtyper": ".subtyping", "Scan": ".imaging.scan"}


def __getattr__(name: str) -> object:
    """Import a class when it is first asked for: `EmphysemaSubtyper` brings torch, which takes seconds."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name], __name__), name)
