#!/usr/bin/env bash
# Set up if need be, then check: ./test.sh [arguments of pytest]
# The slow suite, which CI runs too: ./test.sh -m slow
set -euo pipefail
cd "$(dirname "$0")"
source requirements/environment.sh
ensure_environment development

.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
.venv/bin/python -m pytest "$@"
