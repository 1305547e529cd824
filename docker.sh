#!/usr/bin/env bash
# Runs a command in a PyTorch container, with this folder and the Hugging Face cache mounted, and HF_TOKEN passed on.
#   ./docker.sh             opens a shell
#   ./docker.sh ./run.sh    runs a command
# NVIDIA GPUs need the NVIDIA Container Toolkit. On other machines:
#   ROCm    IMAGE=rocm/pytorch:latest GPU_OPTIONS="--device=/dev/kfd --device=/dev/dri --group-add video" ./docker.sh
#   no GPU  GPU_OPTIONS="" ./docker.sh
set -euo pipefail
cd "$(dirname "$0")"

IMAGE=${IMAGE:-pytorch/pytorch:2.11.0-cuda13.0-cudnn9-runtime}
GPU_OPTIONS=${GPU_OPTIONS-"--gpus all"}
HF_CACHE=${HF_HOME:-$HOME/.cache/huggingface}

if ! command -v docker >/dev/null; then
    echo "docker.sh: docker is not installed; install it, or run ./run.sh without a container" >&2
    exit 2
fi
mkdir -p "$HF_CACHE"  # otherwise docker makes the folder, and it belongs to root

read -ra options <<<"$GPU_OPTIONS"
if [ -t 0 ] && [ -t 1 ]; then
    options+=(-it)
fi
if [ $# -eq 0 ]; then
    set -- bash
fi

# HF_TOKEN is passed by name, so that its value is not on the command line. VENV is another folder than outside, since
# the container's Python cannot use a virtual environment of the host's.
exec docker run --rm --ipc=host "${options[@]}" \
    -v "$PWD:/workspace" -w /workspace -v "$HF_CACHE:/hf_cache" -e HF_HOME=/hf_cache \
    -e HF_TOKEN -e VENV=.venv-container \
    "$IMAGE" "$@"
