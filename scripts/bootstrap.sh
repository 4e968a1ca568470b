#!/bin/sh
# Make the virtual environment ready: the package, its tools, and the versions of constraints.txt.
#
#   sh scripts/bootstrap.sh [.venv]
#   PYTHON=/path/to/python3.12 sh scripts/bootstrap.sh
#
# Nothing is done when it is ready already. A stamp is written last, so an environment whose
# installation was interrupted, or that no longer runs, is built anew.
set -eu

cd "$(dirname "$0")/.."
venv=${1:-.venv}
begun="$venv/.begun"
stamp="$venv/.ready"

say() { printf '%s\n' "$*" >&2; }
fail() {
    say "Error: $*"
    exit 1
}

supported() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' >/dev/null 2>&1
}
has_venv() { "$1" -c 'import ensurepip, venv' >/dev/null 2>&1; }
version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }

need_venv() {
    fail "$1 (Python $(version "$1")) cannot make virtual environments: ensurepip is missing.
On Debian or Ubuntu: apt-get install python$(version "$1")-venv (or python3-venv).
Or choose another Python from 3.11 to 3.13: make PYTHON=/path/to/python3.12 ..."
}

# A command may exist and still not run (a version manager's shim, say): each is tried.
find_python() {
    if [ -n "${PYTHON:-}" ]; then
        supported "$PYTHON" ||
            fail "PYTHON=$PYTHON is not a Python from 3.11 to 3.13 (it says: $(version "$PYTHON" || echo 'it does not run'))."
        has_venv "$PYTHON" || need_venv "$PYTHON"
        echo "$PYTHON"
        return
    fi
    without_venv=
    for candidate in python3 python3.13 python3.12 python3.11 python; do
        supported "$candidate" || continue
        if has_venv "$candidate"; then
            echo "$candidate"
            return
        fi
        without_venv=${without_venv:-$candidate}
    done
    [ -z "$without_venv" ] || need_venv "$without_venv"
    fail "no Python from 3.11 to 3.13 was found (python3 says: $(version python3 || echo 'it does not run')).
Install one (Debian 12 or later: apt-get install python3 python3-venv; or python.org), or name it:
make PYTHON=/path/to/python3.12 ..."
}

# What the environment was made from; the folder counts because its scripts hold absolute paths.
wanted() {
    pwd
    cksum pyproject.toml constraints.txt scripts/bootstrap.sh
}

runs() { supported "$venv/bin/python" && "$venv/bin/python" -c 'import pip' >/dev/null 2>&1; }
right_version() {
    [ -z "${PYTHON:-}" ] || [ "$(version "$PYTHON" || true)" = "$(version "$venv/bin/python")" ]
}

# One installation at a time, where the system can lock.
if command -v flock >/dev/null 2>&1; then
    exec 9<constraints.txt
    flock 9
fi

if [ -f "$stamp" ] && [ "$(wanted)" = "$(cat "$stamp")" ] && runs && right_version; then
    exit 0
fi

# An environment that somebody else made, and that works, is used as it is; one of ours without
# a stamp was interrupted.
make=
if [ ! -e "$venv" ]; then
    make=yes
elif { [ -e "$begun" ] && [ ! -e "$stamp" ]; } || ! runs || ! right_version; then
    if [ ! -e "$begun" ] && [ ! -e "$venv/pyvenv.cfg" ] && [ -n "$(ls -A "$venv")" ]; then
        fail "$venv exists and is no virtual environment. Move it away, or name another: make VENV=other ..."
    fi
    say "Building $venv anew: it is incomplete, does not run, or is of another Python."
    make=yes
fi

if [ -n "$make" ]; then
    python=$(find_python)
    say "Making $venv with $python (Python $(version "$python")); the first time takes a few minutes."
    mkdir -p "$venv"
    : >"$begun"
    rm -f "$stamp"
    # The mark goes last, so that an interrupted removal is known for what it is.
    find "$venv" -mindepth 1 ! -path "$begun" -delete
    "$python" -m venv "$venv"
fi
: >"$begun"
rm -f "$stamp"

trap 'say "Error: the installation did not finish. Its reason is above; the same command starts it again."' EXIT
pip() { "$venv/bin/python" -m pip "$@"; }

# torch alone first: the exact version, before another package can ask for any other. The build
# tools come with it, so that nothing below downloads its own.
pip install --constraint constraints.txt torch setuptools
pip install --constraint constraints.txt --no-build-isolation --use-pep517 --editable ".[dev,atari,play,offline,export,cma]"
# On Python 3.13 pyproject.toml names dm_control's dependencies in its place: all but labmaze,
# which has no wheel there and which no task of the suite needs.
if [ "$(version "$venv/bin/python")" = 3.13 ]; then
    pip install --constraint constraints.txt --no-deps dm-control
fi

trap - EXIT
wanted >"$stamp"
say "Ready: $venv"
