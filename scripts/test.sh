#!/usr/bin/env bash
# The one gate: on a bare clone it makes .venv, and runs ruff, the type checker and pytest.
# Further arguments go to pytest: scripts/test.sh tests/test_readme.py
set -euo pipefail
cd "$(dirname "$0")/.."

source scripts/environment.sh

# One thread per test process: the tests run beside each other, and many small matrices gain nothing from threads.
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 OMP_NUM_THREADS=1 MPLBACKEND=Agg
.venv/bin/ruff check .
.venv/bin/mypy
.venv/bin/mypy scripts/*.py
# loadfile: what a file of tests prepares once is not prepared again by another process. tests/conftest.py orders files.
.venv/bin/pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
