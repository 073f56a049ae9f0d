#!/usr/bin/env bash
# Builds the images where no container engine runs, and tries what came out.
#
#   docker/check.sh [api|worker|worker-cuda …]      (as root; default: api)
#
# The Dockerfile is executed as it stands by buildah with chroot isolation; only the base image is made here, by
# debootstrap, with Debian's own Python. CHECK_OPTIONS is added to every buildah command, for what a site needs in order to
# reach its package indexes, for example --volume=/etc/pip.conf:/etc/pip.conf:ro. WORK keeps the base between runs;
# STORAGE_DRIVER=overlay, where it works, takes a fraction of the space.
set -euo pipefail
cd "$(dirname "$0")/.."
WORK=${WORK:-$(mktemp -d)}
export STORAGE_DRIVER=${STORAGE_DRIVER:-vfs} BUILDAH_ISOLATION=chroot
read -ra options <<<"${CHECK_OPTIONS:-}"
storage=(--root "$WORK/storage" --runroot "$WORK/run")
base=localhost/pennyweight-check-base

for program in buildah debootstrap; do
    command -v "$program" >/dev/null || { echo "Install $program first." >&2; exit 2; }
done
if command -v hadolint >/dev/null; then hadolint docker/Dockerfile; fi

if ! buildah "${storage[@]}" inspect --type image "$base" >/dev/null 2>&1; then
    [ -d "$WORK/rootfs/usr/bin" ] || debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates \
        bookworm "$WORK/rootfs" >"$WORK/debootstrap.log"
    container=$(buildah "${storage[@]}" from scratch)
    buildah "${storage[@]}" add --quiet "$container" "$WORK/rootfs" / >/dev/null
    buildah "${storage[@]}" commit --quiet --rm "$container" "$base" >/dev/null
fi

# In a container of an image, as its user, in its environment.
inside() {
    local container
    container=$(buildah "${storage[@]}" from --pull-never "localhost/pennyweight-$1")
    shift
    local status=0
    buildah "${storage[@]}" run "$container" -- "$@" || status=$?
    buildah "${storage[@]}" rm "$container" >/dev/null
    return "$status"
}

for target in "${@:-api}"; do
    buildah "${storage[@]}" bud --format docker --quiet "${options[@]}" --build-arg "PYTHON_IMAGE=$base" \
        --target "$target" --file docker/Dockerfile --tag "localhost/pennyweight-$target" . >"$WORK/$target.id"
    echo "$target: built"
    buildah "${storage[@]}" inspect --type image --format \
        "$target: user {{.Docker.Config.User}}, health {{.Docker.Config.Healthcheck.Test}}, command {{.Docker.Config.Entrypoint}} {{.Docker.Config.Cmd}}" \
        "localhost/pennyweight-$target"
    [ "$(inside "$target" id -u)" = 10001 ] || { echo "$target: does not run as 10001" >&2; exit 1; }
    inside "$target" pennyweightd version
    if [ "$target" = api ]; then
        inside api python3 -c '
import importlib.util, sys
found = [name for name in ("torch", "onnx", "numpy") if importlib.util.find_spec(name)]
sys.exit(f"the engine is in the image of the API: {found}" if found else 0)'
        inside api sh -c '
pennyweightd keys first >/dev/null && PENNYWEIGHT_HOST=0.0.0.0 pennyweightd api --port 18765 & server=$!
for _ in $(seq 60); do
    python3 -c "import urllib.request as r; print(r.urlopen(\"http://127.0.0.1:18765/healthz\", timeout=4).read().decode())" 2>/dev/null && break
    sleep 1
done
status=$?; kill "$server"; exit "$status"'
    else
        inside "$target" python3 -c 'import torch, torchvision, timm, core.engine; print("torch", torch.__version__, torch.version.cuda)'
    fi
    echo "$target: works"
done
