"""The cases of all sessions take no more than their share of the memory."""

from __future__ import annotations

import gc
from collections.abc import Callable

import numpy as np
import pytest

from model.container.results import failed_result
from model.viewing.case import CaseFiles, ViewedCase
from model.viewing.shelf import SHARE, Held, Shelf

SHAPE = (30, 40, 50)


@pytest.fixture
def make_case() -> Callable[[], ViewedCase]:
    def make() -> ViewedCase:
        lung = np.zeros(SHAPE, bool)
        lung[5:25, 5:35, 5:45] = True
        maps = {subtype: np.zeros(SHAPE, np.uint8) for subtype in ("centrilobular", "paraseptal")}
        ct = np.full(SHAPE, -850, np.int16)
        return ViewedCase(failed_result("not needed here"), ct, lung, maps, (1.0, 1.0, 1.0), CaseFiles({}))

    return make


def test_a_case_counts_with_its_arrays_and_what_the_browser_is_sent(make_case: Callable[[], ViewedCase]) -> None:
    voxels = int(np.prod(SHAPE))
    sent = 352 + 2 * voxels  # the CT as NIfTI; the maps and the contour are packed to less
    assert 5 * voxels + sent < make_case().size_bytes < 5 * voxels + sent + 20_000


def test_the_oldest_cases_make_room_for_the_newest(make_case: Callable[[], ViewedCase]) -> None:
    one = make_case().size_bytes
    memory = 6.5 * one / SHARE / 2  # of which cases take half: three and a quarter
    held: list[Held] = []

    def free() -> int:
        return int(memory - sum(one for other in held if other.case is not None))

    shelf = Shelf(free)
    for _ in range(5):
        held.append(shelf.hold(make_case()))
    assert [other.case is not None for other in held] == [False, False, True, True, True]


def test_a_case_is_held_even_where_it_alone_takes_more(make_case: Callable[[], ViewedCase]) -> None:
    shelf = Shelf(lambda: 0)
    first, second = shelf.hold(make_case()), shelf.hold(make_case())
    assert first.case is None
    assert second.case is not None


def test_what_a_session_lets_go_does_not_count(make_case: Callable[[], ViewedCase]) -> None:
    one = make_case().size_bytes
    shelf = Shelf(lambda: int(1.2 * one / SHARE) - one)  # with one case held: room for one and a fifth
    first = shelf.hold(make_case())
    second = shelf.hold(make_case())
    assert first.case is None
    del second
    gc.collect()
    third = shelf.hold(make_case())
    fourth = shelf.hold(make_case())
    assert (third.case, fourth.case is None) == (None, False)
