#!/usr/bin/env bash
# Makes an environment that holds FastReID and this plugin, or brings it up to date, and prints the
# path of its Python (everything else goes to stderr).
#
#   bash tools/make_env.sh today            .venv: FastReID beside a current torch
#   bash tools/make_env.sh published        .venv-published: FastReID with the versions it pins
#   bash tools/make_env.sh today-3.12       .venv-3.12: the same on a Python of one's choice
#   bash tools/make_env.sh published-3.8    .venv-published-3.8
#
# More words install more: `tests` (pytest and what tests import), `linters` (tools/lint.sh), `site`
# (tools/build_site.sh), `dist` (tools/build_dist.sh). The last three are for .venv.
#
# PYTHON names the interpreter to build on; otherwise PATH and pyenv are searched for one. setup.py
# and ops/build.py say which kernels the plugin gets: FASTREID_RIB_KERNELS, CXX, NVCC.
# Exit status 3: there is none that would do.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
    echo "usage: bash tools/make_env.sh today[-3.9 to -3.13]|published[-3.8|-3.9]" \
        "[tests] [linters] [site] [dist]" >&2
    exit 2
}

kind=${1:-}
case $kind in
    today) env=.venv versions="3.11 3.12 3.13 3.10 3.9" ;;
    published) env=.venv-published versions="3.9 3.8" ;;
    today-3.9 | today-3.1[0-3]) env=.venv-${kind#today-} versions=${kind#today-} ;;
    published-3.[89]) env=.venv-$kind versions=${kind#published-} ;;
    *) usage ;;
esac
kind=${kind%-*}
for extra in "${@:2}"; do
    [[ $extra =~ ^(tests|linters|site|dist)$ ]] || usage
done

say() {
    echo "make_env.sh: $*" >&2
}

# The version of an interpreter, if it starts (a pyenv shim may not) and can make environments.
version_of() {
    "$1" -c "import ensurepip, sys, venv; print('%d.%d' % sys.version_info[:2])" 2>/dev/null || true
}

find_python() {
    local version candidate
    for version in $versions; do
        for candidate in "python$version" python3 \
            "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version".*/bin/python; do
            if [[ $(version_of "${PYTHON:-$candidate}") == "$version" ]]; then
                echo "${PYTHON:-$candidate}"
                return
            fi
        done
    done
    return 1
}

# install WHAT ARGUMENTS...: pip install, unless WHAT was last installed with the same arguments.
install() {
    local stamp=$env/installed-$1
    if [[ -f $stamp && $(<"$stamp") == "$*" ]]; then
        return
    fi
    say "$env: installing $1"
    if ! "$env/bin/python" -m pip install --quiet --disable-pip-version-check "${@:2}" >&2; then
        say "'pip install ${*:2}' failed (see above). Does pip reach a package index from here?"
        exit 1
    fi
    echo "$*" >"$stamp"
}

# Starting it finds the environment whose base interpreter is gone, or whose making was cut short.
if ! "$env/bin/python" -m pip --version >/dev/null 2>&1; then
    if ! python=$(find_python); then
        say "$env needs Python ${versions// / or } with ensurepip (Debian: package python3-venv);" \
            "looked at ${PYTHON:-PATH and pyenv}."
        exit 3
    fi
    say "$env: made on $python"
    "$python" -m venv --clear "$env"
fi

if [[ $kind == today ]]; then
    # The pair that the numbers in the README were measured with; Python 3.9 has no such torch.
    if [[ $(version_of "$env/bin/python") == 3.9 ]]; then
        install pip --upgrade pip  # its own one tries versions of the plugin's needs without an end
        install torch torch torchvision
    else
        install torch torch==2.14.1 torchvision==0.29.1
    fi
    # Without its dependencies, which pin torch 1.13.1. The plugin's extra brings the others.
    install fastreid --no-deps fastreid==1.4.0
    needs="[fastreid]"
else
    install fastreid fastreid==1.4.0 "numpy<2" cython
    needs=
fi

# One wheel serves every environment: py3-none, with the kernels that the compilers here can build. It
# is built again when a source is newer, of Python or of the kernels, or other kernels are wanted.
# setuptools would put files that are gone into the wheel: `build` goes. (fastreid_rib/ops/lib: what
# build-kernels leaves in the tree.)
wheels=build/wheel
kernels="kernels: ${FASTREID_RIB_KERNELS:-} CXX: ${CXX:-} NVCC: ${NVCC:-}"
if [[ $(cat $wheels/made 2>/dev/null) != "$kernels" || -n $(find fastreid_rib setup.py pyproject.toml README.md \
    \( -name __pycache__ -o -path fastreid_rib/ops/lib \) -prune \
    -o -newer $wheels/made -print 2>/dev/null) ]]; then
    say "building the wheel"
    rm -rf build
    mkdir -p $wheels
    echo "$kernels" >$wheels/begun # before it is built: what is edited meanwhile is newer
    "$env/bin/python" -m pip wheel --quiet --disable-pip-version-check --no-deps \
        --wheel-dir $wheels . >&2
    mv $wheels/begun $wheels/made
fi
# It is installed as users install it, so that the .pth file is part of what is tested.
if [[ $wheels/made -nt $env/installed-plugin ]]; then
    rm -f $env/installed-wheel $env/installed-plugin
    if [[ $kind == today ]]; then
        say "(pip will say that fastreid pins an older torch: known, and what the plugin repairs)"
    fi
fi
wheel=$(echo $wheels/*.whl)
install wheel --force-reinstall --no-deps "$wheel" # of the same version as the one that is there
install plugin "$wheel$needs"

for extra in "${@:2}"; do
    case $extra in
        tests)
            install tests pytest pytest-timeout pytest-xdist hypothesis fvcore
            # What examples/ trains with. Without requirements, which are here and must not move.
            install examples --no-deps torchreid==0.2.5 pytorch-metric-learning==2.9.0
            if [[ $kind == today ]]; then
                install onnx onnx onnxruntime  # to run what models are exported to
                install reading L2M4M==1.0.4 griffe  # to read the documentation's equations and names
            fi
            ;;
        linters)
            install linters ruff==0.17.6 mypy==2.4.1 import-linter==2.16 clang-format==23.1.5
            ;;
        site)
            install site mkdocs==1.6.1 mkdocs-material==9.8.2 "mkdocstrings[python]==1.0.8" L2M4M==1.0.4
            ;;
        dist) install dist build ;;
    esac
done
echo "$env/bin/python"
