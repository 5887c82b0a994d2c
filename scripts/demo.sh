#!/usr/bin/env bash
# The demo: on a bare clone it makes .venv, draws phantom radiographs, and takes them through the whole pipeline: a
# generator from another hospital is fine-tuned, its images judged, and what they bought compared with its rivals.
# Safe to run again: what is complete is not done twice. Further arguments go to scripts/experiment.py.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh

# glibc would give freed blocks back to the system and take them anew at each step: up to three times the time (NOTES.md)
export MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592 MALLOC_TOP_PAD_=268435456
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1
exec .venv/bin/python scripts/experiment.py configs/demo.yaml "$@"
