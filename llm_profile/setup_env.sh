# shellcheck shell=bash
# The set-up that run.sh and tests/run.sh share: source it, then `set_up FILE...` with requirement files.
#
# PYTHON  the interpreter to start from (python3). set_up leaves in it the one that has the packages: this one if it
#         has them all already or is in a virtual environment, else the one in VENV.
# VENV    where the virtual environment is made, and found again (.venv). It sees an installed torch and keeps it.
# TORCH   the torch that pip looks for ("torch": any that is there, else the newest), e.g. "torch==2.13.0".
: "${PYTHON:=python3}" "${VENV:=.venv}" "${TORCH:=torch}"

set_up() {
    if has_packages "$@"; then
        return
    fi
    if ! in_virtual_environment; then
        if [ ! -x "$VENV/bin/python3" ]; then
            make_venv
        fi
        PYTHON=$VENV/bin/python3
        if has_packages "$@"; then
            return
        fi
    fi
    local files=() file
    for file in "$@"; do
        files+=(-r "$file")
    done
    echo "set-up: installing $TORCH, $* with $PYTHON" >&2
    "$PYTHON" -m pip install "$TORCH" "${files[@]}" ||
        fail "pip could not install $TORCH, $* (see above); mend that, remove $VENV if it is broken, or set PYTHON to an interpreter that has them"
}

has_gpu() {
    nvidia-smi -L 2>/dev/null | grep '^GPU' >/dev/null ||
        "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'
}

has_packages() {
    "$PYTHON" - "$TORCH" "$@" 2>/dev/null <<'END'
import sys
from importlib.metadata import version
from pathlib import Path

from packaging.requirements import Requirement

torch, *files = sys.argv[1:]
lines = [line.split("#")[0].strip() for file in files for line in Path(file).read_text().splitlines()]
wanted = [Requirement(line) for line in [torch, *lines] if line]
sys.exit(not all(each.specifier.contains(version(each.name), prereleases=True) for each in wanted))
END
}

in_virtual_environment() {
    "$PYTHON" -c 'import sys; sys.exit(sys.prefix == sys.base_prefix)'
}

has_module() {
    "$PYTHON" -c 'import sys, importlib.util; sys.exit(importlib.util.find_spec(sys.argv[1]) is None)' "$1"
}

make_venv() {
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "$PYTHON is not Python 3.11 or newer; install one and name it: PYTHON=python3.12"
    if [ -e "$VENV" ]; then
        fail "$VENV is there but is no virtual environment of this machine; remove it, or name another: VENV=.venv2"
    fi
    local options=()
    if has_module torch; then
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
