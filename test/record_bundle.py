"""What the bundle that ships says of a few simulated cases, beside their truth: the figures of test/expected/bundle.json.

Usage: python test/record_bundle.py

Run it when the bundle or the simulator has changed, and read what comes out before it is committed.
"""

from __future__ import annotations

import csv
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from model.container.grand_challenge import find_cases
from model.imaging.scan import Scan
from model.simulation.__main__ import main as simulate
from model.subtyping import EmphysemaSubtyper
from model.weights import locate_bundle

EXPECTED = ROOT / "test" / "expected" / "bundle.json"
SEED, CASES = 70, 4


def described(folder: Path, number: int = CASES) -> dict[str, Any]:
    """Simulate the first `number` cases in `folder`, score them in float32, and describe results and truth."""
    subtyper = EmphysemaSubtyper.from_bundle(locate_bundle(ROOT / "weights"), "cpu", "float32")
    simulate(["--cases", str(number), "--seed", str(SEED), "--output", str(folder)])
    with (folder / "reference.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    cases = {}
    for row in rows:
        case = folder / row["entity"]
        (files,) = find_cases(case)
        scan = Scan.read(*files.files)
        result = subtyper.predict(scan, "float32")
        figures: dict[str, Any] = {}
        for prefix, finding in (("cle", result.centrilobular), ("pse", result.paraseptal)):
            image = sitk.ReadImage(str(case / "truth" / f"{finding.subtype.name}.mha"))
            truth = scan.orientation.to_patient(sitk.GetArrayFromImage(image)) > 0
            found = finding.activation_map >= 0.5
            overlap = 2 * float((found & truth).sum()) / max(float(found.sum() + truth.sum()), 1)
            figures[prefix] = {
                "score": finding.score,
                "true_score": int(row[f"{prefix}_score"]),
                "percentage": finding.percentage,
                "true_percentage": round(float(row[f"{prefix}_percentage"]), 4),
                "dice": round(overlap, 4) if np.any(truth) else None,
            }
        cases[row["entity"]] = figures
    return {"bundle": subtyper.metadata.name, "sha256": subtyper.bundle_sha256, "seed": SEED, "cases": cases}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        text = json.dumps(described(Path(folder) / "cohort"), indent=2) + "\n"
    EXPECTED.write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
