#!/usr/bin/env bash
# Set up if need be, then check: ./test.sh [arguments of pytest]
# The slow suite, which CI runs too: ./test.sh -m slow
# Tests run in as many processes as there are cores, a file in one of them; -n 0 runs them all in this one.
set -euo pipefail
cd "$(dirname "$0")"
source requirements/environment.sh
ensure_environment development

.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n auto --dist loadfile "$@"
