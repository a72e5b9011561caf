#!/usr/bin/env bash
# Builds a virtual environment from a lock file and installs this project into it, editable.
#
#   scripts/install.sh PYTHON VENV LOCK
#
# Environment:
#   TORCH        another requirement than the lock's, such as torch==2.13.0+cu130
#   TORCH_INDEX  where to look for it, besides where pip looks anyway: an index of CPU or CUDA wheels
#
# VENV/.installed tells when it was last done, VENV/.install_seconds how long it took from nothing.
#
# fairseq's own requirements are not followed: they would bring torchaudio, and the newest torch with CUDA
# into a build environment of its own. fairseq is built without its compiled parts: that takes seconds
# instead of one to two minutes, needs no compiler, and fairseq_samu/compat.py replaces what is missing.
set -euo pipefail

python=$1 venv=$2 lock=$3
cd "$(dirname "${BASH_SOURCE[0]}")/.."
started=$SECONDS

say() { echo "[$((SECONDS - started)) s] $*"; }
pip() { "$venv/bin/python" -m pip --quiet --quiet --no-input --disable-pip-version-check "$@"; }
pinned() { grep -iE "^($1)==" "$lock"; }

if ! "$venv/bin/python" -m pip --version > /dev/null 2>&1; then
    say "$("$python" --version) makes $venv"
    if ! "$python" -m venv --clear "$venv"; then
        echo "$python cannot make virtual environments; on Debian and Ubuntu, its package ending in" \
            "-venv is missing" >&2
        exit 1
    fi
fi

say "installing $(grep -c == "$lock") packages of $lock"
# What builds the packages that have no wheel; wheel needs packaging.
# shellcheck disable=SC2046  # one argument a package
pip install --no-deps $(pinned 'packaging|pip|setuptools|wheel')
grep -viE '^(#|pip==|torch==|fairseq)' "$lock" > "$venv/lock.txt"
pip install --no-deps --no-build-isolation --requirement "$venv/lock.txt"

torch=${TORCH:-$(pinned torch)}
say "installing $torch"
pip install "$torch" ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"}

# Its set-up imports torch, so that it comes after it and without build isolation.
say "building $(pinned 'fairseq(-fixed)?') without compiled parts"
READTHEDOCS=1 pip install --no-deps --no-build-isolation "$(pinned 'fairseq(-fixed)?')"

say "installing this project"
pip install --no-deps --no-build-isolation --editable .

if [[ ! -f $venv/.install_seconds ]]; then
    echo "$((SECONDS - started))" > "$venv/.install_seconds"
fi
touch "$venv/.installed"
say "done"
