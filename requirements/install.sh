#!/usr/bin/env bash
# Install exactly what a lock lists, each file checked against its sha256: requirements/install.sh PYTHON LOCK [options of pip]
# PYTHON is that of a virtual environment.
set -euo pipefail
python=$1
lock=$2
shift 2
install() { "$python" -m pip install --disable-pip-version-check --no-deps --require-hashes "$@"; }

# torch.lock lists both builds of torch. pip prefers a file whose sha256 the index states, and a folder of wheels states none. So
# where such a folder (PIP_FIND_LINKS, or find-links in pip's settings) holds the CPU build, a constraint asks for that build.
constraint=$(mktemp)
trap 'rm -f "$constraint"' EXIT
if grep -qx -- '-r torch.lock' "$lock"; then
    version=$(sed -n 's/^torch==\([^ ;]*\).*/\1/p' "$(dirname "$lock")/torch.lock")
    for folder in $("$python" -m pip config list | sed -n "s/.*find-links='\(.*\)'$/\1/p"); do
        for wheel in "$folder/torch-$version+cpu-cp311-"*"_$(uname -m).whl"; do
            [ ! -e "$wheel" ] || echo "torch==$version+cpu" >"$constraint"
        done
    done
fi

install "$@" --constraint "$constraint" --requirement "$lock"

# The CUDA build needs more packages, which cuda.lock lists.
needs_cuda='
import sys
from importlib.metadata import PackageNotFoundError, requires
try:
    sys.exit(not any(name.startswith(("cuda-", "nvidia-")) for name in requires("torch") or ()))
except PackageNotFoundError:
    sys.exit(1)
'
if "$python" -c "$needs_cuda"; then
    install "$@" --requirement "$(dirname "$lock")/cuda.lock"
fi
