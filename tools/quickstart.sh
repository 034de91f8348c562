#!/usr/bin/env bash
# Trains a ResNet-18 on drawn pedestrians without RIB and with it. It needs Python and a network, no
# GPU and no data set; on two cores the training takes a few minutes.
#
#   bash tools/quickstart.sh                  SEED=1 bash tools/quickstart.sh
#
# The environment (.venv) and the pictures (datasets/, or $FASTREID_DATASETS) are made by the first
# run and found by the next; the training is run anew each time. Arguments go to tools/quickstart.py.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=$(bash tools/make_env.sh today)
exec "$python" tools/quickstart.py "$@"
