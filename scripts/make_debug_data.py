"""Draw toy radiographs in the layout of the NIH ChestX-ray14 release, so that everything runs where there is no data.

Two lungs, a heart, and a mark for each finding: enough for every stage to have something to do, and nothing more. It
does not promise anatomy, physics or difficulty; no number computed from these images means anything.

::

    python scripts/make_debug_data.py data/debug
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

SIZE = 64
N_PATIENTS, N_TEST_PATIENTS = 180, 50
# Finding: share of the training patients, of the test patients; chosen to have head, medium and tail findings (< 1 %).
FINDINGS = {"Effusion": (0.3, 0.3), "Infiltration": (0.2, 0.2), "Cardiomegaly": (0.08, 0.2),
            "Pneumothorax": (0.06, 0.2)}
TAIL = {"Hernia": 4, "Mass": 4}  # training images, each of a patient of its own; a fifth of the test patients have each
HEADER = ("Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
          "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]")


def blob(x: float, y: float, width: float, height: float) -> np.ndarray:
    """A soft ellipse of height 1, (SIZE, SIZE) float; centre and radii as fractions of the image."""
    rows, columns = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    distance = ((columns - x) / width) ** 2 + ((rows - y) / height) ** 2
    return 1 / (1 + np.exp(np.clip(8 * (distance - 1), -50, 50)))


def draw(findings: set[str], rng: np.random.Generator) -> np.ndarray:
    """One toy radiograph with the findings given, (SIZE, SIZE) uint8."""
    x, y = rng.normal(0.5, 0.02), rng.normal(0.48, 0.02)
    heart = 0.24 if "Cardiomegaly" in findings else 0.14
    lungs = blob(x - 0.2, y, 0.15, 0.3) + blob(x + 0.2, y, 0.15, 0.3)
    image = 0.75 - 0.5 * lungs + 0.4 * blob(x + 0.05, y + 0.15, heart, 0.15)
    side = rng.choice([-1, 1])
    marks = {"Effusion": (0.5, 0.2, 0.25, 0.14, 0.12), "Infiltration": (0.25, 0.2, 0.0, 0.1, 0.14),
             "Pneumothorax": (-0.3, 0.24, -0.2, 0.07, 0.14), "Mass": (0.6, 0.18, -0.1, 0.06, 0.06),
             "Hernia": (-0.4, 0.02, 0.14, 0.07, 0.07)}
    for name in sorted(findings & marks.keys()):
        strength, across, down, width, height = marks[name]
        image += strength * blob(x + side * across, y + down, width, height)
    ribs = 0.03 * np.sin(np.linspace(0, 16 * np.pi, SIZE))[:, None]
    noisy = image + ribs + rng.normal(0, 0.02, (SIZE, SIZE))
    return np.asarray(255 * np.clip(noisy, 0, 1), dtype=np.uint8)


def patients(rng: np.random.Generator) -> list[tuple[bool, set[str]]]:
    """Whether each patient is a test patient, and the findings of all of that patient's images."""
    everyone = []
    rare = [name for name, count in TAIL.items() for _ in range(count)]
    for number in range(N_PATIENTS + N_TEST_PATIENTS):
        test = number >= N_PATIENTS
        findings = {name for name, shares in FINDINGS.items() if rng.random() < shares[test]}
        if test:
            findings |= {name for name in TAIL if rng.random() < 0.2}
        elif number < len(rare):
            findings |= {rare[number]}
        everyone.append((test, findings))
    return everyone


def make(folder: Path, *, seed: int = 0) -> None:
    """Write images, label file and split lists; raises ``FileExistsError`` when the folder exists."""
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    rows = []
    lists: dict[bool, list[str]] = {False: [], True: []}
    for number, (test, findings) in enumerate(patients(rng), start=1):
        age, sex = int(rng.integers(20, 90)), rng.choice(["M", "F"])
        n_images = 1 if findings & TAIL.keys() and not test else int(rng.integers(2, 6))
        for follow_up in range(n_images):
            name = f"{number:08d}_{follow_up:03d}.png"
            Image.fromarray(draw(findings, rng)).save(folder / "images" / name)
            view = rng.choice(["PA", "AP"], p=[0.6, 0.4])
            listed = "|".join(sorted(findings)) or "No Finding"
            rows.append([name, listed, follow_up, number, age, sex, view, SIZE, SIZE, 1.0, 1.0])
            lists[test].append(name)
    body = pd.DataFrame(rows).to_csv(index=False, header=False)
    (folder / "Data_Entry_2017_v2020.csv").write_text(f"{HEADER}\n{body}", encoding="utf-8")
    for test, name in ((False, "train_val_list.txt"), (True, "test_list.txt")):
        (folder / name).write_text("\n".join(lists[test]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to write; must not exist")
    folder = parser.parse_args().folder
    if folder.exists():
        parser.error(f"{folder} exists; wanted: a new folder")
    make(folder)
