#!/usr/bin/env bash
# Build the evaluation image and let it score three jobs as grand-challenge does: no network, no capabilities, a read-only file
# system, not root. Then the same with a job too few, and a table of scores by hand. Exits 77 where there is no container engine.
set -euo pipefail
cd "$(dirname "$0")/../.."
source requirements/container.sh
find_container_engine || exit $?
./build.sh evaluation

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -r test/containers/submission "$work/submission"
chmod -R a+rX "$work"
failures=0

fail() {
    echo "FAILED: $1" >&2
    failures=$((failures + 1))
}

# inside OUTPUT [engine options] -- [arguments of evaluate.py]: stdout and stderr go beside OUTPUT, the exit code into $code.
inside() {
    local output=$work/$1 options=()
    shift
    while [ "$1" != -- ]; do
        options+=("$1")
        shift
    done
    shift
    mkdir -p "$output"
    chmod 777 "$output"
    code=0
    "$CONTAINER_ENGINE" run --rm --network none --cap-drop all --security-opt no-new-privileges --read-only --tmpfs /tmp \
        --pids-limit 128 --memory 4g --volume "$work/submission/input:/input:ro" --volume "$output:/output" "${options[@]}" \
        "$IMAGE:evaluation" "$@" >"$output.stdout" 2>"$output.stderr" || code=$?
}

# metric OUTPUT EXPRESSION: a Python expression over `metrics`.
metric() {
    python3 -c 'import json, sys; metrics = json.load(open(sys.argv[1])); print(eval(sys.argv[2]))' "$work/$1/metrics.json" "$2"
}

truth=(--volume "$work/submission/ground_truth:/opt/ml/input/data/ground_truth:ro")

echo "Three jobs"
inside jobs "${truth[@]}" --
[ "$code" -eq 0 ] || fail "three jobs: exit code $code, expected 0"
[ ! -s "$work/jobs.stderr" ] || fail "three jobs: stderr says: $(head -3 "$work/jobs.stderr")"
found=$(metric jobs '[len(metrics["results"]), round(metrics["aggregates"]["centrilobular"]["accuracy"], 3),
    metrics["aggregates"]["paraseptal"]["linear_weighted_kappa"], metrics["failures"]]')
[ "$found" = '[3, 0.667, 1.0, []]' ] || fail "three jobs: metrics.json holds $found"
[ -z "$(find "$work/jobs" -mindepth 1 -user root -print -quit)" ] || fail "three jobs: files belong to root"

echo "A job whose score is missing"
rm "$work/submission/input/job-2/output/paraseptal-emphysema-score.json"
inside broken "${truth[@]}" --
[ "$code" -eq 2 ] || fail "a broken job: exit code $code, expected 2"
grep -q '^job-2: .*paraseptal-emphysema-score.json' "$work/broken.stderr" || fail "a broken job: stderr does not name it"
[ "$(metric broken 'len(metrics["results"])')" = 2 ] || fail "a broken job: the others were lost"

echo "No ground truth"
inside nothing --
[ "$code" -eq 2 ] || fail "no ground truth: exit code $code, expected 2"
[ -z "$(ls "$work/nothing")" ] || fail "no ground truth: something was written"

echo "A table of scores, as users evaluate it"
mkdir "$work/tables"
printf '%s\n' entity,cle_reference,cle_predicted,pse_reference,pse_predicted a,3,2,1,1 b,0,0,2,2 c,5,4,0, >"$work/tables/scores.csv"
chmod -R a+rX "$work/tables"
inside by-hand --volume "$work/tables:/tables:ro" -- --scores /tables/scores.csv
[ "$code" -eq 0 ] || fail "a table of scores: exit code $code, expected 0"
[ ! -s "$work/by-hand.stderr" ] || fail "a table of scores: stderr says: $(head -3 "$work/by-hand.stderr")"
for file in metrics.json tables.md tables.tex confusion-centrilobular.png confusion-paraseptal.svg; do
    [ -s "$work/by-hand/$file" ] || fail "a table of scores: $file is missing"
done

echo "What the image's process could change or become"
exposed=$(exposed_files evaluation)
[ -z "$exposed" ] || fail "these files are setuid, or can be changed: ${exposed//$'\n'/ }"

if [ "$failures" -gt 0 ]; then
    echo "$failures checks of the evaluation image failed" >&2
    exit 1
fi
echo "All checks of the evaluation image passed"
