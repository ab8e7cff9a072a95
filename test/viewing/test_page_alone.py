"""The page without a browser: what its buttons lead to, and what becomes of a result that makes room for another."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from streamlit.runtime.memory_uploaded_file_manager import MemoryUploadedFileManager
from streamlit.runtime.scriptrunner import StopException
from streamlit.runtime.uploaded_file_manager import UploadedFileRec
from streamlit.testing.v1 import AppTest

from model.container.results import CaseResult
from model.container.schema import from_json, to_json
from model.errors import InputError
from model.slices.bundle import SliceMetadata
from model.viewing import page, slice_tab
from model.viewing.access import Access
from model.viewing.page import PageOptions
from model.viewing.shelf import Shelf
from model.viewing.widgets import as_text
from test.container.test_table import RESULT
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


def test_forget_removes_the_files_of_both_fields_from_the_servers_memory(
    options: PageOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_file = MemoryUploadedFileManager.add_file
    managers = set()

    def noted(manager: MemoryUploadedFileManager, session_id: str, file: UploadedFileRec) -> None:
        managers.add(manager)
        add_file(manager, session_id, file)

    shown = opened(options)
    ct, mask = shown.file_uploader[:2]
    ct.upload("ct.mha", b"voxels")
    ct.upload("more.mha", b"voxels")
    mask.upload("mask.mha", b"lungs")
    shown.run()
    assert len(shown.file_uploader[0].value) == 2
    with monkeypatch.context() as patched:
        patched.setattr(MemoryUploadedFileManager, "add_file", noted)
        press(shown, "Forget")
    (manager,) = managers
    assert not any(manager.file_storage.values())
    assert not shown.file_uploader[0].value


INTERRUPTED = "Scoring was interrupted because another control was used. Press Score again."


def test_scoring_that_another_control_interrupts_says_so_until_it_is_repeated(
    options: PageOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise StopException  # what Streamlit ends a page with that it draws anew

    shown = opened(options)
    with monkeypatch.context() as patched:
        patched.setattr(page, "score_uploads", interrupted)
        press(shown, "Score the example")
    for _ in range(2):
        shown.run()
        assert [warning.value for warning in shown.warning] == [INTERRUPTED]
    press(shown, "Score the example")
    assert headings(shown)
    assert not shown.warning
    shown.run()
    assert headings(shown)
    assert not shown.warning


def test_scoring_that_failed_was_not_interrupted(options: PageOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise InputError("CT", "no scan", "a scan")

    monkeypatch.setattr(page, "score_uploads", refused)
    shown = press(opened(options), "Score the example")
    assert [error.value for error in shown.error if "CT" in error.value] == [as_text("CT: no scan; expected a scan")]
    shown.run()
    assert INTERRUPTED not in [warning.value for warning in shown.warning]


def test_other_files_were_not_interrupted(options: PageOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise StopException

    monkeypatch.setattr(page, "score_uploads", interrupted)
    shown = press(opened(options), "Score the example")
    shown.file_uploader[0].upload("ct.mha", b"voxels")
    shown.run()
    assert not shown.warning
    assert any("Press Score to see the result" in info.value for info in shown.info)


def test_the_slice_is_drawn_before_it_is_classified(options: PageOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def predict(self, _: object) -> None:
            raise InputError("slice", "it cannot be classified", "another one")

    monkeypatch.setattr(slice_tab, "_classifier", lambda _: Broken())
    shown = opened(options)
    (toggle,) = [toggle for toggle in shown.toggle if toggle.label == "A slice of the example (simulated)"]
    shown = toggle.set_value(True).run()
    assert [error.value for error in shown.error] == [as_text("slice: it cannot be classified; expected another one")]
    assert len(shown.get("image")) == 1, "the slice is there already"


def test_the_number_of_warnings_stands_beside_the_name_of_a_case() -> None:
    assert list(page._row(RESULT).items())[:2] == [("case", "scan"), ("warnings", 2)]


def test_forget_says_what_a_reload_does(options: PageOptions) -> None:
    (button,) = [button for button in opened(options).button if button.label == "Forget"]
    assert "F5" in button.help


def answer_alone(result: object) -> None:
    """What Streamlit runs: this text alone, without the imports above."""
    from model.viewing.case_view import show_answer

    show_answer(result)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("validation", "said"),
    [
        ({"validated_on": "932 patches of COPDGene"}, "Validated on: 932 patches of COPDGene."),
        ({"validated_on": None}, "Not validated on scans with visual scores."),
        ({}, "Not validated on scans with visual scores."),
    ],
    ids=["named", "none", "result of an older version"],
)
def test_what_the_weights_were_validated_on_stands_beside_what_they_were_trained_on(
    validation: dict[str, str | None], said: str
) -> None:
    document = to_json(RESULT)
    document["provenance"] |= validation
    result = from_json(CaseResult, document)
    shown = AppTest.from_function(answer_alone, args=(result,), default_timeout=SECONDS).run()
    assert not shown.exception
    (caption,) = shown.caption
    assert caption.value.replace("\\", "") == f"Weights: dark, trained on nothing, or little. {said}"


@pytest.mark.parametrize(
    ("training", "said"),
    [
        ({"folds": [{"curve": []}]}, "accuracy 93 % in cross-validation on these slices"),
        ({"split": "patient"}, "accuracy 93 % on held-out slices"),
    ],
)
def test_the_slice_network_says_how_its_accuracy_was_measured(training: dict[str, Any], said: str) -> None:
    metadata = SliceMetadata("simple_cnn", "829 slices", None, training=training, performance={"accuracy": {"percent": 93.4}})
    assert metadata.summary == f"simple_cnn, trained on 829 slices; {said}"
