"""From images to studies: all images of one study have one opinion, and count once.

A radiologist reports a study, not an image, and MIMIC-CXR's labels are those of reports. The opinion of a study is the
mean probability of its images, those from the front (PA, AP, or a view that is not known) and those from the side each
averaged first, so that a study with three frontal films and a lateral one hears both alike (Yamagishi and Hanaoka 2024,
2410.10710, and their code). CheXpert took the highest probability instead (Irvin et al. 2019, section 4): that grows
with the number of images, which says something of a patient, but not what the model sees.

A finding is there when an image of the study has it, unknown when none has it and one is unknown, and else absent: the
logical "or" of values that may be unknown, so labels that contradict each other count as positive. An image without a
study is a study of its own. Only validation and test are pooled: training and the groups of findings stay by image.

Not promised: comparability of a metric by study with one by image; the two count different things.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import sparse

from classify.comparison.measuring import Scored, read_scored
from classify.ensembling.averaging import mix
from cohort.tables import Cohort

LATERAL = "LATERAL"
UNITS = ("image", "study")
"""What can be scored."""


def read_units(
    folders: Mapping[tuple[str, int], Path], cohort: Cohort, *, weights: str, unit: str
) -> tuple[dict[str, Scored], Cohort]:
    """The predictions in ``folders`` (``measuring.read_scored``) by image or by study, and a cohort to match.

    Raises ``TailfillError`` as ``read_scored`` does.
    """
    scored = read_scored(folders, cohort, weights=weights)
    return pool_studies(scored, cohort) if unit == "study" else (scored, cohort)


def unit_sentences(images: Cohort, units: Cohort) -> list[str]:
    """What a reader must know where the units of test are not images; ``units``: from ``read_units``."""
    n_images, n_units = len(images.split("test")), len(units.split("test"))
    if n_images == n_units:
        return []
    return [f"Scored by study: {n_units:,} test studies of {n_images:,} images. Wherever images of validation or test "
            "are counted, studies are meant."]


def pool_studies(scored: Mapping[str, Scored], cohort: Cohort) -> tuple[dict[str, Scored], Cohort]:
    """Each split by study, and the cohort to match: in its validation and test split a row is a study.

    Such a row has the image_id, the age and the sex of the study's first image, by id, and its view where all have one.
    ``scored`` holds the splits that are pooled, images sorted by id; so are the studies.
    """
    pooled, frames = {}, [cohort.frame[~cohort.frame["split"].isin(scored)]]
    for split, part in scored.items():
        images = cohort.split(split).sort_values("image_id", ignore_index=True)
        study, shares = study_numbers(images), study_shares(images)
        labels = any_positive(part.labels, study)
        frame = images[~pd.Series(study).duplicated()].reset_index(drop=True)
        views = images["view"].fillna("").groupby(study).agg(["first", "nunique"])
        frame = frame.assign(view=views["first"].where((views["nunique"] == 1) & (views["first"] != ""), None))
        for at, label in enumerate(cohort.labels):
            frame[label] = pd.array(labels[:, at], dtype="Float64").astype("Int8")
        people = np.unique(frame["patient_id"].to_numpy(dtype=str), return_inverse=True)[1]
        pooled[split] = Scored(labels=labels, patients=people,
                               logits={key: mix(logits, shares) for key, logits in part.logits.items()})
        frames.append(frame)
    return pooled, replace(cohort, frame=pd.concat(frames, ignore_index=True))


def study_numbers(images: pd.DataFrame) -> np.ndarray:
    """(n,) int: the study of each image, from 0 on in the order of their first images."""
    own = images["study_id"].isna()
    keys = np.where(own, "image " + images["image_id"].astype(str),
                    "study " + images["patient_id"].astype(str) + "\n" + images["study_id"].fillna("").astype(str))
    return np.asarray(pd.factorize(keys)[0])


def study_shares(images: pd.DataFrame) -> sparse.csr_array:
    """(n_studies, n_images) float64: the share of each image in its study; rows sum to 1."""
    study, side = study_numbers(images), (images["view"] == LATERAL).to_numpy(dtype=bool, na_value=False)
    place = study * 2 + side
    n_of_place = np.bincount(place, minlength=2 * (study.max(initial=-1) + 1))
    n_places = (n_of_place.reshape(-1, 2) > 0).sum(axis=1)
    share = 1 / (n_of_place[place] * n_places[study])
    return sparse.csr_array((share, (study, np.arange(len(study)))), shape=(len(n_places), len(study)))


def any_positive(labels: np.ndarray, study: np.ndarray) -> np.ndarray:
    """The labels of studies: float64 (n_images, n_labels) of 1, 0 and NaN -> float64 (n_studies, n_labels)."""
    n_studies = study.max(initial=-1) + 1
    positive, unknown = np.zeros((n_studies, labels.shape[1]), bool), np.zeros((n_studies, labels.shape[1]), bool)
    np.logical_or.at(positive, study, labels == 1)
    np.logical_or.at(unknown, study, np.isnan(labels))
    return np.where(positive, 1.0, np.where(unknown, np.nan, 0.0))
