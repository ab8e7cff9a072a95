"""Reading cases ahead: the next case is read while the network is being loaded or the case before it is scored."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from ..errors import InputError
from ..imaging.readers import Volume, check_ct, read_volume
from .grand_challenge import Case
from .resume import stat_fingerprint


@dataclass(frozen=True)
class CaseVolumes:
    """What was read of a case.

    Attributes:
        ct: in HU.
        lung_mask: None where the lungs are to be segmented.
        stat: `stat_fingerprint` of the files that were read.
    """

    ct: Volume
    lung_mask: Volume | None
    stat: str


def read_case(case: Case) -> CaseVolumes:
    """Read the files of a case.

    Raises:
        InputError: a file cannot be read or changed meanwhile, or the CT is of another modality.
    """
    stat = stat_of(case)
    ct, *lung_mask = (read_volume(path) for path in case.files)
    check_ct(ct)
    if stat_of(case) != stat:
        raise InputError(case.ct, "the files of the case changed while they were read", "files that are complete")
    return CaseVolumes(ct, lung_mask[0] if lung_mask else None, stat)


def stat_of(case: Case) -> str:
    """`stat_fingerprint` of a case's files; empty where they cannot be looked at, which reading them tells."""
    try:
        return stat_fingerprint(case.files)
    except (InputError, OSError):
        return ""


class Scans(Protocol):
    """Where the voxels of a run's cases come from."""

    def begin(self, left_out: Collection[int] = ()) -> None:
        """Start to read.

        Args:
            left_out: places of cases that will not be taken.
        """
        ...

    def known_problem(self, index: int) -> str | None:
        """What stands in a case's way; empty if nothing does, None if its files have not been looked at."""
        ...

    def take(self, index: int) -> CaseVolumes:
        """Return what was read of a case.

        Raises:
            InputError: as `read_case`.
        """
        ...


class AlreadyRead:
    """Cases that were read elsewhere: the volumes of each, or why there are none."""

    def __init__(self, cases: Sequence[CaseVolumes | str]) -> None:
        self._cases = cases

    def begin(self, left_out: Collection[int] = ()) -> None:
        """Nothing is left to read."""

    def known_problem(self, index: int) -> str:
        case = self._cases[index]
        return case if isinstance(case, str) else ""

    def take(self, index: int) -> CaseVolumes:
        case = self._cases[index]
        assert not isinstance(case, str), "a case with a problem is not taken"
        return case


class ReadAhead:
    """Reads the cases of a run in a thread, one ahead of the case taken last; the first when `begin` is called.

    At most two cases are in memory.
    """

    def __init__(self, cases: Sequence[Case]) -> None:
        self._cases = cases
        self._thread = ThreadPoolExecutor(1, "reading")
        self._ahead: tuple[int, Future[CaseVolumes]] | None = None
        self._left_out: frozenset[int] = frozenset()
        self._first = 0

    def __enter__(self) -> Self:
        return self

    def begin(self, left_out: Collection[int] = ()) -> None:
        """Start to read the first case.

        Args:
            left_out: places of cases that will not be taken.
        """
        self._left_out = frozenset(left_out)
        self._first = self._begin(0)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._thread.shutdown(cancel_futures=True)

    def known_problem(self, index: int) -> None:
        """Files are looked at when they are read."""

    def take(self, index: int) -> CaseVolumes:
        """Wait for a case and return it; start to read the next.

        Raises:
            InputError: as `read_case`.
        """
        volumes = self._read(index)
        self._begin(index + 1)
        return volumes

    def _read(self, index: int) -> CaseVolumes:
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] == index:
            try:
                return ahead[1].result()
            except (InputError, MemoryError):
                if index == self._first:
                    raise
        # There may not have been enough memory while the case before was being scored.
        return read_case(self._cases[index])

    def _begin(self, index: int) -> int:
        """Start to read the first case from a place on that is not left out; return its place."""
        while index in self._left_out:
            index += 1
        if index < len(self._cases):
            self._ahead = index, self._thread.submit(read_case, self._cases[index])
        return index
