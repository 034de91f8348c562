#!/usr/bin/env bash
# Builds the documentation site into site/. A link, a heading or a name in the reference that is not
# there is an error. Nothing is fetched but the packages.
#
#   bash tools/build_site.sh            in .venv, which is made or brought up to date
#   bash tools/build_site.sh PYTHON     with the packages of this Python
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${1:-$(bash tools/make_env.sh today site)}
# Material for MkDocs says at each start how long it will be maintained.
NO_MKDOCS_2_WARNING=1 "$python" -m mkdocs build --strict --quiet
echo "site/index.html"
