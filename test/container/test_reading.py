"""Cases are read ahead: in order, one at a time, and with the answers that reading them by themselves gives."""

from __future__ import annotations

import os
import threading
from contextlib import closing
from pathlib import Path

import pytest
import SimpleITK as sitk

from model.container import reading
from model.container.algorithm import EmphysemaAlgorithm, Written
from model.container.grand_challenge import RECORDS_FILE, Case, OutputFolder, find_cases
from model.container.reading import AlreadyRead, CaseVolumes, ReadAhead
from model.container.resume import read_records, stat_fingerprint
from model.errors import InputError
from model.imaging.readers import Volume, read_volume
from model.subtyping import EmphysemaSubtyper
from test.phantom import Phantom, write_case

CASES = [Case.of(Path(f"{name}.mha"), Path("lungs.mha")) for name in "abc"]


class Reader:
    """In place of `read_case`: counts, and fails where it is told to."""

    def __init__(self, failures: dict[str, int] | None = None, error: type[Exception] = InputError) -> None:
        self.failures = dict(failures or {})
        self.error = error
        self.begun: list[str] = []
        self.beside: list[bool] = []
        self.changed = threading.Condition()

    def __call__(self, case: Case) -> CaseVolumes:
        with self.changed:
            self.begun.append(case.entity)
            self.beside.append(threading.current_thread() is not threading.main_thread())
            self.changed.notify_all()
        if self.failures.get(case.entity, 0):
            self.failures[case.entity] -= 1
            raise InputError(case.ct, "no room", "room") if self.error is InputError else self.error()
        return CaseVolumes(Volume(sitk.Image(), case.entity), None, "")

    def wait_for(self, *begun: str) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.begun == list(begun), 10), self.begun


def with_reader(
    monkeypatch: pytest.MonkeyPatch, failures: dict[str, int] | None = None, error: type[Exception] = InputError
) -> Reader:
    reader = Reader(failures, error)
    monkeypatch.setattr(reading, "read_case", reader)
    return reader


def taken(scans: ReadAhead, *places: int) -> list[str]:
    """The entities of the cases that were handed over."""
    return [scans.take(place).ct.name for place in places]


def test_the_first_case_is_read_when_asked_for_and_each_next_one_when_the_one_before_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reader = with_reader(monkeypatch)
    with ReadAhead(CASES) as scans:
        scans.begin()
        reader.wait_for("a")
        assert taken(scans, 0) == ["a"]
        reader.wait_for("a", "b")
        assert taken(scans, 1, 2) == ["b", "c"]
    assert reader.begun == ["a", "b", "c"]
    assert all(reader.beside)


def test_a_case_that_is_skipped_does_not_come_in_place_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    with_reader(monkeypatch)
    with ReadAhead(CASES) as scans:
        scans.begin()
        assert taken(scans, 0, 2) == ["a", "c"]


def test_cases_that_are_left_out_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = with_reader(monkeypatch)
    with ReadAhead([*CASES, Case.of(Path("d.mha"), Path("lungs.mha"))]) as scans:
        scans.begin(left_out={0, 2})
        assert taken(scans, 1, 3) == ["b", "d"]
    assert reader.begun == ["b", "d"]


@pytest.mark.parametrize("error", [InputError, MemoryError])
def test_what_could_not_be_read_beside_another_case_is_read_once_more(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    reader = with_reader(monkeypatch, {"b": 1, "c": 2}, error)
    with ReadAhead(CASES) as scans:
        scans.begin()
        assert taken(scans, 0, 1) == ["a", "b"]
        with pytest.raises(error):
            scans.take(2)
    assert reader.begun == ["a", "b", "b", "c", "c"]


def test_the_first_case_which_had_the_memory_to_itself_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = with_reader(monkeypatch, {"a": 2})
    with ReadAhead(CASES) as scans:
        scans.begin()
        with pytest.raises(InputError, match=r"a\.mha: no room"):
            scans.take(0)
    assert reader.begun == ["a"]


def test_a_case_that_changes_while_it_is_read_is_refused(
    phantom: Phantom, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a DICOM series whose slices are still being copied."""
    (case,) = find_cases(write_case(tmp_path, *phantom.images()))

    def read_and_change(path: Path) -> Volume:
        volume = read_volume(path)
        os.utime(case.ct, ns=(0, 0))
        return volume

    monkeypatch.setattr(reading, "read_volume", read_and_change)
    with pytest.raises(
        InputError, match="the files of the case changed while they were read; expected files that are complete"
    ):
        reading.read_case(case)


def test_what_is_noted_of_a_case_are_the_files_that_were_read(lesioned: Phantom, bundle: Path, tmp_path: Path) -> None:
    """They change while the case waits for the network: a later run scores it again."""
    (case,) = find_cases(write_case(tmp_path / "input", *lesioned.images()))
    volumes = reading.read_case(case)
    stat = stat_fingerprint(case.files)
    os.utime(case.ct, ns=(0, 0))
    subtyper = EmphysemaSubtyper.from_bundle(bundle, "cpu", "float32")
    with closing(OutputFolder(tmp_path / "output")) as outputs:
        EmphysemaAlgorithm([case], AlreadyRead([volumes]), subtyper, outputs, Written(), None, verify=True).process()
    (record,) = read_records(tmp_path / "output" / RECORDS_FILE).values()
    assert (record.stat, record.sha256) == (stat, None)
    assert record.stat != stat_fingerprint(case.files)
