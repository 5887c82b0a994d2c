"""A contact sheet of the phantom's findings: each one absent, then from barely visible to gross, in several patients.

::

    python scripts/draw_phantom.py docs/phantom.png
"""

import argparse
import logging
from pathlib import Path

import numpy as np

from classify.figures.sheets import contact_sheet
from cohort.errors import run_command
from cohort.phantom.exam import Exam, Patient, Sign
from cohort.phantom.prevalence import FINDINGS
from cohort.phantom.radiograph import render
from cohort.phantom.sites import SITES

log = logging.getLogger(__name__)

SEVERITIES = (0.05, 0.35, 0.7, 1.0)
PER_ROW = 2  # findings


def example(label: str, row: int, column: int, severity: float | None) -> np.ndarray:
    """The image of the patient of a row and column, uint8 (128, 128); without the finding where severity is None."""
    person = 100 * row + column
    signs = () if severity is None else (Sign(label=label, severity=severity, seed=7919 * row + 31 * column),)
    return render(Exam(
        image_id="", study_id="", patient=Patient(patient_id="", sex="F" if person % 3 == 0 else "M", seed=person),
        site=SITES["A"], view="AP" if column == 3 else "PA", age=35 + 9 * (person % 5), signs=signs, seed=person,
    ))


def main() -> None:
    """Write the sheet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="PNG to write")
    out: Path = parser.parse_args().out
    images, captions = [], []
    for row, label in enumerate(FINDINGS):
        images.append(example(label, row, 1, None))  # the patient who has it at the lowest severity beside it
        captions.append(f"without {label}")
        for column, severity in enumerate(SEVERITIES, start=1):
            images.append(example(label, row, column, severity))
            captions.append(f"{label} {severity:g}")
    out.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(images, captions, columns=PER_ROW * (1 + len(SEVERITIES))).save(out, optimize=True)
    log.info("%s: %d findings", out, len(FINDINGS))


if __name__ == "__main__":
    run_command(main)
