# shellcheck shell=bash
# The set-up that run.sh and tests/run.sh share: source it, then `set_up FILE...` with requirement files.
#
# What it installs is the tested set: constraints/ has one for each Python. A torch and a transformers that are there
# stay, if requirements.txt allows them. One line says what was taken.
#
# PYTHON  the interpreter to start from (python3). set_up leaves in it the one that has the packages: this one if it
#         has them all already or is in a virtual environment, else the one in VENV.
# VENV    where the virtual environment is made, and found again (.venv). It sees an installed torch and keeps it.
# TORCH   the torch that pip looks for ("torch": any that is there, else the tested one), e.g. "torch==2.12.0".
# LATEST  1: the newest that requirements.txt allows instead, also in place of what is there.
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
            pip_install "$TORCH"  # first, and then it is kept: the tested set need not allow it
        fi
        pins=$(choose pins "$@") || fail "$PYTHON could not choose versions (see above)"
        pip_install "$TORCH" "${files[@]}" -c <(printf '%s\n' "$pins")
    fi
}

pip_install() {
    "$PYTHON" -m pip install "$@" ||
        fail "pip could not install $* (see above); mend that, remove $VENV if it is broken, take the newest with LATEST=1, or set PYTHON to an interpreter that has all"
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
        fail "$VENV is there but is no virtual environment of this machine; remove it, or name another: VENV=.venv2"
    fi
    local options=()
    if has_module torch || has_module transformers; then
        options+=(--system-site-packages)
        if has_module pip; then
            options+=(--without-pip)  # the system's pip serves; Debian has no ensurepip without python3-venv
        fi
    fi
    echo "set-up: making a virtual environment in $VENV" >&2
    if ! "$PYTHON" -m venv ${options[@]+"${options[@]}"} "$VENV"; then
        rm -rf "$VENV"  # half made, it would be taken for a whole one
        fail "$PYTHON could not make $VENV (on Debian and Ubuntu: apt install python3-venv)"
    fi
}

fail() {
    echo "set-up: $1" >&2
    exit 2
}
