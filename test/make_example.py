"""Make the example case in test/input: a simulated chest with CLE and PSE lesions, laid out as the platform does it.

Usage: python test/make_example.py

The case is the simulator's with the seed and scores below; the same code gives the same bytes.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from model.container.grand_challenge import CT_FOLDER, INPUTS_FILE, MASK_FOLDERS
from model.simulation.__main__ import main as simulate

EXAMPLE = ROOT / "test" / "input"
SEED, CENTRILOBULAR_SCORE, PARASEPTAL_SCORE = 4, 3, 1


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        cohort = Path(folder) / "cohort"
        scores = ["--cle-score", str(CENTRILOBULAR_SCORE), "--pse-score", str(PARASEPTAL_SCORE)]
        simulate(
            ["--cases", "1", "--seed", str(SEED), "--output", str(cohort), "--grid", "example", "--look", "first", *scores]
        )
        (case,) = (path for path in cohort.iterdir() if path.is_dir())
        shutil.rmtree(EXAMPLE, ignore_errors=True)
        inputs = []
        for slug, name, relative_path in (("ct-image", "CT", CT_FOLDER), ("lung-mask", "Lung mask", MASK_FOLDERS[0])):
            (source,) = (case / relative_path).iterdir()
            target = EXAMPLE / relative_path / "example.mha"
            target.parent.mkdir(parents=True)
            shutil.copyfile(source, target)
            interface = {"slug": slug, "title": name, "kind": "Image", "relative_path": relative_path}
            inputs.append({"interface": interface, "image": {"name": target.name}, "file": None, "value": None})
        (EXAMPLE / INPUTS_FILE).write_text(json.dumps(inputs, indent=2) + "\n")


if __name__ == "__main__":
    main()
