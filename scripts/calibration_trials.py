"""One trial: draw seeds and test patients, train every arm's heads, and ask the project's own statistics.

The estimand. An interval speaks of one difference between two arms, given one real training cohort and one generator
(here: one finite pool of images); what varies is the seed (layout of slots, images drawn, order) and the patients of
the test set. So a trial keeps its cohort, draws new seeds for every arm, and new test patients, with replacement, from
a population whose own value is known. The truth of a difference is its mean over many further seeds on the whole
population. An arm against itself gets other seeds for its twin, for equal ones would be the same model.

Not promised: that AP of a small test set has no bias of its own; if it has, coverage shows it.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from calibration_cases import plant
from calibration_heads import Task, train_heads
from calibration_pools import Pools
from calibration_slots import Dealer

from classify.arms.layout import ArmConfig
from classify.comparison.controls import control_rows
from classify.comparison.intervals import Array, Interval, bootstrap, patient_draws
from classify.comparison.measuring import Scored
from classify.comparison.metrics import METRICS, ClassMetrics, support
from classify.comparison.pairing import Comparison, Source
from classify.comparison.recovered import ORACLE, Share, fieller_set
from classify.learning.fitting import Recipe
from classify.slots import Slots, label_matrix, prevalence
from classify.verdict.deciding import Case, decide
from cohort.vocabulary.labels import CONTROL

AGAIN = "again"
"""The twin of an arm that is compared with itself."""
SEEDS = (3, 5)
"""Seeds per arm; with fewer, the first of them."""
METRIC = "AP"
Tables = dict[str, list[dict[Hashable, Any]]]
"""Rows by table."""
TABLES = ("truth", "intervals", "verdicts", "recovered", "controls")
CRITIC_SEEDS = (1000, 1001)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How trials are trained and measured."""

    seed: int = 0
    steps: int = 300
    """Optimiser steps of a head; a critic's are twice as many."""
    slots_per_class: int = 100
    """As in ``ArmConfig``."""
    test_patients: int = 800
    """Patients of a test set."""
    n_draws: int = 400
    """Patient resamples; ``compare`` has 2,000 by default."""
    margin: float = 0.02
    """Differences that count as none, as in ``compare``."""

    @property
    def recipe(self) -> Recipe:
        """The product's settings for the training of a head."""
        return Recipe(name="calibrate", seed=(), steps=self.steps, batch_size=32, lr=0.01, warmup_share=0.05,
                      weight_decay=0.05, ema_decay=0.995, grad_clip=1.0, phase_2_share=0.0, checkpoint_every=self.steps)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What is compared."""

    part: str
    number: int
    cohort: int
    arms: tuple[str, ...]
    """``duplicate``, ``oracle``, names of planted sets, or ``again``: the first one with other seeds."""
    on_population: bool = False
    """Whether it adds to the truth, rather than being tested."""

    @property
    def heads(self) -> int:
        """How many models it takes."""
        return len(self.arms) * max(SEEDS)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Runs trials."""

    dealer: Dealer
    settings: Settings

    @property
    def pools(self) -> Pools:
        """What trials draw from."""
        return self.dealer.pools

    def run(self, trials: Sequence[Trial]) -> Tables:
        """Rows of the tables in ``TABLES``; the heads of all trials are trained at once."""
        tasks = [self._task(trial, arm, seed)
                 for trial in trials for arm in trial.arms for seed in range(max(SEEDS))]
        weights, biases = train_heads(torch.from_numpy(self.pools.features), tasks, self.settings.recipe)
        tables: Tables = {name: [] for name in TABLES}
        start = 0
        for trial in trials:
            own = slice(start, start := start + trial.heads)
            for name, rows in self._measure(trial, weights[own], biases[own]).items():
                about = {"part": trial.part, "trial": trial.number, "cohort": trial.cohort}
                tables[name] += [about | row for row in rows]
        return tables

    def _entropy(self, trial: Trial, *place: int) -> list[int]:
        """Streams of its own for every trial."""
        part = int.from_bytes(trial.part.encode(), "little")
        return [self.settings.seed, part, trial.number, *place]

    def _task(self, trial: Trial, arm: str, seed: int) -> Task:
        """One head to train. Arms of a seed share layout and order; the twin of an arm shares nothing."""
        stream = self._entropy(trial, int(arm == AGAIN), seed)
        slots = self.dealer.deal(trial.arms[0] if arm == AGAIN else arm, trial.cohort, stream=stream)
        return Task(slots=slots, shares=self.dealer.shares[trial.cohort], seed=tuple(stream))

    def _measure(self, trial: Trial, weights: np.ndarray, biases: np.ndarray) -> Tables:
        """Rows by table, from the trial's heads on its test set, or on the population."""
        (rows, patients, targets), labels, members = self._test_set(trial)
        columns = [self.pools.labels.index(label) for label in labels]
        logits = (self.pools.features[rows] @ weights + biases)[:, :, columns].astype(np.float64)
        evaluators = [ClassMetrics(labels=targets[:, at], logits=one[:, at])
                      for one in logits for at in range(len(labels))]
        shape = (len(trial.arms), max(SEEDS), len(labels), len(METRICS))
        values = np.stack([evaluate(np.ones((len(rows), 1)))[:, 0] for evaluate in evaluators]).reshape(shape)
        source = Source(values=values, resampled=np.zeros((*shape, 0)), arms=trial.arms, members=members,
                        scored=Scored(labels=targets, patients=patients, logits={}))
        pairs = [(arm, trial.arms[0]) for arm in trial.arms[1:]]
        if trial.on_population:
            return {"truth": _truth_rows(source, pairs)}
        draws = patient_draws(patients.max() + 1, self.settings.n_draws,
                              np.random.default_rng(self._entropy(trial, 3)))
        resampled = bootstrap(evaluators, patients=patients, draws=draws).reshape(*shape, draws.shape[1])
        return self._rows(replace(source, resampled=resampled), pairs)

    def _test_set(self, trial: Trial) -> tuple[tuple[np.ndarray, np.ndarray, Array], list[str], dict[str, list[int]]]:
        """(rows of features, patients, targets), the labels that are measured, and their groups.

        Patients of a test set are drawn with replacement; whoever is drawn twice counts as two.
        """
        cohort, test = self.pools.cohorts[0], self.pools.test
        measured = ("tail",) if AGAIN in trial.arms else ("tail", CONTROL)
        labels = [label for group in measured for label in cohort.in_group(group)]
        members = {label: [at] for at, label in enumerate(labels)}
        members |= {group: [labels.index(label) for label in cohort.in_group(group)] for group in measured}
        groups = list(test.groupby("patient_id").indices.values())
        if not trial.on_population:
            rng = np.random.default_rng(self._entropy(trial, 2))
            groups = [groups[at] for at in rng.integers(len(groups), size=self.settings.test_patients)]
        chosen = test.iloc[np.concatenate(groups)]
        patients = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
        targets = label_matrix(chosen, labels).astype(np.float64)
        return (chosen["row"].to_numpy(), patients, targets), labels, members

    def _rows(self, source: Source, pairs: Sequence[tuple[str, str]]) -> Tables:
        """What the project's statistics say of one test set, with each number of seeds."""
        tables: Tables = {name: [] for name in TABLES}
        for n_seeds in SEEDS:
            compared = _first_seeds(source, n_seeds)
            for arm, rival in pairs:
                key: dict[Hashable, Any] = {"arm": arm, "rival": rival, "n_seeds": n_seeds}
                for label in source.members:
                    one = compared.interval(arm=arm, rival=rival, label=label, metric=METRIC)
                    tables["intervals"].append(key | {"label": label} | _numbers(one))
                answer, largest = decide(self._case(compared, arm, rival, n_seeds))
                tables["verdicts"].append(key | {"answer": answer, "largest": np.nan if largest is None else largest})
            if ORACLE not in source.arms:
                continue
            bound = compared.gain(arm=ORACLE, rival=source.arms[0], label="tail", metric=METRIC)
            for arm, rival in (pair for pair in pairs if pair[0] != ORACLE):
                found = fieller_set(compared.gain(arm=arm, rival=rival, label="tail", metric=METRIC), bound)
                tables["recovered"].append({"arm": arm, "n_seeds": n_seeds} | _numbers(found))
            rows = control_rows(compared, dict(pairs), metric=METRIC,
                                controls=self.pools.cohorts[0].in_group(CONTROL))
            tables["controls"] += rows.assign(n_seeds=n_seeds).to_dict("records")
        return tables

    def _case(self, compared: Comparison, arm: str, rival: str, n_seeds: int) -> Case:
        """The endpoint's case, as ``classify.compare`` makes it; guards do not decide."""
        tail = self.pools.cohorts[0].in_group("tail")
        return Case(
            endpoint={}, interval=compared.interval(arm=arm, rival=rival, label="tail", metric=METRIC),
            margin=self.settings.margin, guards={}, n_seeds=n_seeds, preregistered=True,
            positive_patients={label: compared.support[label][1] for label in tail},
            n_patients=compared.support["tail"][1])


def critic_logits(pools: Pools, cohort: int, settings: Settings) -> np.ndarray:
    """What the critic makes of all features: float32 (n_images, n_labels), the mean over its seeds."""
    train = pools.cohorts[cohort].split("train")
    targets = label_matrix(train, pools.labels)
    slots = Slots(images=[pools.features], index=train["row"].to_numpy(dtype=np.int64), targets=targets,
                  weights=np.ones(len(train), dtype=np.float32), phase=np.ones(len(train), dtype=np.int64),
                  added=np.zeros(len(train), dtype=bool))
    tasks = [Task(slots=slots, shares=prevalence(targets), seed=(settings.seed, cohort, seed)) for seed in CRITIC_SEEDS]
    recipe = replace(settings.recipe, steps=2 * settings.steps)
    weights, biases = train_heads(torch.from_numpy(pools.features), tasks, recipe)
    logits: np.ndarray = (pools.features @ weights + biases).mean(axis=0)
    return logits


def make_bench(pools: Pools, settings: Settings) -> Bench:
    """Train the critics and plant the sets."""
    sets = [plant(pools, cohort, critic_logits(pools, cohort, settings), seed=[settings.seed, cohort])
            for cohort in range(len(pools.cohorts))]
    config = ArmConfig(slots_per_class=settings.slots_per_class, synthetic_loss_weight=1.0, synthetic_share=0.5)
    dealer = Dealer(pools=pools, sets=sets, config=config, seed=settings.seed)
    return Bench(dealer=dealer, settings=settings)


def _first_seeds(source: Source, n_seeds: int) -> Comparison:
    """The comparison of the first seeds alone."""
    source = replace(source, values=source.values[:, :n_seeds], resampled=source.resampled[:, :n_seeds])
    counts = {name: support(source.scored.labels[:, at], source.scored.patients)
              for name, at in source.members.items()}
    return Comparison(rows=pd.DataFrame(), seeds=pd.DataFrame(), support=counts, source=source)


def _numbers(found: Interval | Share) -> dict[Hashable, Any]:
    """Its fields but the reason, NaN for None."""
    return {name: np.nan if value is None else value for name, value in vars(found).items() if name != "reason"}


def _truth_rows(source: Source, pairs: Sequence[tuple[str, str]]) -> list[dict[Hashable, Any]]:
    """The delta of every seed."""
    return [{"arm": arm, "rival": rival, "label": label, "seed": seed, "delta": delta}
            for arm, rival in pairs for label, at in source.members.items()
            for seed, delta in enumerate(source.per_seed(arm, rival, at, METRICS.index(METRIC)))]
