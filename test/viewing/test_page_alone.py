"""The page without a browser: what its buttons lead to, and what becomes of a result that makes room for another."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from model.viewing import page
from model.viewing.access import Access
from model.viewing.page import PageOptions
from model.viewing.shelf import Shelf
from test.phantom import Phantom, write_case

SECONDS = 300


def draw(options: object) -> None:
    """What Streamlit runs: this text alone, without the imports above."""
    from model.viewing.page import show

    show(options)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def main_module() -> Iterator[None]:
    """Streamlit puts the page in the place of `__main__` and leaves it there: processes started later would run it."""
    before = sys.modules["__main__"]
    yield
    sys.modules["__main__"] = before


@pytest.fixture
def options(bundle: Path, phantom: Phantom, tmp_path: Path) -> PageOptions:
    """A page with an example, without finished outputs."""
    example = write_case(tmp_path / "example", *phantom.images("RAS"), stem="example")
    behind_proxy = Access(behind_proxy=True)
    return PageOptions((bundle,), tmp_path / "none", example, None, None, None, "cpu", "float32", behind_proxy)


def opened(options: PageOptions) -> AppTest:
    return AppTest.from_function(draw, args=(options,), default_timeout=SECONDS).run()


def press(shown: AppTest, label: str) -> AppTest:
    (button,) = [button for button in shown.button if button.label == label]
    return button.click().run()


def headings(shown: AppTest) -> list[str]:
    return [heading.value for heading in shown.subheader]


@pytest.mark.parametrize(
    ("button", "expected"),
    [
        ("Score the example", ["Scan: example \\(simulated\\)"]),
        ("Open the example", ["Scan: example \\(simulated\\)"]),
        (
            "Compare the example with a smoothed copy",
            ["Scan: example \\(simulated\\)"] * 2 + ["Scan: example \\(simulated\\)\\, smoothed"],
        ),
    ],
)
def test_each_tab_of_scans_has_an_example(options: PageOptions, button: str, expected: list[str]) -> None:
    shown = press(opened(options), button)
    assert not shown.exception
    if button.startswith("Compare"):
        shown.run()  # the example that was scored for the comparison is open among the finished outputs from now on
    assert headings(shown) == expected


def test_a_result_that_made_room_for_another_is_not_shown_and_its_page_says_so(
    options: PageOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "_SHELF", Shelf(lambda: 0))
    first, second = opened(options), opened(options)
    press(first, "Score the example")
    assert headings(first)
    press(second, "Score the example")
    assert headings(second)
    first.run()
    assert not headings(first)
    assert any("removed to make room" in info.value for info in first.info)
