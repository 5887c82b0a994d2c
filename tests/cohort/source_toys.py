"""Tiny releases with invented content in the layouts of CheXpert, MIMIC-CXR-JPG, PadChest and VinDr-CXR, and more.

Each writes its files below a folder and returns the command line that reads them, the label file that a test may spoil,
and a row's text in it. Images are not written: these tests are about tables.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from cohort.vocabulary.findings import names_of
from cohort.vocabulary.labels import CHEXPERT, NIH_CXR_LT, VINDR

N = 60
RNG = np.random.default_rng(0)


def write_chexpert(folder: Path) -> tuple[list[object], Path]:
    """60 images of 30 patients in train, 12 in valid."""
    for name, start, n in (("train", 0, N), ("valid", 900, 12)):
        frame = pd.DataFrame({
            "Path": [f"CheXpert-v1.0-small/{name}/patient{start + i // 2:05d}/study1/view{1 + i % 2}_frontal.jpg"
                     for i in range(n)],
            "Sex": ["Female", "Male"] * (n // 2), "Age": [str(30 + i) for i in range(n)],
            "Frontal/Lateral": ["Frontal", "Lateral"] * (n // 2), "AP/PA": ["AP", ""] * (n // 2),
            **{label: RNG.choice(["1.0", "0.0", "-1.0", ""], n) for label in CHEXPERT.labels}})
        for label in CHEXPERT.labels:  # each has every value, whatever was drawn
            frame.loc[:3, label] = ["1.0", "0.0", "-1.0", ""]
        folder.mkdir(parents=True, exist_ok=True)
        frame.to_csv(folder / f"{name}.csv", index=False)
    return ["chexpert", "--root", folder, "--check", "none"], folder / "train.csv"


def write_mimic(folder: Path) -> tuple[list[object], Path]:
    """60 images of 30 studies, one of which has no labels."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = pd.DataFrame({"dicom_id": [f"d{i:03d}" for i in range(N)],
                        "subject_id": [str(10_000_000 + i // 4) for i in range(N)],
                        "study_id": [str(50_000_000 + i // 2) for i in range(N)]})
    ids.assign(ViewPosition=["PA", "LATERAL"] * (N // 2), StudyDate="21500704").to_csv(
        folder / "mimic-cxr-2.0.0-metadata.csv", index=False)
    split = ["train" if i < 44 else "validate" if i < 52 else "test" for i in range(N)]
    ids.assign(split=split).to_csv(folder / "mimic-cxr-2.0.0-split.csv", index=False)
    studies = ids[["subject_id", "study_id"]].drop_duplicates().iloc[1:]
    cells = {label: RNG.choice(["1.0", "0.0", "-1.0", ""], len(studies)) for label in CHEXPERT.labels}
    studies.assign(**cells).to_csv(folder / "mimic-cxr-2.0.0-chexpert.csv.gz", index=False)
    return ["mimic", "--root", folder, "--check", "none"], folder / "mimic-cxr-2.0.0-metadata.csv"


def write_padchest(folder: Path) -> tuple[list[object], Path]:
    """60 images of 30 patients; every word of the vocabulary, a space before some, and words that mean nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    words = [word for owns in names_of("padchest").values() for word in owns]
    lists = [[words[(i * 2 + k) % len(words)] if k % 2 else " " + words[(i * 2 + k) % len(words)] for k in range(3)]
             for i in range(N)]
    lists[0], lists[1], lists[2] = ["exclude"], ["unchanged"], ["normal", "sternotomy"]
    frame = pd.DataFrame({
        "ImageID": [f"{i:04d}_x.png" for i in range(N)], "ImageDir": [str(i % 3) for i in range(N)],
        "StudyDate_DICOM": "20140915", "StudyID": [f"{i // 2}" for i in range(N)],
        "PatientID": [f"{8398604886942 + i // 2}" for i in range(N)], "PatientBirth": "1950.0",
        "PatientSex_DICOM": ["F", "M"] * (N // 2), "Projection": ["PA", "L"] * (N // 2),
        "MethodLabel": ["Physician", "RNN_model"] * (N // 2), "Report": "sin, hallazg",
        "Labels": list(map(str, lists))})
    file = folder / "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
    frame.to_csv(file, index=False)
    return ["padchest", "--root", folder, "--check", "none"], file


def write_vindr(folder: Path) -> tuple[list[object], Path]:
    """30 train images with three readers each, 10 test images with a consensus."""
    folder.mkdir(parents=True, exist_ok=True)
    own = {label: next(iter(names_of("vindr")[label])) for label in VINDR.labels}
    train = pd.DataFrame({"image_id": [f"t{i // 3:03d}" for i in range(90)],
                          "rad_id": [f"R{1 + i % 3}" for i in range(90)],
                          **{name: (np.arange(90) % 3 <= np.arange(90) // 3 % 4 - 1).astype(int)
                             for name in own.values()}})
    train.to_csv(folder / "image_labels_train.csv", index=False)
    test = pd.DataFrame({"image_id": [f"e{i:03d}" for i in range(10)], **dict.fromkeys(own.values(), 1)})
    test.rename(columns={"Other diseases": "Other disease"}).to_csv(folder / "image_labels_test.csv", index=False)
    return ["vindr", "--root", folder, "--check", "none"], folder / "image_labels_train.csv"


def write_images(folder: Path) -> tuple[list[object], Path]:
    """60 images in Hugging Face's layout, a metadata file per split."""
    for name, n in (("train", 40), ("validation", 10), ("test", 10)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        frame = pd.DataFrame({"file_name": [f"{name}{i}.png" for i in range(n)], "Mass": [i % 2 for i in range(n)],
                              "Nodule": [i % 3 % 2 for i in range(n)],
                              "patient_id": [f"{name}{i // 2}" for i in range(n)]})
        if name == "test":
            lines = [json.dumps(row) for row in frame.to_dict("records")]
            (folder / name / "metadata.jsonl").write_text("\n".join(lines) + "\n")
        else:
            frame.to_csv(folder / name / "metadata.csv", index=False)
    return ["images", "--root", folder, "--check", "none", "--columns.labels", '["Mass","Nodule"]'], \
        folder / "train" / "metadata.csv"


def write_long_tail(folder: Path) -> tuple[list[object], Path]:
    """60 images with NIH's own table and NIH-CXR-LT's three, whose patients have leading zeros."""
    (folder / "images").mkdir(parents=True)
    names = [f"{1 + i // 2:08d}_{i % 2:03d}.png" for i in range(N)]
    for name in names:
        (folder / "images" / name).touch()
    own = {"Finding Labels": "No Finding", "Patient ID": [str(1 + i // 2) for i in range(N)], "Patient Age": "50",
           "Patient Gender": "M", "View Position": "PA"}
    pd.DataFrame({"Image Index": names, **own}).to_csv(folder / "Data_Entry_2017_v2020.csv", index=False)
    for split, part in (("train", slice(0, 40)), ("val", slice(40, 50)), ("test", slice(50, 60))):
        frame = pd.DataFrame({"id": names[part], **{label: (np.arange(N)[part] % (2 + at) == 0).astype(int)
                                                    for at, label in enumerate(NIH_CXR_LT.labels)},
                              "subj_id": [name[:8] for name in names[part]]})
        frame.to_csv(folder / f"miccai2023_nih-cxr-lt_labels_{split}.csv", index=False)
    return (["nih", "--root", folder, "--check", "none", "--label-space", "nih_cxr_lt"],
            folder / "miccai2023_nih-cxr-lt_labels_train.csv")


WRITERS = {"chexpert": write_chexpert, "mimic": write_mimic, "padchest": write_padchest, "vindr": write_vindr,
           "images": write_images, "nih_cxr_lt": write_long_tail}
