#!/usr/bin/env bash
# Build the viewer image; it must not start open to others, and with a password it must serve its page, not as root, on a
# read-only file system. Exits 77 where there is no container engine.
set -euo pipefail
cd "$(dirname "$0")/../.."
source requirements/container.sh
find_container_engine || exit $?
./build.sh viewer

restrictions=(--network none --cap-drop all --security-opt no-new-privileges --read-only --tmpfs /tmp --memory 16g)

fail() {
    echo "FAILED: $1" >&2
    exit 1
}

exposed=$(exposed_files viewer)
[ -z "$exposed" ] || fail "these files are setuid, or can be changed: ${exposed//$'\n'/ }"

code=0
message=$("$CONTAINER_ENGINE" run --rm "${restrictions[@]}" "$IMAGE:viewer" 2>&1) || code=$?
[ "$code" -eq 2 ] || fail "without a password: exit code $code, expected 2"
grep -q 'without a password' <<<"$message" || fail "without a password it said: $message"

export EMPHYSEMA_VIEWER_PASSWORD='a long password'
container=$("$CONTAINER_ENGINE" run --detach "${restrictions[@]}" --env EMPHYSEMA_VIEWER_PASSWORD "$IMAGE:viewer")
trap '"$CONTAINER_ENGINE" rm --force "$container" >/dev/null' EXIT

inside() {
    "$CONTAINER_ENGINE" exec "$container" /opt/venv/bin/python -c "$1"
}

# Podman runs the image's health check when asked to, docker by itself.
healthy() {
    "$CONTAINER_ENGINE" healthcheck run "$container" >/dev/null 2>&1 \
        || [ "$("$CONTAINER_ENGINE" inspect --format '{{.State.Health.Status}}' "$container" 2>/dev/null)" = healthy ]
}

for _ in $(seq 120); do
    healthy && break
    sleep 1
done
healthy || fail "the image's health check did not succeed within two minutes"
inside 'import model.viewing.page' || fail "the page cannot be drawn"
[ "$(inside 'import os; print(os.getuid())')" = 1000 ] || fail "it runs as root"
"$CONTAINER_ENGINE" logs "$container" 2>&1 | grep -q 'a long password' && fail "the password is in the log"
echo "All checks of the viewer image passed"
