"""Reading cases ahead: while one scan is scored, or the network is being loaded, the next is read beside it."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

import SimpleITK as sitk

from ..errors import InputError
from ..imaging.scan import Scan, read_image
from .grand_challenge import Case


def read_case(case: Case) -> Scan | sitk.Image:
    """Read a case: its CT and lung mask as a scan, or the CT alone if its lungs are yet to be found.

    Raises:
        InputError: a file cannot be read, or what it holds cannot be a chest CT with its lungs.
    """
    ct, *lung_mask = case.files
    return Scan.read(ct, lung_mask[0], lobes=case.lobes) if lung_mask else read_image(ct)


class ReadAhead:
    """Reads the cases of a run, one ahead of the one that was asked for last; the first as soon as the `with` block begins.

    Two scans are in memory at most.
    """

    def __init__(self, cases: Sequence[Case]) -> None:
        self._cases = cases
        self._thread = ThreadPoolExecutor(1, "reading")
        self._ahead: tuple[int, Future[Scan | sitk.Image]] | None = None

    def __enter__(self) -> Self:
        self._begin(0)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._thread.shutdown(cancel_futures=True)

    def take(self, index: int) -> Scan | sitk.Image:
        """Wait for a case and hand it over; the next begins to be read.

        Raises:
            InputError: as `read_case`.
        """
        images = self._read(index)
        self._begin(index + 1)
        return images

    def _read(self, index: int) -> Scan | sitk.Image:
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] == index:
            try:
                return ahead[1].result()
            except (InputError, MemoryError):
                if index == 0:
                    raise
        # Beside the case before there may not have been the memory that there is now.
        return read_case(self._cases[index])

    def _begin(self, index: int) -> None:
        if index < len(self._cases):
            self._ahead = index, self._thread.submit(read_case, self._cases[index])
