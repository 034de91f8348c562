#!/usr/bin/env bash
# What is checked without running the code; tools/run_tests.sh and .pre-commit-config.yaml call it.
#
#   bash tools/lint.sh               all checks
#   bash tools/lint.sh mypy          some of them: ruff, format, clang-format, mypy, imports
#
# The linters are those of .venv, which is made if they are not there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

check() {
    case $1 in
        ruff) .venv/bin/ruff check . ;;
        format) .venv/bin/ruff format --check . ;;
        clang-format)
            git ls-files -z '*.h' '*.cuh' '*.cu' '*.cpp' |
                xargs -0 .venv/bin/clang-format --dry-run -Werror
            ;;
        mypy) .venv/bin/mypy ;;
        imports) PYTHONPATH=. .venv/bin/lint-imports ;; # of the tree, not of what is installed
        *)
            echo "lint.sh: expected ruff, format, clang-format, mypy or imports, got '$1'" >&2
            return 2
            ;;
    esac
}

if [[ ! -x .venv/bin/clang-format ]]; then # the last of them that is installed
    bash tools/make_env.sh today linters >/dev/null
fi
if [[ $# == 0 ]]; then
    set -- ruff format clang-format mypy imports
fi
status=0
for name in "$@"; do
    echo "== $name"
    check "$name" || status=1
done
exit $status
