#!/usr/bin/env bash
# Build an image: ./build.sh [target], by default `inference`. The image is called emphysema-subtyping:TARGET. The target `int8`
# is inference with OpenVINO, for --precision int8.
# CONTAINER_ENGINE, BASE_IMAGE, CONTAINER_BUILD_FLAGS and pip's PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS are honoured.
set -euo pipefail
cd "$(dirname "$0")"
source requirements/container.sh
find_container_engine
name=${1:-inference}
target=$name

arguments=(--build-arg VERSION="$VERSION" --build-arg REVISION="$(git rev-parse HEAD 2>/dev/null || echo unknown)")
for variable in BASE_IMAGE PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_FIND_LINKS; do
    [ -n "${!variable:-}" ] && arguments+=(--build-arg "$variable=${!variable}")
done
if [ "$name" = int8 ]; then
    target=inference
    arguments+=(--build-arg LOCK=int8)
fi
# Podman's own format has no health check, docker's has.
[ "$(basename "$CONTAINER_ENGINE")" = podman ] && arguments+=(--format docker)
# shellcheck disable=SC2086  # the flags are several words
"$CONTAINER_ENGINE" build ${CONTAINER_BUILD_FLAGS:-} "${arguments[@]}" --target "$target" --tag "$IMAGE:$name" .
