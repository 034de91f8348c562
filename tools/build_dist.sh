#!/usr/bin/env bash
# Builds what a release consists of into dist/: the sources, a wheel of pure Python, and one with the
# CPU kernels for this platform, which runs where its C library is as new as here.
#
#   bash tools/build_dist.sh            with .venv, which is made or brought up to date
#   bash tools/build_dist.sh PYTHON     with this Python, which has the package `build`
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${1:-$(bash tools/make_env.sh today dist)}
rm -rf build dist
# The wheels are made from the packed sources, as pip would make them.
"$python" -m build --sdist
for kernels in none cpu; do
    FASTREID_RIB_KERNELS=$kernels "$python" -m pip wheel --quiet --no-deps --wheel-dir dist dist/*.tar.gz
done
ls dist
