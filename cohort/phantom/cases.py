"""Who comes to a phantom hospital, and with what: patients, studies, findings, labels and splits, before any drawing.

A finding is one latent number per patient and study (see ``prevalence``): above its threshold the finding is there, and
how far above is its severity. So findings persist, fade and come back by one rule, and frequencies are exact.

Everything is drawn in batches of ``BATCH`` patients with streams of their own, so the first n cases are the same for
any number asked for. Splits and label noise have their own streams too: the same people stand in front of the detector
whatever the shares, the enrichment, the noise, or which findings are chosen.

Not promised: that case n of one site resembles case n of another; sites and seeds share nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice

import numpy as np
from scipy.special import ndtr

from cohort.phantom.exam import Exam, Patient, Sign
from cohort.phantom.prevalence import CAUSES, CONTROLS, FINDINGS, VIEW_AP, derive, loadings
from cohort.phantom.settings import PhantomConfig
from cohort.phantom.sites import CASE_MIXES, SITES
from cohort.tables import SPLITS

BATCH = 512
"""Patients drawn together; another value is another phantom."""
N_STUDIES = (0.68, 0.20, 0.08, 0.04)
"""Shares of patients with 1, 2, 3 and 4 studies; few, so that a tail class does not hang on two patients."""
SECOND_IMAGE = 0.25
"""Share of the studies with two images."""
AGE_SD, YOUNGEST, OLDEST = 16.0, 18.0, 95.0
"""Spread and bounds of the age at the first study, years."""
YEARS_BETWEEN = 0.4
"""Mean of the exponential gap between two studies, years."""
FEMALE = 0.478
"""Share of women (MIMIC-CXR's)."""
MOST = len(N_STUDIES)
SIGNS, COINS = tuple(FINDINGS), tuple(CONTROLS)


@dataclass(frozen=True, kw_only=True)
class Case:
    """An image to draw and its row."""

    exam: Exam
    labels: np.ndarray
    """(n_labels,) bool, as recorded: with noise outside test."""
    split: str


@dataclass(frozen=True, kw_only=True)
class People:
    """A batch of p patients with up to s = 4 studies each, as drawn whatever the settings but seed and site."""

    female: np.ndarray
    """(p,) bool."""
    age: np.ndarray
    """(p, s) float64, years."""
    images: np.ndarray
    """(p, s) int: images of each study, 0 where there is no study."""
    rarity: np.ndarray
    """(p, s, signs + 1) float64 in (0, 1), uniform: a sign is there where this is below its share; last the AP view."""
    coin: np.ndarray
    """(p, controls) float64 in [0, 1): likewise."""
    seeds: np.ndarray
    """(p, 1 + signs + 2 s) int64: of the patient, of each sign, of each image."""


def _stream(config: PhantomConfig, number: int, use: int) -> np.random.Generator:
    """A batch's generator for its people (0), their splits (1) or the noise in their labels (2)."""
    return np.random.default_rng([config.seed, list(SITES).index(config.site), number, use])


def draw_people(config: PhantomConfig, number: int) -> People:
    """Batch ``number``, from 0 on, of a site and seed."""
    rng = _stream(config, number, 0)
    mix = CASE_MIXES[config.site]
    findings = [*FINDINGS.values(), VIEW_AP]
    shared, own = loadings(findings)
    lasts = np.array([finding.lasts for finding in findings])
    causes = rng.standard_normal((BATCH, 1 + MOST, len(CAUSES)))  # first the patient's constant part, then each study's
    latent = causes @ shared.T + own * rng.standard_normal((BATCH, 1 + MOST, len(findings)))
    latent = np.sqrt(lasts) * latent[:, :1] + np.sqrt(1 - lasts) * latent[:, 1:]
    first = np.clip(mix.mean_age + AGE_SD * causes[:, 0, CAUSES.index("age")], YOUNGEST, OLDEST)
    gaps = rng.exponential(YEARS_BETWEEN, (BATCH, MOST)) * (np.arange(MOST) > 0)
    n_studies = 1 + np.searchsorted(np.cumsum(N_STUDIES)[:-1], rng.random(BATCH), side="right")
    n_images = 1 + (rng.random((BATCH, MOST)) < SECOND_IMAGE)
    return People(
        female=rng.random(BATCH) < FEMALE, age=first[:, None] + gaps.cumsum(axis=1),
        images=n_images * (np.arange(MOST) < n_studies[:, None]), rarity=ndtr(-latent),
        coin=rng.random((BATCH, len(CONTROLS))),
        seeds=rng.integers(0, 2**32, (BATCH, 1 + len(FINDINGS) + 2 * MOST)),
    )


def draw_splits(config: PhantomConfig, number: int) -> np.ndarray:
    """(p,) int: position in ``SPLITS`` of each patient of a batch."""
    bounds = np.cumsum([1 - config.val_share - config.test_share, config.val_share])
    return np.searchsorted(bounds, _stream(config, number, 1).random(BATCH), side="right")


def record(config: PhantomConfig, number: int, present: np.ndarray, split: np.ndarray) -> np.ndarray:
    """(p, s, n_labels) bool: what the hospital wrote down.

    ``present`` is bool (p, s, k), the truth of the chosen signs, then the controls. Outside test a positive is missed
    at the label's rate, and as many negatives are taken for one; derived labels follow from what was written.
    """
    names = config.drawn + config.controls
    noise = config.label_noise if isinstance(config.label_noise, dict) else dict.fromkeys(names, config.label_noise)
    rate = np.array([noise.get(name, 0.0) for name in names])[None] * (split != SPLITS.index("test"))[:, None]
    share = config.shares(names)[split]
    chance = _stream(config, number, 2).random((BATCH, MOST, len(SIGNS + COINS)))
    chance = chance[..., [(SIGNS + COINS).index(name) for name in names]]
    written = np.where(present, chance >= rate[:, None], chance < (rate * share / (1 - share))[:, None])
    return derive({name: written[..., at] for at, name in enumerate(names)}, config.labels)


def draw_batch(config: PhantomConfig, number: int) -> Iterator[Case]:
    """The cases of a batch that ``config.only_with`` lets through, by patient, study and image."""
    people, split = draw_people(config, number), draw_splits(config, number)
    columns = [SIGNS.index(name) for name in config.drawn]
    severity = 1 - people.rarity[..., columns] / config.shares(config.drawn)[split][:, None]
    coin = people.coin[:, [COINS.index(name) for name in config.controls]] < config.shares(config.controls)[split]
    coin = np.broadcast_to(coin[:, None], (BATCH, MOST, coin.shape[1]))
    labels = record(config, number, np.concatenate([severity > 0, coin], axis=2), split)
    wanted = np.isin(config.labels, config.asked_for)
    keep = labels[..., wanted].any(axis=2) if config.only_with else np.ones((BATCH, MOST), dtype=bool)
    for p, s in np.argwhere(keep & (people.images > 0)):
        for image in range(people.images[p, s]):
            exam = _exam(config, people, number, (p, s, image), severity[p, s])
            yield Case(exam=exam, labels=labels[p, s], split=SPLITS[split[p]])


def _exam(
    config: PhantomConfig, people: People, number: int, at: tuple[int, int, int], severity: np.ndarray
) -> Exam:
    """One image's exam; ``at`` is its patient, study and image in the batch, ``severity`` (k,) of the chosen signs."""
    p, s, image = at
    patient_id = f"{config.site}{config.seed}-{number * BATCH + p:06d}"
    seeds = people.seeds[p].tolist()
    signs = tuple(
        Sign(label=name, severity=round(float(value), 6), seed=seeds[1 + SIGNS.index(name)])
        for name, value in zip(config.drawn, severity, strict=True) if value > 0
    )
    return Exam(
        image_id=f"{patient_id}-{s}-{image}", study_id=f"{patient_id}-{s}", site=SITES[config.site],
        patient=Patient(patient_id=patient_id, sex="F" if people.female[p] else "M", seed=seeds[0]),
        view="AP" if people.rarity[p, s, -1] < CASE_MIXES[config.site].ap else "PA",
        age=round(float(people.age[p, s]), 1), signs=signs, seed=seeds[1 + len(SIGNS) + 2 * s + image],
    )


def draw_cases(config: PhantomConfig) -> Iterator[Case]:
    """The cohort's cases, ``config.images`` of them; the first n are the same for any number."""
    batches = (case for number in count() for case in draw_batch(config, number))
    return islice(batches, config.images)
