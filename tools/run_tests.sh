#!/usr/bin/env bash
# What has to hold before a change goes in: lint, format, types, the import contract, the site of
# the documentation, and the tests on today's stack and on FastReID as published (where there is a
# Python 3.8 or 3.9 for it).
#
#   bash tools/run_tests.sh                      everything
#   bash tools/run_tests.sh --fast               without FastReID as published
#   bash tools/run_tests.sh --stack today-3.12   the tests alone, in an environment of make_env.sh
#   bash tools/run_tests.sh --all-pythons        doctor and a short training on each other Python
#   bash tools/run_tests.sh -k configs -x        arguments go to pytest
#
# JOBS is the number of test processes (2).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# A thread pool in each of the test processes would have them wait for each other.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
status=0

step() {
    echo
    echo "== $*"
    "$@" || status=1
}

# tests STACK PYTHON ARGUMENTS...: the installed wheel with its .pth file is tested, since -I keeps
# the working folder off sys.path. loadfile keeps the tests of a file together, which share what
# they trained.
tests() {
    local stack=$1 python=$2
    shift 2
    if [[ $stack == published* || $stack == today-3.9 ]]; then
        echo "== left out on $stack: tests marked today_only"
        set -- -m "not today_only" "$@"
    fi
    step "$python" -I -m pytest --numprocesses "${JOBS:-2}" --dist loadfile --timeout 600 "$@"
}

fast=false
case ${1:-} in
    --fast)
        fast=true
        shift
        ;;
    --stack)
        python=$(bash tools/make_env.sh "${2:?such as today-3.12 or published-3.8}" tests)
        tests "$2" "$python" "${@:3}"
        exit $status
        ;;
    --all-pythons)
        shift
        if [[ $# == 0 ]]; then
            set -- tests/test_training.py -k one_changed_line  # trains, evaluates, resumes
        fi
        for stack in published-3.8 today-3.9 today-3.10 today-3.12 today-3.13; do
            if python=$(bash tools/make_env.sh $stack tests); then
                step "$python" -I -m fastreid_rib doctor
                tests $stack "$python" "$@"
            else
                status=1
            fi
        done
        exit $status
        ;;
esac

today=$(bash tools/make_env.sh today tests linters site)
step bash tools/lint.sh
step bash tools/build_site.sh "$today"

# First, so that the last line of all is the summary of the whole suite.
if $fast; then
    echo "== left out: FastReID as published (--fast)"
elif published=$(bash tools/make_env.sh published tests); then
    tests published "$published" "$@"
elif [[ $? == 3 ]]; then
    echo "== left out: FastReID as published (torch 1.13.1), which needs Python 3.8 or 3.9"
else
    exit 1
fi
tests today "$today" "$@"
exit $status
