#!/usr/bin/env bash
# Build the inference image and run it as grand-challenge does: no network, no capabilities, a read-only file system, not root.
# Checks what it writes against test/expected. Exits 77 where there is no container engine.
set -euo pipefail
cd "$(dirname "$0")"
source requirements/environment.sh
source requirements/container.sh
find_container_engine || exit $?
ensure_environment development
./build.sh inference

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failures=0

fail() {
    echo "FAILED: $1" >&2
    failures=$((failures + 1))
}

# run_case INPUT OUTPUT [engine options]: stdout and stderr go beside OUTPUT, the exit code into $code.
run_case() {
    local input=$1 output=$2
    shift 2
    mkdir -p "$output"
    chmod 777 "$output"
    code=0
    "$CONTAINER_ENGINE" run --rm --network none --cap-drop all --security-opt no-new-privileges --read-only --tmpfs /tmp \
        --pids-limit 128 --memory 16g --env EMPHYSEMA_PRECISION=float32 \
        --volume "$input:/input:ro" --volume "$output:/output" "$@" \
        "$IMAGE:inference" >"$output.stdout" 2>"$output.stderr" || code=$?
}

check_example() {
    local what=$1 output=$2
    [ "$code" -eq 0 ] || fail "$what: exit code $code, expected 0"
    [ ! -s "$output.stderr" ] || fail "$what: stderr says: $(head -3 "$output.stderr")"
    .venv/bin/python test/check_container_output.py "$output" || fail "$what: output differs from test/expected"
    [ -z "$(find "$output" -mindepth 1 -user root -print -quit)" ] || fail "$what: files belong to root"
}

echo "The example case, with the weights in the image"
run_case "$PWD/test/input" "$work/image-weights"
check_example "weights in the image" "$work/image-weights"
grep -q ' running on ' "$work/image-weights.stdout" || fail "the log does not say what it runs on"

echo "The example case, with model.tar.gz unpacked at /opt/ml/model"
mkdir "$work/model"
./export.sh --model-only "$work/model.tar.gz"
tar -xzf "$work/model.tar.gz" -C "$work/model"
chmod -R a+rX "$work/model"
run_case "$PWD/test/input" "$work/model-weights" --volume "$work/model:/opt/ml/model:ro"
check_example "weights in /opt/ml/model" "$work/model-weights"

echo "The example case, as a user id that the image does not know"
run_case "$PWD/test/input" "$work/other-user" --user 23456:23456
check_example "another user id" "$work/other-user"

echo "A broken input"
cp -r test/input "$work/broken"
truncate --size 1000 "$work/broken/images/ct/example.mha"
chmod -R a+rX "$work/broken"
run_case "$work/broken" "$work/broken-output"
[ "$code" -eq 2 ] || fail "broken input: exit code $code, expected 2"
[ "$(wc -l <"$work/broken-output.stderr")" -eq 1 ] || fail "broken input: expected one line on stderr"
[ "$(ls "$work/broken-output")" = results.json ] || fail "broken input: wrote more than results.json"

echo "What the image's process could change or become"
exposed=$(exposed_files inference)
[ -z "$exposed" ] || fail "these files are setuid, or can be changed: ${exposed//$'\n'/ }"

if [ "$failures" -gt 0 ]; then
    echo "$failures container checks failed" >&2
    exit 1
fi
echo "All container checks passed"
