"""Three linked planes in the page: a Streamlit component around NiiVue (see `component/README.md`)."""

from __future__ import annotations

from pathlib import Path

import streamlit.components.v1 as components
from streamlit import runtime

from ..rendering import COLOURS, CONTOUR_COLOUR
from .case import ViewedCase
from .planes import SLABS, WINDOWS

FILES = Path(__file__).parent / "component"

_component = components.declare_component("linked_planes", path=FILES)


def linked_planes(case: ViewedCase, title: str, key: str) -> None:
    """Draw the component; the volumes are served at addresses that only this session is told."""
    server = runtime.get_instance().media_file_mgr
    addresses = [
        {name: server.add(content, "application/octet-stream", f"{key}-{number}-{name}") for name, content in level.items()}
        for number, level in enumerate(case.browser_volumes)
    ]
    _component(
        volumes=addresses,
        colours={name: list(colour) for name, colour in (COLOURS | {"contour": CONTOUR_COLOUR}).items()},
        windows={name: [window.centre, window.width] for name, window in WINDOWS.items()},
        slabs={name: [slab.projection, slab.thickness_mm] if slab else None for name, slab in SLABS.items()},
        title=title,
        start=list(case.start_mm),
        has_ct=case.hounsfield is not None,
        key=key,
        default=None,
    )
