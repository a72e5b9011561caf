#!/usr/bin/env bash
# The second route: Python 3.10 with fairseq 0.12.2 as released and torch 1.12.1, in .venv310.
#
#   scripts/install_fairseq_0_12_2.sh          builds the environment
#   scripts/install_fairseq_0_12_2.sh --test   builds it if it is not there, then runs the tests in it
#
# Environment:
#   PYTHON310           the interpreter, python3.10 unless given
#   TORCH, TORCH_INDEX  as in scripts/install.sh; the wheel of torch 1.12.1 that carries CUDA has 0.8 GB
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON310:-python3.10} venv=.venv310 lock=requirements/py310.txt

if [[ $# -gt 1 || ${1:---test} != --test ]]; then
    echo "usage: $0 [--test]" >&2
    exit 2
fi
if ! "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 10))'; then
    echo "$python is not Python 3.10; name one with PYTHON310=..." >&2
    exit 1
fi
if [[ $# -eq 0 || $lock -nt $venv/.installed ]]; then
    scripts/install.sh "$python" "$venv" "$lock"
fi
if [[ $# -eq 1 ]]; then
    exec "$venv/bin/python" -m pytest
fi
