#!/usr/bin/env bash
# What has to hold before a change goes in: lint, format, types, the import contract, the site of
# the documentation, and the tests on today's stack and on FastReID as published (where there is a
# Python 3.8 or 3.9 for it).
#
#   bash tools/run_tests.sh                      what a change can break
#   bash tools/run_tests.sh --all                everything: before a release, and every night
#   bash tools/run_tests.sh --fast               without FastReID as published
#   bash tools/run_tests.sh --stack today-3.12   the tests alone, in an environment of make_env.sh
#   bash tools/run_tests.sh --fast -k dcs -x     arguments go to pytest
#
# Without --all these are left out: tests marked all_only, the CUDA kernels of the wheel (nvcc takes
# minutes), on FastReID as published all tests but those marked published, and the other Pythons.
# --all goes with the other two options. JOBS is the number of test processes (2).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# A thread pool in each of the test processes would have them wait for each other.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
all=false fast=false stack=
while true; do
    case ${1:-} in
        --all) all=true ;;
        --fast) fast=true ;;
        --stack)
            stack=${2:?such as today-3.12 or published-3.8}
            shift
            ;;
        *) break ;;
    esac
    shift
done
status=0

step() {
    echo
    echo "== $*"
    "$@" || status=1
}

make_env() {
    if $all; then
        bash tools/make_env.sh "$@"
    else
        NVCC=no-nvcc bash tools/make_env.sh "$@"
    fi
}

# tests STACK PYTHON ARGUMENTS...: the installed wheel with its .pth file is tested, since -I keeps
# the working folder off sys.path. The two processes begin with one half of the tests each, in their
# order, since those of a file share what they trained; who is done first takes some of the other's.
tests() {
    local stack=$1 python=$2 marked=
    shift 2
    case $all-$stack in
        true-published* | true-today-3.9) marked="not today_only" ;;
        false-published*) marked="published and not all_only and not today_only" ;;
        false-today-3.9) marked="not all_only and not today_only" ;;
        false-*) marked="not all_only" ;;
    esac
    echo
    echo "== $stack: tests that are ${marked:-there}$($all || echo " (--all: the others, too)")"
    local code=0
    "$python" -I -m pytest --numprocesses "${JOBS:-2}" --dist worksteal --timeout 600 \
        --durations 30 --durations-min 1 ${marked:+-m "$marked"} "$@" || code=$?
    if [[ $code == 5 && $marked == published* ]]; then
        echo "== none of these tests runs on $stack"
    elif [[ $code != 0 ]]; then
        status=1
    fi
}

# other_stack STACK: a short training, which is evaluated and resumed, on another Python.
other_stack() {
    local python
    if python=$(make_env "$1" tests); then
        step "$python" -I -m fastreid_rib doctor
        tests "$1" "$python" tests/test_training.py -k one_changed_line
    elif [[ $? == 3 ]]; then
        echo "== left out: $1, for want of its Python"
    else
        status=1
    fi
}

if [[ -n $stack ]]; then
    python=$(make_env "$stack" tests)
    tests "$stack" "$python" "$@"
    exit $status
fi

today=$(make_env today tests linters site)
step bash tools/lint.sh
step bash tools/build_site.sh "$today"
if $all; then
    for stack in published-3.8 today-3.9 today-3.10 today-3.12 today-3.13; do
        other_stack $stack
    done
fi

# First, so that the last line of all is the summary of the whole suite.
if $fast; then
    echo "== left out: FastReID as published (--fast)"
elif published=$(make_env published tests); then
    tests published "$published" "$@"
elif [[ $? == 3 ]]; then
    echo "== left out: FastReID as published (torch 1.13.1), which needs Python 3.8 or 3.9"
else
    exit 1
fi
tests today "$today" "$@"
exit $status
