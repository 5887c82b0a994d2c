#!/usr/bin/env bash
# The one gate: on a bare clone it makes .venv, installs the pins, and runs ruff, the type checker and pytest.
# Run again, it installs only when the pins or pyproject.toml have changed. No network after the installation.
# Further arguments go to pytest: scripts/test.sh tests/test_readme.py
set -euo pipefail
cd "$(dirname "$0")/.."

if [ ! -x .venv/bin/python ]; then
    for python in python3.11 python3.12 python3.13 python3; do
        if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then break; fi
        python=""
    done
    if [ -z "$python" ]; then
        echo "error: no Python 3.11 or later on the path" >&2
        exit 2
    fi
    "$python" -m venv .venv
fi

wanted=$(cat requirements.txt pyproject.toml | cksum)
if [ "$wanted" != "$(cat .venv/installed.cksum 2>/dev/null || true)" ]; then
    .venv/bin/pip install --quiet --requirement requirements.txt
    .venv/bin/pip install --quiet --no-deps --no-build-isolation --editable .
    echo "$wanted" >.venv/installed.cksum
fi

# One thread per test process: the tests run beside each other, and many small matrices gain nothing from threads.
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 OMP_NUM_THREADS=1 MPLBACKEND=Agg
.venv/bin/ruff check .
.venv/bin/mypy
.venv/bin/mypy scripts/*.py
# loadfile: what a file of tests prepares once is not prepared again by another process.
.venv/bin/pytest -n 2 --dist loadfile "$@"
