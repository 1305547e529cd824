# shellcheck shell=bash
# The set-up that run.sh and tests/run.sh share: source this file, then call `set_up FILE...` with requirement files.
#
# It installs versions that were tested together: constraints/ has a set for each Python. An installed torch and an
# installed transformers are kept if requirements.txt allows them. One line says which versions are used.
#
# PYTHON  the interpreter to start from (default python3). set_up sets it to the interpreter that has the packages: the
#         same one if it has all of them or is in a virtual environment, otherwise the one in VENV.
# VENV    folder in which the virtual environment is made and later found again (default .venv). A torch that is
#         installed outside is visible in it and kept.
# TORCH   the torch that pip installs, e.g. "torch==2.12.0". Default "torch": keep an installed one, or install the
#         tested one.
# LATEST  1: install the newest versions that requirements.txt allows, and replace installed ones.
: "${PYTHON:=python3}" "${VENV:=.venv}" "${TORCH:=torch}" "${LATEST:=0}"

set_up() {
    if ! has_all "$@"; then
        if ! in_virtual_environment; then
            if [ ! -x "$VENV/bin/python3" ]; then
                make_venv
            fi
            PYTHON=$VENV/bin/python3
        fi
        has_all "$@" || install "$@"
    fi
    local question=taken
    if [ "$LATEST" != 0 ]; then
        question=newest
    fi
    echo "set-up: $(choose $question "$@")" >&2
}

has_all() {
    [ "$LATEST" = 0 ] && choose satisfied "$TORCH" "$@" 2>/dev/null
}

install() {
    local files=() file pins
    is_new_enough
    for file in "$@"; do
        files+=(-r "$file")
    done
    echo "set-up: installing $* with $PYTHON" >&2
    if [ "$LATEST" != 0 ]; then
        pip_install "$TORCH" "${files[@]}" --upgrade --upgrade-strategy eager
    else
        if [ "$TORCH" != torch ]; then
            pip_install "$TORCH"  # before the pins are chosen, which then keep it: the tested set may have another
        fi
        pins=$(choose pins "$@") || fail "$PYTHON could not choose versions (see above)"
        pip_install "$TORCH" "${files[@]}" -c <(printf '%s\n' "$pins")
    fi
}

pip_install() {
    "$PYTHON" -m pip install "$@" ||
        fail "pip could not install $* (see above); fix that, remove $VENV if it is broken, install the newest versions with LATEST=1, or set PYTHON to an interpreter that has all packages"
}

choose() {
    "$PYTHON" constraints/choose.py "$@"
}

has_gpu() {
    nvidia-smi -L 2>/dev/null | grep '^GPU' >/dev/null ||
        "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'
}

in_virtual_environment() {
    "$PYTHON" -c 'import sys; sys.exit(sys.prefix == sys.base_prefix)'
}

has_module() {
    "$PYTHON" -c 'import sys, importlib.util; sys.exit(importlib.util.find_spec(sys.argv[1]) is None)' "$1"
}

is_new_enough() {
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "$PYTHON is not Python 3.11 or newer; install one and name it: PYTHON=python3.12"
}

make_venv() {
    is_new_enough
    if [ -e "$VENV" ]; then
        fail "$VENV exists but is no virtual environment of this machine; remove it, or name another: VENV=.venv2"
    fi
    local options=()
    if has_module torch || has_module transformers; then
        options+=(--system-site-packages)
        if has_module pip; then
            options+=(--without-pip)  # the system's pip is used; on Debian, installing pip would need python3-venv
        fi
    fi
    echo "set-up: making a virtual environment in $VENV" >&2
    if ! "$PYTHON" -m venv ${options[@]+"${options[@]}"} "$VENV"; then
        rm -rf "$VENV"  # otherwise the next run would take the incomplete folder for a virtual environment
        fail "$PYTHON could not make $VENV (on Debian and Ubuntu: apt install python3-venv)"
    fi
}

fail() {
    echo "set-up: $1" >&2
    exit 2
}
