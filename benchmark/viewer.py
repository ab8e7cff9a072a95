#!/usr/bin/env python3
"""What the viewer sends to a browser for one scan, the processor time that it takes to make it, and when the picture is there.

The scan is synthetic: two ellipsoid lungs with noise. Its content hardly matters: the CT is not compressed.
Example: `python benchmark/viewer.py --shape 600 512 512`

With `--browser`, the scan is scored by `process.py` and opened in the viewer with a headless Chromium, which computes WebGL
on the processor: an upper bound for a machine with a GPU. Times count from the moment when the page shows the answer.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmark.command import timed_process
from model.command_line import OneLineParser, exit_code, whole_number
from model.container.results import failed_result
from model.viewing.case import CaseFiles, ViewedCase
from model.viewing.volumes import levels, start_mm

SPACING_MM = (0.6, 0.7, 0.7)

WEBGL = ("--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist")
"""Chromium's options for WebGL without a GPU."""
OPENING_MS = 120_000

STOPWATCH = """
(() => {
  const times = window.top === window ? (window.times = {}) : window.top.times;
  const note = (name) => { if (!(name in times)) times[name] = performance.timeOrigin + performance.now(); };
  const looked = () => {
    if (window.top === window && document.body.textContent.includes("LAA-950")) note("answer");
    const level = document.body.dataset.level;
    if (window.top === window || level === undefined) return;
    note(`level ${level} left`);
    const gl = document.getElementById("canvas").getContext("webgl2");
    gl.readPixels(0, 0, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, new Uint8Array(4));  // waits until all is drawn
    note(`level ${level}`);
  };
  addEventListener("DOMContentLoaded", () => {
    if (window.top !== window) note("frame");
    new MutationObserver(looked).observe(document, { subtree: true, childList: true, attributes: true, characterData: true });
  });
})();
"""
"""Runs in the page and in the frame of the pictures, before their own scripts; notes when each event was seen first (ms)."""

RESOURCES = """() => performance.getEntriesByType("resource").map((entry) => [
  entry.name.split("/").pop(), performance.timeOrigin + entry.startTime, performance.timeOrigin + entry.responseEnd
])"""
"""What the frame of the pictures loaded: name, start and end (ms)."""


def chromium_path() -> str | None:
    """Where a Chromium browser is installed."""
    return next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)


def made_case(shape: tuple[int, int, int]) -> ViewedCase:
    """Lungs that take the share of the field of view that they have in a scan of the chest; emphysema in a fifth of them."""
    generator = np.random.default_rng(0)
    z, y, x = (np.linspace(-1, 1, size, dtype=np.float32) for size in shape)
    lung = np.zeros(shape, bool)
    for side in (-1, 1):
        across = ((y[:, None] / 0.6) ** 2 + ((x[None, :] - side * 0.4) / 0.32) ** 2)[None]
        lung |= across + (z[:, None, None] / 0.9) ** 2 <= 1
    hounsfield = np.where(lung, np.int16(-860), np.int16(40))
    for plane in hounsfield:
        plane += generator.normal(0, 30, plane.shape).astype(np.int16)
    active = np.zeros(shape, np.uint8)
    active[: shape[0] // 5] = 200
    active[~lung] = 0
    maps = {"centrilobular": active, "paraseptal": active[::-1].copy()}
    return ViewedCase(failed_result("synthetic"), hounsfield, lung, maps, SPACING_MM, CaseFiles({}))


def write_scored(folder: Path, case: ViewedCase) -> None:
    """Write the case into `input`, and what `process.py` finds for it into `output`."""
    for name, array in (("ct", case.hounsfield), ("lung-mask", case.lung)):
        assert array is not None, "a made case has both"
        image = sitk.GetImageFromArray(array.astype(np.int16 if name == "ct" else np.uint8))
        image.SetSpacing(case.spacing[::-1])
        path = folder / "input" / "images" / name / "synthetic.mha"
        path.parent.mkdir(parents=True)
        sitk.WriteImage(image, str(path))
    timed_process([ROOT / "process.py", "--input", folder / "input", "--output", folder / "output"])


def time_browser(folder: Path, runs: int) -> None:
    """Print the median seconds from the answer to each step of the pictures; each run starts a viewer of its own."""
    from playwright.sync_api import sync_playwright

    found: dict[str, list[float]] = {}
    with sync_playwright() as playwright:
        for _ in range(runs):
            browser = playwright.chromium.launch(executable_path=chromium_path(), args=WEBGL)
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            options = ("--port", str(port), "--input", folder / "input", "--output", folder / "output")
            viewer = subprocess.Popen([sys.executable, ROOT / "viewer.py", *options], stdout=subprocess.DEVNULL)
            try:
                page = browser.new_page(viewport={"width": 1440, "height": 1000})
                page.set_default_timeout(OPENING_MS)
                page.add_init_script(STOPWATCH)
                while viewer.poll() is None:
                    try:
                        page.goto(f"http://127.0.0.1:{port}")
                        break
                    except Exception:  # it does not listen yet
                        time.sleep(0.5)
                page.get_by_role("tab", name="Finished output").click()
                page.wait_for_function("'level 1' in window.times", timeout=OPENING_MS)
                times: dict[str, float] = page.evaluate("window.times")
                frame = next(frame for frame in page.frames if "linked_planes" in frame.url)
                resources: list[tuple[str, float, float]] = frame.evaluate(RESOURCES)
            finally:
                viewer.terminate()
                viewer.wait()
                browser.close()
            script = next(end for name, _, end in resources if name.startswith("niivue"))
            volumes = sorted((start, end) for name, start, end in resources if not name.endswith(".js"))
            first = [end for start, end in volumes if start < times["level 0"]]
            steps = {
                "frame of the pictures begins": times["frame"],
                "its scripts have come": script,
                "first volumes are asked for": volumes[0][0],
                "first volumes have come": max(first),
                "first picture is handed to WebGL": times["level 0 left"],
                "first picture is drawn": times["level 0"],
                "second volumes have come": volumes[-1][1],
                "second picture is handed to WebGL": times["level 1 left"],
                "second picture is drawn": times["level 1"],
            }
            for step, moment in steps.items():
                found.setdefault(step, []).append((moment - times["answer"]) / 1000)
    print(f"seconds after the answer, {os.cpu_count()} cores, WebGL on the processor: median (least to most) of {runs} runs")
    for step, seconds in found.items():
        print(f"{step:34s} {statistics.median(seconds):6.2f} ({min(seconds):.2f} to {max(seconds):.2f})")


def run(options: argparse.Namespace) -> None:
    """Print a line for each level, or with `--browser` for each step on the way to the picture."""
    z, y, x = options.shape
    case = made_case((z, y, x))
    print(f"{z} x {y} x {x} voxels")
    if options.browser:
        with tempfile.TemporaryDirectory() as folder:
            write_scored(Path(folder), case)
            del case
            time_browser(Path(folder), options.runs)
        return
    print("level   sent (MB)   of which the CT (MB)   processor time (s)   wall time (s)")
    made = levels(case)
    for number in (1, 2):
        processor, wall = time.process_time(), time.perf_counter()
        files = next(made, None)
        if files is None:
            break
        seconds = time.process_time() - processor, time.perf_counter() - wall
        sizes = [sum(map(len, files.values())) / 1e6, len(files["ct"]) / 1e6]
        print(f"{number:5d} {sizes[0]:11.1f} {sizes[1]:22.1f} {seconds[0]:20.2f} {seconds[1]:15.2f}")
    processor = time.process_time()
    start_mm(case)
    print(f"place of the cross-hair: {time.process_time() - processor:.2f} s of processor time")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = OneLineParser(
        prog="benchmark/viewer.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    size = whole_number(16)
    parser.add_argument("--shape", type=size, nargs=3, default=(600, 512, 512), metavar=("Z", "Y", "X"), help="voxels")
    parser.add_argument(
        "--browser", action="store_true", help="time until the picture is drawn (needs playwright and Chromium)"
    )
    parser.add_argument("--runs", type=whole_number(1), default=3, help="of the browser (default: %(default)s)")
    options = parser.parse_args(arguments)
    return exit_code(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
