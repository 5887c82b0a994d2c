#!/usr/bin/env bash
# Train the models that are shipped in models/: generator and backbone of the phantom's site B. Safe to run again.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
python=.venv/bin/python

for stage in cohort.prepare synth.autoencoder synth.finetune; do
    $python -m "$stage" --config configs/phantom_generator.yaml
done
for part in more scarce; do
    for stage in cohort.prepare synth.finetune; do
        $python -m "$stage" --config "configs/phantom_generator_$part.yaml"
    done
done
$python -m cohort.prepare --config configs/phantom_backbone.yaml
for stage in train predict; do
    $python -m "classify.$stage" --config configs/phantom_backbone.yaml --arm real --arm-seed 2000
done
for stage in cohort.prepare synth.autoencoder; do # in the eyes of the backbone
    $python -m "$stage" --config configs/phantom_decoder.yaml
done
$python scripts/export_models.py
