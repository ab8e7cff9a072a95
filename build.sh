#!/usr/bin/env bash
# Build an image: ./build.sh [target], by default `inference`. The image is called emphysema-subtyping:TARGET.
# CONTAINER_ENGINE, BASE_IMAGE, CONTAINER_BUILD_FLAGS and pip's PIP_FIND_LINKS, PIP_INDEX_URL, PIP_EXTRA_INDEX_URL are honoured.
set -euo pipefail
cd "$(dirname "$0")"
source requirements/container.sh
find_container_engine
target=${1:-inference}

arguments=(--build-arg VERSION="$VERSION" --build-arg REVISION="$(git rev-parse HEAD 2>/dev/null || echo unknown)")
for name in BASE_IMAGE PIP_INDEX_URL PIP_EXTRA_INDEX_URL; do
    [ -n "${!name:-}" ] && arguments+=(--build-arg "$name=${!name}")
done
# Podman's own format has no health check, docker's has.
[ "$(basename "$CONTAINER_ENGINE")" = podman ] && arguments+=(--format docker)
# shellcheck disable=SC2086  # the flags are several words
"$CONTAINER_ENGINE" build ${CONTAINER_BUILD_FLAGS:-} "${arguments[@]}" --target "$target" --tag "$IMAGE:$target" .
