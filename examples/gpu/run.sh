#!/bin/sh
# Smoke tests, throughput, latency and the papers' recipe on this machine's GPU, as JSON rows in one folder: see run.py.
#
#   examples/gpu/run.sh [SECONDS] [--out DIR] [--assets DIR] [--device cpu] [--tiny]
set -eu
here=$(cd "$(dirname "$0")" && pwd)
exec "${PYTHON:-python3}" "$here/run.py" "$@"
