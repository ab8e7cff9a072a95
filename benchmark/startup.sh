#!/usr/bin/env bash
# Seconds from the start of the inference container to its first stage ("weights"), and to the end, on the example case; five
# runs and their median. Build the image first: ./build.sh
set -euo pipefail
cd "$(dirname "$0")/.."
source requirements/container.sh
find_container_engine || exit $?

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 777 "$work"

median() { sort -n "$1" | sed -n 3p; }

for _ in 1 2 3 4 5; do
    begun=$(date +%s.%N)
    "$CONTAINER_ENGINE" run --rm --network none --cap-drop all --security-opt no-new-privileges --read-only --tmpfs /tmp \
        --volume "$PWD/test/input:/input:ro" --volume "$work:/output" "$IMAGE:inference" |
        while IFS= read -r line; do printf '%s %s\n' "$(date +%s.%N)" "$line"; done >"$work/log"
    awk -v begun="$begun" '$3 == "weights" { printf "%.2f\n", $1 - begun }' "$work/log" >>"$work/first"
    awk -v begun="$begun" 'END { printf "%.2f\n", $1 - begun }' "$work/log" >>"$work/whole"
done
[ "$(wc -l <"$work/first")" -eq 5 ] || { echo "the log shows no stage called weights" >&2; exit 1; }
echo "container start to the end of the first stage: $(median "$work/first") s (all: $(xargs <"$work/first"))"
echo "container start to exit:                       $(median "$work/whole") s (all: $(xargs <"$work/whole"))"
