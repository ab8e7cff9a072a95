#!/usr/bin/env bash
# Set up if need be, then score: ./run.sh [arguments of process.py]
# Without arguments it scores the example case into output/, with a picture.
# Or open the viewer: ./run.sh viewer [arguments of viewer.py]
set -euo pipefail
root=$(cd "$(dirname "$0")" && pwd)
source "$root/requirements/environment.sh"
program=process.py
environment=inference
if [ "${1:-}" = viewer ]; then
    program=viewer.py
    environment=viewer
    shift
fi
ensure_environment "$environment"

[ "$program" = process.py ] && [ $# -eq 0 ] && set -- --input "$root/test/input" --output "$root/output" --preview
exec "$root/.venv/bin/python" "$root/$program" "$@"
