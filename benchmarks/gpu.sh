#!/bin/sh
# All that wants a GPU, on the day there is one; results go to benchmarks/results/gpu.
#   benchmarks/gpu.sh                              every part; no process takes over 10 minutes
#   benchmarks/gpu.sh accuracy overhead            some of them
#   benchmarks/gpu.sh --device cpu --tiny          the same road in small, without a GPU
cd "$(dirname "$0")/.." || exit 1
exec "${PYTHON:-python}" benchmarks/gpu.py "$@"
