"""From a PACS and back: Orthanc holds a CT, which is fetched, scored, and sent back as segmentations and a report."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
import pytest
import SimpleITK as sitk

import process
from test.conftest import need
from test.imaging.series import SCANNER_TAGS, write_dicom_series
from test.phantom import make_phantom

pytestmark = pytest.mark.slow

DICOMWEB_PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
START_SECONDS = 60


@dataclass(frozen=True)
class Pacs:
    """An Orthanc on this machine's loopback interface."""

    http_port: int
    dicom_port: int

    def send(self, *paths: Path) -> None:
        """Store files and folders by C-STORE."""
        command = ["storescu", "-R", "-aec", "ORTHANC", "+sd", "+r", "127.0.0.1", str(self.dicom_port), *map(str, paths)]
        subprocess.run(command, check=True, capture_output=True, timeout=120)

    def fetch(self, study: str, series: str, folder: Path) -> None:
        """Retrieve a series by C-GET."""
        folder.mkdir()
        keys = ["-k", "0008,0052=SERIES", "-k", f"0020,000D={study}", "-k", f"0020,000E={series}"]
        command = ["getscu", "-S", "-aec", "ORTHANC", "-od", str(folder), *keys, "127.0.0.1", str(self.dicom_port)]
        subprocess.run(command, check=True, capture_output=True, timeout=120)

    def find(self, path: str) -> list[dict[str, Any]]:
        """Ask by QIDO-RS."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}/dicom-web/{path}", timeout=60) as answer:
            found: list[dict[str, Any]] = json.load(answer)
        return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def pacs(tmp_path: Path) -> Iterator[Pacs]:
    """An empty Orthanc, until the test has ended."""
    need(shutil.which("Orthanc") is not None and DICOMWEB_PLUGIN.exists(), "Orthanc (Debian: orthanc, orthanc-dicomweb)")
    need(all(shutil.which(tool) for tool in ("storescu", "getscu")), "storescu and getscu (Debian package dcmtk)")
    started = Pacs(free_port(), free_port())
    settings = {
        "StorageDirectory": str(tmp_path / "orthanc"),
        "IndexDirectory": str(tmp_path / "orthanc"),
        "HttpPort": started.http_port,
        "DicomPort": started.dicom_port,
        "DicomAet": "ORTHANC",
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomAlwaysAllowGet": True,
        "Plugins": [str(DICOMWEB_PLUGIN)],
    }
    (tmp_path / "orthanc.json").write_text(json.dumps(settings))
    with (tmp_path / "orthanc.log").open("w") as log:
        server = subprocess.Popen(["Orthanc", tmp_path / "orthanc.json"], stdout=log, stderr=subprocess.STDOUT)
    try:
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                started.find("studies")
                break
            except (urllib.error.URLError, ConnectionError):
                assert server.poll() is None, (tmp_path / "orthanc.log").read_text()
                assert time.monotonic() < end, (tmp_path / "orthanc.log").read_text()
                time.sleep(0.2)
        yield started
    finally:
        server.terminate()
        server.wait(timeout=60)


def values(answer: list[dict[str, Any]], tag: str) -> list[str]:
    return sorted(item[tag]["Value"][0] for item in answer)


def test_a_scan_is_fetched_scored_and_sent_back_to_its_study(pacs: Pacs, bundle: Path, tmp_path: Path) -> None:
    ct, lungs = make_phantom((28, 40, 50), (9.0, 6.5, 6.5)).images()
    series = write_dicom_series(ct, tmp_path / "scanner", tags=lambda _: SCANNER_TAGS)
    header = pydicom.dcmread(min(series.iterdir()))
    study = str(header.StudyInstanceUID)
    pacs.send(series)

    pacs.fetch(study, str(header.SeriesInstanceUID), tmp_path / "fetched")
    assert len(list((tmp_path / "fetched").iterdir())) == ct.GetDepth()
    sitk.WriteImage(lungs, str(tmp_path / "lungs.mha"))
    files = ["--ct", tmp_path / "fetched", "--lung-mask", tmp_path / "lungs.mha", "--output", tmp_path / "output"]
    assert process.main([*map(str, files), "--weights", str(bundle), "--dicom"]) == 0
    pacs.send(tmp_path / "output/dicom")

    assert values(pacs.find("studies"), "0020000D") == [study]
    found = pacs.find(f"studies/{study}/series")
    assert values(found, "00080060") == ["CT", "SEG", "SEG", "SR"]
    report = next(item["0020000E"]["Value"][0] for item in found if item["00080060"]["Value"] == ["SR"])
    (instance,) = pacs.find(f"studies/{study}/series/{report}/instances?includefield=PatientID")
    assert instance["00080016"]["Value"] == ["1.2.840.10008.5.1.4.1.1.88.22"]  # an Enhanced SR
    assert values(pacs.find("studies?PatientID=4711-0815"), "0020000D") == [study]
    pacs.fetch(study, report, tmp_path / "report")
    (back,) = (tmp_path / "report").iterdir()
    assert "Centrilobular emphysema" in str(pydicom.dcmread(back))
