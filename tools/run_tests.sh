#!/usr/bin/env bash
# What has to hold before a change goes in: lint, format, types, the import contract, the site of
# the documentation, and the tests on today's stack and on FastReID as published (where there is a
# Python 3.8 or 3.9 for it).
#
#   bash tools/run_tests.sh                      everything
#   bash tools/run_tests.sh --fast               without FastReID as published
#   bash tools/run_tests.sh -k configs -x        arguments go to pytest
#
# JOBS is the number of test processes (2).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fast=false
if [[ ${1:-} == --fast ]]; then
    fast=true
    shift
fi

# A thread pool in each of the test processes would have them wait for each other.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
status=0

step() {
    echo
    echo "== $*"
    "$@" || status=1
}

# -I keeps the working folder off sys.path: what is tested is the installed wheel with its .pth file.
# loadfile keeps the tests of a file together, which share what they trained.
tests() {
    local python=$1
    shift
    step "$python" -I -m pytest --numprocesses "${JOBS:-2}" --dist loadfile --timeout 600 "$@"
}

today=$(bash tools/make_env.sh today tests)
step "$today" -m ruff check .
step "$today" -m ruff format --check .
kernels=$(git ls-files '*.h' '*.cuh' '*.cu' '*.cpp')
# shellcheck disable=SC2086  # one name a line, none with spaces
step "$(dirname "$today")/clang-format" --dry-run -Werror $kernels
step "$today" -m mypy
step "$(dirname "$today")/lint-imports"
step bash tools/build_site.sh "$today"

# First, so that the last line of all is the summary of the whole suite.
if $fast; then
    echo "== left out: FastReID as published (--fast)"
elif published=$(bash tools/make_env.sh published tests); then
    echo "== left out on FastReID as published: tests marked today_only"
    tests "$published" -m "not today_only" "$@"
elif [[ $? == 3 ]]; then
    echo "== left out: FastReID as published (torch 1.13.1), which needs Python 3.8 or 3.9"
else
    exit 1
fi
tests "$today" "$@"
exit $status
