"""What a means of a rehearsal gained: AP against repeats and oracle, and whether its images show what was asked for.

All on validation images and images made; ``scripts/rehearsal_means.py`` calls it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from rehearsal_changes import BASE, BOTH
from rehearsal_runs import Rehearsal
from sklearn.metrics import roc_auc_score

from classify.comparison.intervals import bootstrap, patient_draws
from classify.comparison.measuring import Scored
from classify.comparison.metrics import METRICS, ClassMetrics
from classify.comparison.pairing import Source
from classify.comparison.pairs import HARMONISED_ARM, RIVALS
from classify.comparison.recovered import ORACLE, share_cells
from classify.learning.features import load_features, logits_of_features
from classify.learning.models import load_classifier
from classify.rehearsal.choices import Cell
from classify.rehearsal.shares import RIVAL
from classify.slots import label_matrix
from cohort.pixels import load_images
from cohort.tables import Cohort, images_schema, plan_schema, read_table
from synth.judging.evidence import NEGATIVE
from synth.measuring.drawn import matched_pairs

METRIC = "AP"
READER = "oracle-full"


def logits_of(folder: Path, cohort: Cohort, arm: str) -> np.ndarray:
    """EMA logits of the cohort's validation images, float32 (n, n_labels)."""
    stage = folder / "train" / arm / "seed_0"
    model, card = load_classifier(stage)
    card.require_labels(cohort.labels, where=stage)
    cache = (folder / "cache").resolve()
    images = load_images(cohort.image_paths(cohort.split("val")), card.image_size, cache)
    logits: np.ndarray = logits_of_features(model, load_features(model, images, card, cache=cache))
    return logits


def drawn_in(
    folders: Sequence[Path], cells: Sequence[Cell], rehearsal: Rehearsal, cohort: Cohort
) -> dict[str, tuple[float, float]]:
    """Finding, and ``mean`` of all, to how well it can be read in the images that a means has made, and in real ones.

    AUROC of the scores of arm ``oracle-full``: images asked for the finding alone against their matched negatives
    (synth/measuring/drawn.py), and validation images with it against those without; mean over thinnings, .5: it cannot
    be read. Who has learnt from all real images with the finding, and from no synthetic one, is the best reader there
    is, and knows the real images that some begin from: those have no pairs. Empty in a rehearsal without that arm,
    null where there is no pair.
    """
    if READER not in rehearsal.section.arms:
        return {}
    found: dict[str, list[tuple[float, float]]] = {}
    frame = cohort.split("val")
    for folder, cell in zip(folders, cells, strict=True):
        stage = rehearsal.folder / cell.name / "train" / READER / "seed_0"
        model, card = load_classifier(stage)
        made = read_table(folder / "images" / "images.parquet", images_schema()).query("status == 'ok'")
        made = made.merge(read_table(folder / "plan" / "plan.parquet", plan_schema(cohort.labels)), on="sample_id")
        cache = (folder / "cache").resolve()
        images = load_images([folder / "images" / path for path in made["path"]], card.image_size, cache)
        scores = logits_of_features(model, load_features(model, images, card, cache=cache))
        real = logits_of(rehearsal.folder / cell.name, cohort, READER)
        negative = (made["charged_to"] == NEGATIVE).to_numpy()
        noise = made["seed"].where(made["init_image_id"].isna(), -1).to_numpy()
        n_asked = (made[list(cell.findings)] == 1).sum(axis=1)
        for finding in cell.findings:
            at, known = cohort.labels.index(finding), frame[finding].notna().to_numpy()
            alone = ((made[finding] == 1) & (n_asked == 1)).fillna(False).to_numpy(dtype=bool)
            pairs = matched_pairs(asked=alone, negative=negative, noise=noise)
            found.setdefault(finding, []).append((
                roc_auc_score(alone[pairs], scores[pairs, at]) if pairs.any() else np.nan,
                roc_auc_score(frame[finding][known] == 1, real[known, at])))
    means = {finding: (float(np.mean([one[0] for one in pairs])), float(np.mean([one[1] for one in pairs])))
             for finding, pairs in found.items()}
    return means | {"mean": tuple(np.mean(list(means.values()), axis=0).tolist())}


def measure(
    folders: Mapping[str, Sequence[Path]], arms: Mapping[str, Sequence[str]], cohort: Cohort, findings: Sequence[str],
    *, n_draws: int,
) -> Source:
    """AP of every means and arm on the validation images and on resamples of their patients; seeds are thinnings.

    ``folders``, ``arms``: name of a means to a folder per thinning, and to arms in them, here called ``MEANS ARM``.
    """
    frame = cohort.split("val")
    targets = label_matrix(frame, list(findings)).astype(np.float64)
    patients = pd.factorize(frame["patient_id"], sort=True)[0]
    draws = patient_draws(patients.max() + 1, n_draws, np.random.default_rng(1))
    columns, at = [cohort.labels.index(finding) for finding in findings], METRICS.index(METRIC)
    pairs = [(name, arm) for name in folders for arm in arms[name]]
    values, resampled = [], []
    for name, arm in pairs:
        for folder in folders[name]:
            logits = logits_of(folder, cohort, arm)[:, columns].astype(np.float64)
            each = [ClassMetrics(labels=targets[:, k], logits=logits[:, k]) for k in range(len(findings))]
            values.append([evaluate(np.ones((len(frame), 1)))[at] for evaluate in each])
            resampled.append(bootstrap(each, patients=patients, draws=draws)[:, [at]])
    shape = (len(pairs), len(next(iter(folders.values()))), len(findings), 1)
    members = {"mean": list(range(len(findings)))} | {finding: [k] for k, finding in enumerate(findings)}
    return Source(values=np.array(values).reshape(shape), resampled=np.stack(resampled).reshape(*shape, n_draws),
                  arms=[" ".join(pair) for pair in pairs], members=members, metrics=(METRIC,),
                  scored=Scored(labels=targets, patients=patients, logits={}))


def tabulate(
    source: Source, shown: Mapping[str, Sequence[str]], drawn: Mapping[str, Mapping[str, tuple[float, float]]]
) -> pd.DataFrame:
    """One row per means, arm of ``shown`` and finding (``mean``: all of them), with 95 % intervals.

    AP; gain over the arm's rival; oracle: its gain over the repeats; share of it, null with a reason unless the
    oracle's interval is above 0; against_base: AP minus that of the base's arm, harmonised if this one is; drawn,
    drawn_if_real: ``drawn_in`` of the means, null for arms that hold none of its images.
    """
    rows = []
    for name, arm in [(name, arm) for name, arms in shown.items() for arm in arms]:
        own, rival, oracle, repeats = (f"{name} {other}" for other in (arm, RIVALS[arm], ORACLE, RIVAL))
        base = BOTH[arm.endswith(HARMONISED_ARM)]
        pairs = {"gain": (own, rival), "oracle": (oracle, repeats), "against_base": (own, f"{BASE} {base}")}
        for label, at in source.members.items():
            row: dict[str, object] = {"means": name, "arm": arm, "finding": label, "n_seeds": source.values.shape[1],
                                      "AP": float(source.per_seed(own, None, at, 0).mean())}
            for key, pair in pairs.items():
                one = source.interval(*pair, at, 0)
                row |= {key: one.estimate, f"{key}_low": one.low, f"{key}_high": one.high}
            read = (np.nan, np.nan) if arm.startswith(ORACLE) else drawn[name].get(label, (np.nan, np.nan))
            row |= {"drawn": read[0], "drawn_if_real": read[1]}
            rows.append(row | share_cells(source.interval(oracle, repeats, at, 0), source.gain(own, rival, at, 0),
                                          source.gain(oracle, repeats, at, 0), rival=RIVAL))
    return pd.DataFrame(rows)
