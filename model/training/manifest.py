"""The command `python -m model.training.manifest`: write the manifest of a simulated cohort.

python -m model.training.manifest SIMULATED_COHORT [MANIFEST] [--validation 0.1] [--test 0] [--seed 0]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import get_args

from ..cohort.manifest import MANIFEST_FILE, Split, read_manifest, write_simulated_manifest
from ..command_line import OneLineParser, exit_code, module_command, whole_number


def main(arguments: list[str] | None = None) -> int:
    parser = OneLineParser(prog=module_command("training.manifest"), description="Manifest of a simulated cohort.")
    parser.add_argument("cohort", type=Path, help=f"what {module_command('simulation')} wrote")
    parser.add_argument("manifest", type=Path, nargs="?", help=f"default: {MANIFEST_FILE} in the cohort's folder")
    parser.add_argument("--validation", type=float, default=0.1, help="share to validate on, default: %(default)s")
    parser.add_argument("--test", type=float, default=0.0, help="share to test on, default: %(default)s")
    parser.add_argument("--seed", type=whole_number(0), default=0)
    options = parser.parse_args(arguments)
    return exit_code(lambda: _run(options), options.manifest or options.cohort / MANIFEST_FILE)


def _run(options: argparse.Namespace) -> None:
    path = write_simulated_manifest(
        options.cohort, options.manifest, validation=options.validation, test=options.test, seed=options.seed
    )
    manifest = read_manifest(path)
    counts = ", ".join(f"{len(manifest.of(split))} {split}" for split in get_args(Split))
    print(f"{path}: {counts}")


if __name__ == "__main__":
    sys.exit(main())
