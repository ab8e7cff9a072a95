"""The page in a real browser, as its users see it; and what the server prints meanwhile."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import shutil
import socket
import socketserver
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image
from playwright.sync_api import Browser, FrameLocator, Locator, Page, Playwright, expect, sync_playwright

from benchmark.viewer import WEBGL
from model.slices import CLASSES
from model.slices.bundle import SliceMetadata, write_bundle
from model.slices.images import LUNG_WINDOW
from model.slices.networks import build_network
from test.conftest import ROOT
from test.phantom import LUNG_HU, Phantom, write_case
from test.slices.chest import chest
from test.viewing.conftest import write_finished_case

pytestmark = pytest.mark.slow

PATIENT = "DOE_JANE"
OTHER_PATIENT = "ROE_RICHARD"
PASSWORD = "correct horse"
SCORING_MS = 300_000
CT, MASK, FINISHED, SLICE = "CT: one", "Lung mask", "A .zip of an output", "Slice: a"
"""The page's upload fields: how their labels begin."""
expect.set_options(timeout=180_000)  # a busy machine answers late


@dataclass(frozen=True)
class Server:
    """A viewer that runs."""

    url: str
    folder: Path
    temporary: Path

    @property
    def log(self) -> Path:
        """What it printed."""
        return self.folder / "log"


@contextmanager
def serving(folder: Path, *arguments: str | Path, **environment: str) -> Iterator[Server]:
    """Run the viewer on a free port, with a folder of its own for temporary files."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    temporary = folder / "temporary"
    temporary.mkdir(parents=True)
    command = [sys.executable, ROOT / "viewer.py", "--port", str(port), *arguments]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("EMPHYSEMA_")}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, env=clean | {"TMPDIR": str(temporary)} | environment, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until_up(url, process)
            yield Server(url, folder, temporary)
        finally:
            process.terminate()
            process.wait(60)


def wait_until_up(url: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(240):
        assert process.poll() is None, "the viewer ended"
        try:
            urllib.request.urlopen(f"{url}/_stcore/health", timeout=5)
        except OSError:
            time.sleep(0.5)
        else:
            return
    raise AssertionError("the viewer did not come up")


@contextmanager
def tunnel_to(url: str) -> Iterator[str]:
    """Pass connections on as a tunnel does, on a free port: the first request of each gets a header with where it came from."""

    class Connection(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.create_connection((urlsplit(url).hostname, urlsplit(url).port)) as onward:
                first = self.request.recv(1 << 16)
                onward.sendall(first.replace(b"\r\n", b"\r\nX-Forwarded-For: 203.0.113.7\r\n", 1))
                back = threading.Thread(target=passed_on, args=(onward, self.request), daemon=True)
                back.start()
                passed_on(self.request, onward)
                back.join()

    def passed_on(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Connection) as tunnel:
        tunnel.daemon_threads = True
        threading.Thread(target=tunnel.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{tunnel.server_address[1]}"
        finally:
            tunnel.shutdown()


def sound(phantom: Phantom) -> Phantom:
    """The same chest without emphysema."""
    return dataclasses.replace(phantom, hounsfield=np.maximum(phantom.hounsfield, LUNG_HU))


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    with sync_playwright() as running:
        yield running


@pytest.fixture(scope="module")
def browser(playwright: Playwright, chromium: str) -> Browser:
    return playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])


@pytest.fixture(scope="module")
def slices_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slices") / "bundle"
    write_bundle(folder, build_network("simple_cnn"), SliceMetadata("simple_cnn", "nothing", None))
    return folder


@pytest.fixture(scope="module")
def files(lesioned: Phantom, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scan, its mask and a slice under a patient's name, another scan without emphysema, and broken files."""
    folder = tmp_path_factory.mktemp("files")
    ct, lungs = lesioned.images("RAS")
    ct.SetMetaData("PatientName", PATIENT)
    for name, image in ((f"{PATIENT}.mha", ct), (f"{PATIENT}_lungs.nii.gz", lungs)):
        sitk.WriteImage(image, str(folder / name), useCompression=True)
    sitk.WriteImage(sound(lesioned).images("RAS")[0], str(folder / f"{OTHER_PATIENT}.mha"), useCompression=True)
    Image.fromarray(LUNG_WINDOW.grey(chest())).save(folder / f"{PATIENT}.png")
    (folder / f"{PATIENT}_broken.mha").write_bytes((folder / f"{PATIENT}.mha").read_bytes()[:5000])
    for suffix in ("png", "zip"):
        (folder / f"{PATIENT}_broken.{suffix}").write_bytes(b"nonsense")
    return folder


@pytest.fixture(scope="module")
def server(bundle: Path, slices_bundle: Path, lesioned: Phantom, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With a finished output of two cases: one with emphysema, one without."""
    folder = tmp_path_factory.mktemp("server")
    write_case(folder / "input", *sound(lesioned).images("RAS"), stem="other-case")
    write_finished_case(folder, lesioned, bundle, "finished-case", "--report", "--preview", "--save-lung-mask")
    options = (
        "--weights",
        bundle,
        "--slices-bundle",
        slices_bundle,
        "--input",
        folder / "input",
        "--output",
        folder / "output",
    )
    with serving(folder, *options) as running:
        yield running


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Page]:
    page = opened(browser, server.url)
    yield page
    page.close()


@pytest.fixture
def page_with_webgl(playwright: Playwright, chromium: str, server: Server) -> Iterator[Page]:
    """A page in a browser that computes WebGL in software; a browser without a GPU has none by default."""
    browser = playwright.chromium.launch(executable_path=chromium, args=WEBGL)
    yield opened(browser, server.url)
    browser.close()


def opened(browser: Browser, url: str, script: str = "") -> Page:
    """The page, as soon as its title is there; with a script that runs before the page's own."""
    page = browser.new_page(viewport={"width": 1400, "height": 1400}, accept_downloads=True)
    page.set_default_timeout(120_000)
    page.add_init_script(script)
    page.goto(url)
    expect(page.get_by_role("heading", name="Emphysema subtyping on chest CT")).to_be_visible()
    return page


def upload(page: Page, label: str, path: Path) -> None:
    """Give a file to one of the page's fields: `CT`, `MASK`, `FINISHED` or `SLICE`.

    The field is found by its label, never by its place: on a busy machine, the last tab's field is drawn before the others, and
    a file for the first field would go to it, unseen.
    """
    field = page.get_by_test_id("stFileUploader").filter(has_text=label)
    field.locator("input[type=file]").set_input_files(path)
    expect(remover(page, path)).to_be_visible()


def remover(page: Page, path: Path) -> Locator:
    """The button that takes an upload back."""
    return page.get_by_role("button", name=f"Remove {path.name}", exact=True)


def score(page: Page) -> None:
    button = page.get_by_role("button", name="Score", exact=True)
    expect(button).to_be_enabled()
    button.click()


def scored(page: Page, files: Path, with_mask: bool) -> None:
    upload(page, CT, files / f"{PATIENT}.mha")
    if with_mask:
        upload(page, MASK, files / f"{PATIENT}_lungs.nii.gz")
    score(page)
    expect(page.get_by_text("LAA-950", exact=True).first).to_be_visible(timeout=SCORING_MS)


def downloaded(page: Page, label: str) -> bytes:
    with page.expect_download() as download:
        page.get_by_role("button", name=label).first.click()
    return Path(download.value.path()).read_bytes()


def level_shown(panel: Locator) -> int:
    caption = panel.get_by_text(re.compile(r"^axial slice \d+ of 100$"))
    expect(caption).to_be_visible()
    return int(caption.inner_text().split()[2])


def nothing_was_kept(server: Server) -> None:
    """Neither a file of the upload's nor a word of its name is left."""
    assert not list(server.temporary.glob("emphysema-viewer-*"))
    for path in server.temporary.rglob("*"):
        assert PATIENT not in path.name
    assert PATIENT not in server.log.read_text()


def test_a_scan_is_uploaded_scored_looked_at_and_downloaded(page: Page, server: Server, files: Path) -> None:
    scored(page, files, with_mask=True)
    panel = page.get_by_role("tabpanel", name="CT scan")
    expect(panel.get_by_text("3 (moderate)")).to_be_visible()
    expect(panel.get_by_role("cell", name="right", exact=True)).to_be_visible()
    panel.get_by_text("One plane, labelled, to download").click()
    shown = panel.get_by_test_id("stImage").locator("img").first
    before = shown.get_attribute("src")
    number = level_shown(panel)
    assert 42 < number <= 62, "the page opens at the level with the most emphysema"
    panel.get_by_role("slider", name="Slice").first.press("ArrowRight")
    expect(panel.get_by_text(f"axial slice {number + 1} of 100")).to_be_visible()
    assert shown.get_attribute("src") != before
    panel.get_by_text("coronal", exact=True).first.click()
    expect(panel.get_by_text("coronal slice 64 of 128")).to_be_visible()
    panel.get_by_text("axial", exact=True).first.click()
    expect(panel.get_by_text(f"axial slice {number + 1} of 100")).to_be_visible()

    (result,) = json.loads(downloaded(page, "Results (JSON)"))
    assert result["metrics"]["cle_severity_score"] == 3
    assert result["provenance"]["lung_mask_source"] == "given"
    assert PATIENT not in json.dumps(result)
    picture = np.asarray(Image.open(io.BytesIO(downloaded(page, "This slice (PNG)"))))
    assert (abs(picture.astype(int) - [211, 120, 28]).max(axis=2) < 30).any(), "the map is drawn over the CT"
    assert downloaded(page, "Results (CSV)").startswith(b"\xef\xbb\xbfentity,cle_severity_score")
    assert downloaded(page, "Printable report (PDF)").startswith(b"%PDF")
    assert b"score 3 of 5, moderate" in downloaded(page, "Printable report (HTML)")
    assert downloaded(page, "Overview (PNG)").startswith(b"\x89PNG")
    assert downloaded(page, "Lungs that were scored (.mha)").startswith(b"ObjectType = Image")
    content = downloaded(page, "Centrilobular map (.mha)")
    assert PATIENT.encode() not in content
    assert content.startswith(b"ObjectType = Image")
    nothing_was_kept(server)


def shows_no_result(page: Page) -> None:
    panel = page.get_by_role("tabpanel", name="CT scan")
    expect(panel.get_by_text("LAA-950", exact=True)).to_have_count(0)
    expect(panel.get_by_test_id("stImage")).to_have_count(0)
    expect(panel.locator("iframe")).to_have_count(0)
    expect(panel.get_by_role("heading", name="Scan: ")).to_have_count(0)


def test_no_scan_is_shown_under_the_name_of_another(page: Page, files: Path) -> None:
    first, second = files / f"{PATIENT}.mha", files / f"{OTHER_PATIENT}.mha"
    panel = page.get_by_role("tabpanel", name="CT scan")
    scored(page, files, with_mask=True)
    expect(panel.get_by_role("heading", name=f"Scan: {first.name}")).to_be_visible()
    expect(panel.get_by_text("3 (moderate)")).to_be_visible()

    remover(page, first).click()
    expect(remover(page, first)).to_have_count(0)
    shows_no_result(page)
    upload(page, CT, second)
    expect(panel.get_by_text("Press Score to see the result")).to_be_visible()
    shows_no_result(page)

    score(page)
    expect(panel.get_by_role("heading", name=f"Scan: {second.name}")).to_be_visible(timeout=SCORING_MS)
    expect(panel.get_by_text("3 (moderate)")).to_have_count(0)
    expect(panel.get_by_text("0 (absent)").first).to_be_visible()

    remover(page, files / f"{PATIENT}_lungs.nii.gz").click()
    expect(panel.get_by_text("Press Score to see the result")).to_be_visible()
    shows_no_result(page)

    score(page)
    expect(panel.get_by_role("heading", name=f"Scan: {second.name}")).to_be_visible(timeout=SCORING_MS)
    upload(page, CT, first)  # a second file beside the first: other input, too
    expect(panel.get_by_text("Press Score to see the result")).to_be_visible()
    shows_no_result(page)


LAST_FIELD_FIRST = """let drawn = false;
new MutationObserver(() => {
  for (const field of document.querySelectorAll("[data-testid=stFileUploader]:not([data-seen])")) {
    field.dataset.seen = "";
    if (field.textContent.startsWith("Slice: ")) setTimeout(() => {
      drawn = true;
      for (const late of document.querySelectorAll("[data-testid=late]")) late.dataset.testid = "stFileUploader";
    }, 2000);
    else if (!drawn) field.dataset.testid = "late";
  }
}).observe(document, {childList: true, subtree: true});"""
"""The test finds the other fields only two seconds after that of the last tab, as if they were drawn then."""


def test_a_file_reaches_its_field_although_that_of_another_tab_is_drawn_first(
    browser: Browser, server: Server, files: Path
) -> None:
    page = opened(browser, server.url, LAST_FIELD_FIRST)
    upload(page, CT, files / f"{PATIENT}.mha")
    expect(page.get_by_text("Press Score to see the result")).to_be_visible()
    page.close()


def test_forget_takes_files_and_result_back(page: Page, files: Path) -> None:
    scored(page, files, with_mask=True)
    page.get_by_role("button", name="Forget").click()
    shows_no_result(page)
    expect(remover(page, files / f"{PATIENT}.mha")).to_have_count(0)
    expect(page.get_by_role("button", name="Score", exact=True)).to_be_disabled()


def test_lungs_are_found_where_no_mask_comes_with_the_scan(page: Page, server: Server, files: Path) -> None:
    scored(page, files, with_mask=False)
    expect(page.get_by_text("The lungs were segmented automatically")).to_be_visible()
    (result,) = json.loads(downloaded(page, "Results (JSON)"))
    assert result["provenance"]["lung_mask_source"] == "automatic"
    nothing_was_kept(server)


def test_a_broken_scan_shows_what_is_wrong_and_leaves_nothing(page: Page, server: Server, files: Path) -> None:
    upload(page, CT, files / f"{PATIENT}_broken.mha")
    score(page)
    message = page.get_by_test_id("stAlert").filter(has_text="expected")
    expect(message).to_be_visible(timeout=SCORING_MS)
    assert message.inner_text().strip().startswith("CT.mha: ")
    expect(page.get_by_text("Traceback")).to_have_count(0)
    nothing_was_kept(server)


def test_a_slice_is_uploaded_and_answered_and_a_broken_one_refused(page: Page, server: Server, files: Path) -> None:
    page.get_by_role("tab", name="Single slice").click()
    upload(page, SLICE, files / f"{PATIENT}.png")
    expect(page.get_by_text("regions that support the class")).to_be_visible(timeout=SCORING_MS)
    answer = json.loads(downloaded(page, "Class and probabilities"))
    assert list(answer["probabilities"]) == list(CLASSES)
    for label, share in answer["probabilities"].items():
        expect(page.get_by_text(re.compile(rf"{label}, .*: {100 * share:.1f} %"))).to_be_visible()
    remover(page, files / f"{PATIENT}.png").click()
    expect(page.get_by_text("regions that support the class")).to_have_count(0)
    upload(page, SLICE, files / f"{PATIENT}_broken.png")
    expect(page.get_by_text("slice.png: not a picture that can be read")).to_be_visible()
    nothing_was_kept(server)


def test_a_finished_output_is_opened_with_its_ct(page: Page) -> None:
    page.get_by_role("tab", name="Finished output").click()
    panel = page.get_by_role("tabpanel", name="Finished output")
    expect(panel.get_by_role("heading", name="Scan: finished-case")).to_be_visible()
    panel.get_by_text("One plane, labelled, to download").click()
    assert 42 < level_shown(panel) <= 62
    expect(panel.get_by_text("3 (moderate)")).to_be_visible()
    expect(panel.get_by_text("was not found")).to_have_count(0)
    (result,) = json.loads(downloaded(page, "Results (JSON)"))
    assert result["entity"] == "finished-case"


def choose(page: Page, panel: Locator, field: str, option: str) -> None:
    """Choose from a field of the page by its name, by typing."""
    box = panel.get_by_role("combobox", name=field)
    box.fill(option)
    page.get_by_role("option", name=option, exact=True).click()


def test_a_case_of_a_finished_output_is_chosen_in_the_table_or_by_typing(page: Page) -> None:
    page.get_by_role("tab", name="Finished output").click()
    panel = page.get_by_role("tabpanel", name="Finished output")
    expect(panel.get_by_role("heading", name="Scan: finished-case")).to_be_visible()
    panel.get_by_test_id("stDataFrame").click(position={"x": 15, "y": 88})  # the box of the second row
    expect(panel.get_by_role("heading", name="Scan: other-case")).to_be_visible()
    expect(panel.get_by_text("0 (absent)").first).to_be_visible()
    expect(panel.get_by_text("3 (moderate)")).to_have_count(0)
    choose(page, panel, "Case (of 2; type to search)", "finished-case")
    expect(panel.get_by_role("heading", name="Scan: finished-case")).to_be_visible()
    expect(panel.get_by_text("3 (moderate)")).to_be_visible()


def test_each_control_of_the_labelled_picture_changes_it(page: Page) -> None:
    page.get_by_role("tab", name="Finished output").click()
    panel = page.get_by_role("tabpanel", name="Finished output")
    panel.get_by_text("One plane, labelled, to download").click()
    shown = panel.get_by_test_id("stImage").locator("img").first
    expect(shown).to_be_visible()

    def free_window() -> None:
        choose(page, panel, "Window", "other")
        width = panel.get_by_label("Width, HU")
        width.fill("300")
        width.press("Enter")

    controls: dict[str, Callable[[], None]] = {
        "slice": lambda: panel.get_by_role("slider", name="Slice").press("ArrowRight"),
        "window": lambda: choose(page, panel, "Window", "bone"),
        "free window": free_window,
        "slab": lambda: choose(page, panel, "Slab", "minimum, 20 mm"),
        "opacity": lambda: panel.get_by_role("slider", name="Opacity, %").press("End"),
        "map": lambda: panel.get_by_text("Centrilobular map", exact=True).click(),
        "contour": lambda: panel.get_by_text("Lung contour", exact=True).click(),
        "side by side": lambda: panel.get_by_text("Side by side", exact=True).click(),
        "plane": lambda: panel.get_by_text("sagittal", exact=True).click(),
    }
    for name, use in controls.items():
        before = shown.get_attribute("src")
        assert before is not None
        use()
        expect(shown, name).not_to_have_attribute("src", before)


def test_two_scans_are_compared_in_score_percent_and_pictures(page: Page, files: Path) -> None:
    panel = page.get_by_role("tabpanel", name="CT scan")
    scored(page, files, with_mask=True)
    page.get_by_role("button", name="Keep to compare").click()
    page.get_by_role("tab", name="Compare").click()
    compared = page.get_by_role("tabpanel", name="Compare")
    expect(compared.get_by_role("combobox", name="First scan")).to_have_value(f"{PATIENT}.mha (kept)")
    choose(page, compared, "Second scan", "other-case (finished)")
    expect(compared.get_by_role("heading", name=f"Scan: {PATIENT}.mha (kept)")).to_be_visible()
    expect(compared.get_by_role("heading", name="Scan: other-case (finished)")).to_be_visible()
    row = compared.get_by_role("row").filter(has_text="centrilobular score")
    expect(row.get_by_role("cell")).to_have_text(["centrilobular score", "3", "0", "-3"])
    shown = compared.get_by_test_id("stImage").locator("img").first
    for name, use in {
        "position": lambda: compared.get_by_role("slider", name="Position in the lungs, %").press("ArrowLeft"),
        "plane": lambda: compared.get_by_text("coronal", exact=True).click(),
        "window": lambda: choose(page, compared, "Window", "emphysema"),
        "map": lambda: compared.get_by_text("Centrilobular map", exact=True).click(),
    }.items():
        before = shown.get_attribute("src")
        assert before is not None
        use()
        expect(shown, name).not_to_have_attribute("src", before)
    assert b"centrilobular score,3,0,-3" in downloaded(page, "Differences (CSV)")
    assert downloaded(page, "Both slices (PNG)").startswith(b"\x89PNG")

    page.get_by_role("tab", name="CT scan").click()
    remover(page, files / f"{PATIENT}.mha").click()
    upload(page, CT, files / f"{OTHER_PATIENT}.mha")
    expect(panel.get_by_text("Press Score to see the result")).to_be_visible()
    score(page)
    expect(panel.get_by_role("heading", name=f"Scan: {OTHER_PATIENT}.mha")).to_be_visible(timeout=SCORING_MS)
    page.get_by_role("tab", name="Compare").click()
    expect(compared.get_by_role("heading", name=f"Scan: {OTHER_PATIENT}.mha (scored)")).to_be_visible()
    expect(row.get_by_role("cell")).to_have_text(["centrilobular score", "3", "0", "-3"])
    page.get_by_role("tab", name="CT scan").click()
    page.get_by_role("button", name="Forget").click()
    page.get_by_role("tab", name="Compare").click()
    expect(compared.get_by_role("combobox", name="First scan")).to_have_value("")
    expect(compared.get_by_role("heading")).to_have_count(0)


def test_a_zip_of_a_finished_output_is_opened_and_a_broken_one_refused(page: Page, server: Server, files: Path) -> None:
    page.get_by_role("tab", name="Finished output").click()
    panel = page.get_by_role("tabpanel", name="Finished output")
    upload(page, FINISHED, files / f"{PATIENT}_broken.zip")
    expect(panel.get_by_text("upload: the .zip cannot be unpacked")).to_be_visible()
    remover(page, files / f"{PATIENT}_broken.zip").click()
    archive = shutil.make_archive(str(files / f"{PATIENT}_output"), "zip", server.folder / "output")
    upload(page, FINISHED, Path(archive))
    expect(panel.get_by_role("heading", name="Scan: finished-case")).to_be_visible()
    expect(panel.get_by_text("3 (moderate)")).to_be_visible()
    expect(panel.get_by_text("The CT of this case was not found")).to_be_visible()
    nothing_was_kept(server)


def test_the_example_is_scored_and_its_slice_classified_at_a_click(page: Page) -> None:
    page.get_by_role("button", name="Score the example").click()
    panel = page.get_by_role("tabpanel", name="CT scan")
    expect(panel.get_by_role("heading", name="Scan: example (simulated)")).to_be_visible(timeout=SCORING_MS)
    expect(panel.get_by_text("Research software, not a medical device")).to_have_count(0)
    expect(page.get_by_role("note").get_by_text("Research software, not a medical device")).to_be_in_viewport()
    page.get_by_role("tab", name="Single slice").click()
    page.get_by_text("A slice of the example (simulated)").click()
    single = page.get_by_role("tabpanel", name="Single slice")
    expect(single.get_by_text("the slice: example (simulated)")).to_be_visible(timeout=SCORING_MS)
    shown = single.get_by_test_id("stImage").locator("img").first
    for name, use in {
        "window": lambda: choose(page, single, "Window", "bone"),
        "slice": lambda: single.get_by_role("slider", name="Slice of the volume, from the base").press("ArrowRight"),
    }.items():
        before = shown.get_attribute("src")
        assert before is not None
        use()
        expect(shown, name).not_to_have_attribute("src", before)


def test_two_sessions_see_their_own_scans_alone(browser: Browser, server: Server, page: Page, files: Path) -> None:
    other = opened(browser, server.url)
    for session, patient in ((page, PATIENT), (other, OTHER_PATIENT)):
        upload(session, CT, files / f"{patient}.mha")
        upload(session, MASK, files / f"{PATIENT}_lungs.nii.gz")
    for session in (page, other):
        score(session)
    for session, patient, answer in ((page, PATIENT, "3 (moderate)"), (other, OTHER_PATIENT, "0 (absent)")):
        panel = session.get_by_role("tabpanel", name="CT scan")
        expect(panel.get_by_role("heading", name=f"Scan: {patient}.mha")).to_be_visible(timeout=SCORING_MS)
        expect(panel.get_by_text(answer).first).to_be_visible()
    other.close()


WATCH_THE_LINE = """() => {
  window.before = 0;
  new MutationObserver(() => {
    const found = document.body.innerText.match(/scans ahead of yours: (\\d+)/);
    if (found) window.before = Math.max(window.before, Number(found[1]));
  }).observe(document.body, {childList: true, subtree: true, characterData: true});
}"""


def test_five_sessions_wait_for_their_turn_and_see_their_own_answers(browser: Browser, server: Server, files: Path) -> None:
    pages = [opened(browser, server.url) for _ in range(5)]
    patients = [((PATIENT, "3 (moderate)"), (OTHER_PATIENT, "0 (absent)"))[number % 2] for number in range(5)]
    for page, (patient, _) in zip(pages, patients, strict=True):
        upload(page, CT, files / f"{patient}.mha")
        upload(page, MASK, files / f"{PATIENT}_lungs.nii.gz")
        page.evaluate(WATCH_THE_LINE)
        expect(page.get_by_role("button", name="Score", exact=True)).to_be_enabled()
    for page in pages:
        page.get_by_role("button", name="Score", exact=True).evaluate("(button) => button.click()")
    for page, (patient, answer) in zip(pages, patients, strict=True):
        panel = page.get_by_role("tabpanel", name="CT scan")
        expect(panel.get_by_text(answer).first).to_be_visible(timeout=SCORING_MS)
        expect(panel.get_by_role("heading", name=f"Scan: {patient}.mha")).to_be_visible()
    places = [page.evaluate("window.before") for page in pages]
    assert max(places) >= 2, f"they waited for each other: {places}"
    for page in pages:
        page.close()


def linked_planes(page: Page) -> FrameLocator:
    """The linked planes of the finished output that is chosen, once they are drawn."""
    page.get_by_role("tab", name="Finished output").click()
    frame = page.get_by_role("tabpanel", name="Finished output").frame_locator("iframe")
    expect(frame.locator("body[data-level]")).to_be_attached()
    return frame


def test_three_planes_are_linked_and_say_what_lies_under_the_cross_hair(page_with_webgl: Page) -> None:
    frame = linked_planes(page_with_webgl)
    status = frame.get_by_role("status")
    expect(status).to_contain_text(re.compile(r"mm right .* -1000 HU .* centrilobular (0\.[5-9]|1)"))
    start = status.inner_text()
    canvas = frame.locator("canvas")
    canvas.focus()
    for _ in range(65):
        canvas.press("ArrowRight")  # to the right of the picture, the patient's left; 2 mm each
    expect(status).to_contain_text(re.compile(r"\d mm left .* -860 HU .* centrilobular 0\.[0-3]"))
    expect(frame.get_by_text(re.compile(r"^\d+ mm$"))).to_be_visible()
    before = canvas.screenshot()
    frame.get_by_label("lung contour").uncheck()
    without_contour = canvas.screenshot()
    assert without_contour != before
    frame.locator("#preset").select_option("mediastinum")
    assert canvas.screenshot() != without_contour
    expect(frame.get_by_label("centre")).to_have_value("40")
    frame.get_by_role("button", name="Reset view").click()
    expect(status).to_have_text(start)


def drawn(canvas: Locator) -> str:
    """What the linked planes show now."""
    picture: str = canvas.evaluate("(canvas) => { viewer.drawScene(); return canvas.toDataURL(); }")
    return picture


def test_each_control_of_the_linked_planes_changes_them(page_with_webgl: Page) -> None:
    page = page_with_webgl
    frame = linked_planes(page)
    canvas = frame.locator("canvas")
    # This network finds no paraseptal emphysema: its map gets the voxels of the centrilobular one.
    canvas.evaluate("() => { viewer.volumes[2].img.set(viewer.volumes[1].img); viewer.updateGLVolume(); }")
    frame.get_by_label("centrilobular").uncheck()

    def typed(label: str, value: str) -> None:
        frame.get_by_label(label).fill(value)
        frame.get_by_label(label).press("Tab")

    controls: dict[str, Callable[[], object]] = {
        "hatching": frame.get_by_label("hatching").uncheck,
        "slab": lambda: frame.locator("#slab").select_option("minimum, 20 mm"),
        "preset": lambda: frame.locator("#preset").select_option("mediastinum"),
        "centre": lambda: typed("centre", "-700"),
        "width": lambda: typed("width", "2000"),
        "opacity": lambda: frame.get_by_label("Opacity").fill("20"),
        "threshold": lambda: frame.get_by_label("Show activation from").fill("0.9"),
        "centrilobular": frame.get_by_label("centrilobular").check,
        "paraseptal": frame.get_by_label("paraseptal").uncheck,
        "contour": frame.get_by_label("lung contour").uncheck,
        "zoom": lambda: frame.get_by_label("Zoom").fill("3"),
        "cross-hair": lambda: canvas.press("PageUp"),
        "reset": frame.get_by_role("button", name="Reset view").click,
        "planes": lambda: frame.locator("#planes").select_option("coronal"),
    }
    for name, use in controls.items():
        before = drawn(canvas)
        use()
        assert drawn(canvas) != before, name
    expect(frame.locator("#preset")).to_have_value("other")
    frame.locator("#drag").select_option("pan")
    box = canvas.bounding_box()
    assert box is not None
    before = drawn(canvas)
    page.mouse.move(box["x"] + 300, box["y"] + 250)
    page.mouse.down()
    page.mouse.move(box["x"] + 340, box["y"] + 290, steps=4)
    page.mouse.up()
    assert drawn(canvas) != before, "drag"


def test_activation_is_shown_from_one_half_at_first_and_the_page_says_from_where(page_with_webgl: Page) -> None:
    frame = linked_planes(page_with_webgl)
    canvas, legend = frame.locator("canvas"), frame.locator("#legend")
    threshold = frame.get_by_label("Show activation from")
    shown = frame.locator("label").filter(has=threshold)

    def with_activation(activation: float) -> str:
        fill = "(_, voxel) => { viewer.volumes[1].img.fill(voxel); viewer.updateGLVolume(); }"
        canvas.evaluate(fill, round(255 * activation))
        return drawn(canvas)

    expect(shown).to_have_text(re.compile(r"Show activation from\s+0\.50"))
    expect(legend).to_contain_text("activation from 0.50")
    hidden = with_activation(0)
    assert with_activation(0.49) == hidden
    assert with_activation(0.51) != hidden
    threshold.fill("0.3")
    expect(shown).to_have_text(re.compile(r"Show activation from\s+0\.30"))
    expect(legend).to_contain_text("activation from 0.30")
    assert with_activation(0.29) == hidden
    assert with_activation(0.31) != hidden


WHERE_MARKS_LIE = """async () => {
  for (let frame = 0; frame < 20; frame++) await new Promise(requestAnimationFrame);
  const ratio = viewer.uiData.dpr || 1, stage = document.getElementById("stage").getBoundingClientRect();
  const boxes = [...document.querySelectorAll("#letters span")].map((mark) => mark.getBoundingClientRect());
  const marks = boxes.map((box) => [box.x + box.width / 2 - stage.x, box.y + box.height / 2 - stage.y]);
  const bar = document.getElementById("bar").clientWidth, length = parseFloat(document.getElementById("length").textContent);
  viewer.drawScene();
  const tiles = viewer.screenSlices.map((tile) => tile.leftTopWidthHeight.map((size) => size / ratio));
  const across = Math.abs(viewer.screenSlices[0].fovMM[0]);
  const canvas = [viewer.canvas.width / ratio, viewer.canvas.height / ratio];
  return {marks, tiles, bar, length, across, canvas, stage: [stage.width, stage.height]};
}"""


def test_sides_and_scale_follow_the_size_of_the_window(page_with_webgl: Page) -> None:
    page = page_with_webgl
    frame = linked_planes(page)
    sizes = set()
    for width in (1100, 1400, 1250):
        page.set_viewport_size({"width": width, "height": 1000})
        page.wait_for_timeout(1500)
        found = frame.locator("body").evaluate(WHERE_MARKS_LIE)
        assert found["canvas"] == pytest.approx(found["stage"], abs=1), "NiiVue has taken the new size"
        sizes.add(round(found["canvas"][0]))
        for number, (left, top, wide, high) in enumerate(found["tiles"]):
            right, bottom = left + wide, top + high
            middle, half = left + wide / 2, top + high / 2
            places = [(left + 9, half), (right - 9, half), (middle, top + 10), (middle, bottom - 10)]
            for mark, place in zip(found["marks"][4 * number : 4 * number + 4], places, strict=True):
                assert mark == pytest.approx(place, abs=1.5), (width, number)
        wide = found["tiles"][0][2]
        assert found["bar"] == pytest.approx(found["length"] * wide / found["across"], abs=2), width
    assert len(sizes) == 3
    below, stage = frame.locator("#below").bounding_box(), frame.locator("#stage").bounding_box()
    assert below is not None
    assert stage is not None
    assert below["y"] >= stage["y"] + stage["height"], "name and legend hide nothing of the picture"


def test_charts_can_be_read_after_the_browser_has_changed_to_dark(browser: Browser, server: Server) -> None:
    page = browser.new_page(viewport={"width": 1400, "height": 1400}, color_scheme="light")
    page.set_default_timeout(120_000)
    page.goto(server.url)
    page.get_by_role("tab", name="Finished output").click()
    label = page.get_by_role("tabpanel", name="Finished output").locator("svg.marks text").first
    heading = page.get_by_role("heading", name="Emphysema subtyping on chest CT")
    colour = "(element) => getComputedStyle(element).color"
    expect(label).to_be_visible()
    light = heading.evaluate(colour)
    expect(label).to_have_css("fill", light)
    page.emulate_media(color_scheme="dark")
    expect(heading).not_to_have_css("color", light)
    expect(label).to_have_css("fill", heading.evaluate(colour))
    page.close()


def test_no_name_of_a_grade_is_broken_in_the_middle_of_a_word(browser: Browser, server: Server) -> None:
    page = browser.new_page(viewport={"width": 1024, "height": 1000})
    page.set_default_timeout(120_000)
    page.goto(server.url)
    page.get_by_role("tab", name="Finished output").click()
    words = page.get_by_role("tabpanel", name="Finished output").get_by_text("advanced destructive", exact=True)
    expect(words).to_be_visible()
    lines = words.evaluate(
        """(element) => {
          const range = document.createRange(), text = element.firstChild, start = text.data.indexOf("destructive");
          range.setStart(text, start);
          range.setEnd(text, text.data.length);
          return range.getClientRects().length;
        }"""
    )
    assert lines == 1
    page.close()


def test_a_tablet_shows_everything_without_scrolling_sideways(playwright: Playwright, chromium: str, server: Server) -> None:
    browser = playwright.chromium.launch(executable_path=chromium, args=WEBGL)
    context = browser.new_context(viewport={"width": 820, "height": 1180}, has_touch=True)
    page = context.new_page()
    page.set_default_timeout(120_000)
    page.goto(server.url)
    page.get_by_role("tab", name="Finished output").tap()
    panel = page.get_by_role("tabpanel", name="Finished output")
    frame = panel.frame_locator("iframe")
    expect(frame.locator("body[data-level]")).to_be_attached()
    too_wide = "(element) => element.scrollWidth - element.clientWidth"
    assert page.get_by_test_id("stMain").evaluate(too_wide) <= 0
    assert frame.locator("html").evaluate(too_wide) <= 0
    for control in frame.locator("#controls select, #controls input, #controls button").all():
        box = control.bounding_box()
        assert box is not None
        assert box["x"] + box["width"] <= 820
        assert box["height"] >= 16
    status = frame.get_by_role("status")
    before = status.inner_text()
    frame.locator("canvas").tap(position={"x": 150, "y": 260})
    expect(status).not_to_have_text(before)
    browser.close()


TEXT_OF_LOW_CONTRAST = """() => {
  const parsed = (text) => {
    const [red, green, blue, alpha = 1] = (text.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
    return [red, green, blue, alpha];
  };
  const over = ([r, g, b, a], [R, G, B]) => [r * a + R * (1 - a), g * a + G * (1 - a), b * a + B * (1 - a), 1];
  const luminance = (colour) => {
    const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = colour.slice(0, 3).map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    const layers = [];
    for (let at = element; at; at = at.parentElement) layers.push(parsed(getComputedStyle(at).backgroundColor));
    return layers.reverse().reduce((below, layer) => over(layer, below), [255, 255, 255, 1]);
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement, style = getComputedStyle(element);
    if (!walker.currentNode.textContent.trim()) continue;
    if (!element.checkVisibility({visibilityProperty: true, opacityProperty: true})) continue;
    if (element.closest("style, script, :disabled, [aria-disabled=true], [aria-hidden=true], .vega-embed")) continue;
    const behind = ground(element), text = over(parsed(style.color), behind);
    const [high, low] = [luminance(text), luminance(behind)].sort((one, other) => other - one);
    const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    const ratio = (high + 0.05) / (low + 0.05);
    if (ratio < (large ? 3 : 4.5)) found.push(`${ratio.toFixed(2)}: ${walker.currentNode.textContent.trim().slice(0, 60)}`);
  }
  return found;
}"""
"""Contrast as WCAG 2.2 (1.4.3, level AA) defines it; what is disabled is exempt."""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_the_contrast_of_level_aa(browser: Browser, server: Server, scheme: Literal["light", "dark"]) -> None:
    context = browser.new_context(viewport={"width": 1440, "height": 1000}, color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(120_000)
    page.goto(server.url)
    for tab in ("CT scan", "Finished output", "Compare", "Single slice"):
        page.get_by_role("tab", name=tab).click()
        expect(page.get_by_role("tabpanel", name=tab)).to_be_visible()
        expect(page.locator("[data-test-script-state=notRunning]")).to_be_attached()
        # Once the page is at rest: its style may come some frames after its first elements.
        end = time.monotonic() + 20
        while (found := page.evaluate(TEXT_OF_LOW_CONTRAST)) and time.monotonic() < end:
            page.wait_for_timeout(200)
        assert found == [], tab
    context.close()


def test_a_browser_without_webgl_is_told_of_the_other_pictures(page: Page) -> None:
    page.get_by_role("tab", name="Finished output").click()
    panel = page.get_by_role("tabpanel", name="Finished output")
    message = panel.frame_locator("iframe").get_by_text("This browser has no WebGL 2")
    shown = panel.frame_locator("iframe").locator("body[data-level]")
    expect(message.or_(shown).first).to_be_attached()


def test_the_page_is_closed_to_what_comes_through_a_tunnel(browser: Browser, server: Server) -> None:
    with tunnel_to(server.url) as url:
        page = browser.new_page()
        page.goto(url)
        expect(page.get_by_text("your request came from elsewhere or through a tunnel")).to_be_visible()
        expect(page.locator("input[type=file]")).to_have_count(0)
        page.close()


def test_with_a_password_nothing_is_shown_before_it(browser: Browser, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "password").write_text(f"{PASSWORD}\n")
    with serving(tmp_path / "server", "--weights", bundle, "--password-file", tmp_path / "password") as server:
        page = opened(browser, server.url)
        field = page.get_by_label("Password", exact=True)
        expect(field).to_be_visible()
        expect(page.locator("input[type=file]")).to_have_count(0)
        for given, outcome in (
            ("wrong password", page.get_by_text("Wrong password.")),
            (PASSWORD, page.get_by_role("tab").first),
        ):
            field.fill(given)
            page.get_by_role("button", name="Enter").click()
            expect(outcome).to_be_visible()
        page.close()
        assert PASSWORD not in server.log.read_text()


def test_missing_weights_are_said_on_the_page(browser: Browser, files: Path, tmp_path: Path) -> None:
    missing = tmp_path / "none"
    with serving(tmp_path / "server", "--weights", missing, "--slices-bundle", missing) as server:
        page = opened(browser, server.url)
        upload(page, CT, files / f"{PATIENT}.mha")
        score(page)
        expect(page.get_by_text("no weight bundle; expected")).to_be_visible(timeout=SCORING_MS)
        page.get_by_role("tab", name="Single slice").click()
        expect(page.get_by_text("no bundle of a slice network; expected")).to_be_visible()
        page.close()
