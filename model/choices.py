"""What options may be set to. On its own, so that a command line can be parsed before torch is imported."""

from __future__ import annotations

from typing import Literal

DeviceName = Literal["auto", "cpu", "cuda"]
PrecisionName = Literal["auto", "float32", "bfloat16", "float16"]
MapType = Literal["uint8", "float32"]
