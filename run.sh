#!/usr/bin/env bash
# Set up if need be, then score: ./run.sh [arguments of process.py]
# Without arguments it scores the example case into output/, with a picture.
set -euo pipefail
root=$(cd "$(dirname "$0")" && pwd)
source "$root/requirements/environment.sh"
ensure_environment inference

# Until trained weights ship, random ones show that everything runs.
untrained=$root/weights/untrained
shipped=$(find "$root/weights" -mindepth 2 -name bundle.json -not -path "$untrained/*" -print -quit)
if [ -n "$shipped" ]; then
    rm -rf "$untrained"
elif [ ! -e "$untrained/bundle.json" ]; then
    (cd "$root" && .venv/bin/python -m model.weights untrained weights/untrained)
fi

[ $# -eq 0 ] && set -- --input "$root/test/input" --output "$root/output" --preview
exec "$root/.venv/bin/python" "$root/process.py" "$@"
