"""What a whole experiment will cost, before it starts: device hours and disk, stage by stage, each with its source.

Hours of a stage come from the first of these that is known, and the table says which:

1. what stages of its kind took in this run (their stamps),
2. ``expected_seconds: {STAGE: seconds}``: one whole stage, where the configuration was measured,
3. ``expected_seconds: {STAGE/image: seconds}``: one image passing once through one device, times the images that pass.
   A classifier at another image size than ``train.image_size`` takes the rate times the ratio of pixels.

Disk is arithmetic (scripts/experiment_disk.py). What is known from nowhere is said to be unknown, and is in no sum.

Not promised: anything about a busy machine, or that a rate of another device holds for this one.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from experiment_counts import Counts, add, count_images, times
from experiment_disk import Item, list_items, shared_items

from classify.ensembling.folds import FOLD
from cohort.errors import TailfillError
from cohort.pipeline import read_stamp

PER_IMAGE = "/image"
"""Ending of a key of ``expected_seconds`` that holds seconds per image instead of per stage."""
RATED = ("prepare", "oracle", "external", "autoencoder", "finetune", "generate", "critic", "filter", "reconstruct",
         "train", "predict")
"""Kinds of stages whose time follows from the images that pass, so that they may have such a key."""
ON_DEVICE = ("autoencoder", "finetune", "generate", "critic", "filter", "fill", "reconstruct", "train", "predict")
"""Kinds of stages that run on the accelerator where there is one; the others run on the CPU."""
GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Job:
    """One stage to cost, and whether it is done."""

    kind: str
    stage: str
    folder: Path
    arm: str | None
    done: bool


@dataclass(frozen=True, kw_only=True)
class Row:
    """All stages of one kind."""

    kind: str
    n: int
    n_done: int
    hours: float | None
    """Of all processes together, for those to do; None where unknown."""
    bytes: int
    """On disk, of what is known, for those to do."""
    sources: tuple[str, ...]
    unsized: bool = False
    """Whether something of unknown size is left out of ``bytes``."""


def settings_of(job: Job, config: Mapping[str, Any]) -> dict[str, Any]:
    """The ``train`` section of a job's model: an ensemble's members change some keys."""
    member = (job.arm or "").partition("@")[2]
    return dict(config["train"]) | dict(config["members"].get(member, {}))


def images_through(job: Job, config: Mapping[str, Any], counts: Counts) -> tuple[int | None, str]:
    """Images that pass through a job, each as often as it passes, and that number in words."""
    if job.kind in ("train", "critic"):
        train = settings_of(job, config)
        steps = train["base_steps" if job.kind == "critic" else "steps"]
        return steps * train["batch_size"], f"{steps:,} steps of {train['batch_size']}"
    if job.kind in ("finetune", "autoencoder"):
        section = config[job.kind]
        prior = 2 if section.get("prior_weight") else 1
        return section["steps"] * section["batch_size"] * prior, (
            f"{section['steps']:,} steps of {section['batch_size']}" + (", as many again for the prior" if prior == 2
                                                                        else ""))
    if job.kind == "predict":
        tta = int(config["predict"].get("tta", 1))
        images, words = add(counts.val, counts.test), "validation and test"
        if job.arm == FOLD:
            folds = config["ensemble"]["folds"]
            images = add(times(add(counts.train, counts.val), 1 / folds), counts.test)
            words = f"1/{folds} of train and validation, and test"
        return times(images, tta), words + (f", {tta} copies" if tta > 1 else "")
    passing = {"prepare": (counts.all, "all images"), "generate": (counts.planned, counts.planned_source),
               "filter": (add(counts.planned, counts.train, counts.val), "made, train and validation"),
               "reconstruct": (counts.train, "train images")}
    return passing.get(job.kind, (None, "number of images unknown"))


def hours_of(job: Job, config: Mapping[str, Any], counts: Counts, *, took: Sequence[float], processes: int
             ) -> tuple[float | None, str]:
    """Device hours of one job, and where they come from; ``took``: seconds of finished jobs of its kind."""
    expected, shared = config["expected_seconds"], processes if job.kind in ON_DEVICE else 1
    if took:
        return shared * sum(took) / len(took) / 3600, f"mean of {len(took)} done here"
    if job.kind in expected:
        return shared * expected[job.kind] / 3600, f"expected_seconds.{job.kind}" + (
            f" x {shared} processes" if shared > 1 else "")
    rate = expected.get(job.kind + PER_IMAGE, expected.get("train" + PER_IMAGE) if job.kind == "critic" else None)
    if rate is None:
        return None, f"unknown: expected_seconds has neither {job.kind} nor {job.kind}{PER_IMAGE}" if (
            job.kind in RATED) else f"unknown: expected_seconds has no {job.kind}"
    images, words = images_through(job, config, counts)
    if images is None:
        return None, f"unknown: {words}"
    ratio = 1.0
    if job.kind in ("train", "critic", "predict"):
        size, base = settings_of(job, config)["image_size"], config["train"]["image_size"]
        ratio, words = (size / base) ** 2, words if size == base else f"{words} x ({size}/{base})²"
    return images * rate * ratio / 3600, f"{words} x {rate:g} s"


def cost_rows(jobs: Sequence[Job], config: Mapping[str, Any], counts: Counts, *, processes: int) -> list[Row]:
    """A row per kind of stage, in the order of their first appearance, then what all of them share."""
    kinds = dict.fromkeys(job.kind for job in jobs)
    rows = []
    for kind in kinds:
        of_kind = [job for job in jobs if job.kind == kind]
        left = [job for job in of_kind if not job.done]
        took = [float((read_stamp(job.folder) or {}).get("seconds", 0.0)) for job in of_kind if job.done]
        found = [hours_of(job, config, counts, took=took, processes=processes) for job in left]
        known = [hours for hours, _ in found if hours is not None]
        items = [item for job in left for item in list_items(job.kind, settings_of(job, config), config, counts)]
        rows.append(Row(kind=kind, n=len(of_kind), n_done=len(of_kind) - len(left), bytes=size_of(items),
                        hours=sum(known) if len(known) == len(found) else None, unsized=has_unknown(items),
                        sources=(*words_of_hours(found), *words_of_items(items))))
    shared = shared_items(config, counts) if any(not job.done for job in jobs) else []
    rows.append(Row(kind="(cache)", n=0, n_done=0, hours=0.0, bytes=size_of(shared), sources=words_of_items(shared),
                    unsized=has_unknown(shared)))
    return rows


def size_of(items: Sequence[Item]) -> int:
    """Bytes of the items whose size is known."""
    return sum(item.bytes for item in items if item.bytes is not None)


def has_unknown(items: Sequence[Item]) -> bool:
    """Whether the size of one of them is not known."""
    return any(item.bytes is None for item in items)


def words_of_hours(found: Sequence[tuple[float | None, str]]) -> tuple[str, ...]:
    """Each different source once, with how often it stands."""
    counted = [(words, len(list(same))) for words, same in groupby(sorted(words for _, words in found))]
    return tuple(f"time: {f'{n} x ' if n > 1 else ''}({words})" if n > 1 else f"time: {words}" for words, n in counted)


def words_of_items(items: Sequence[Item]) -> tuple[str, ...]:
    """Each different item once; those of unknown size say why."""
    different = dict.fromkeys((item.what, item.source, item.bytes) for item in items)
    return tuple(f"disk: {what}: " + (source if size is not None else f"unknown: {source}")
                 for what, source, size in different)


def print_costs(jobs: Sequence[Job], config: Mapping[str, Any], *, processes: int) -> str:
    """The table, its total and what is not in it, as text."""
    counts = count_images(config)
    rows = cost_rows(jobs, config, counts, processes=processes)
    lines = [f"images: train {say(counts.train)}, validation {say(counts.val)}, test {say(counts.test)} "
             f"({counts.source}); to make {say(counts.planned)} ({counts.planned_source})",
             f"what is to do; hours of {processes} process(es) together; device: a GPU where there is one, else CPU",
             f"{'stage':12} {'done':>9} {'on':>7} {'hours':>9} {'disk GiB':>9}"]
    for row in rows:
        hours = "unknown" if row.hours is None else f"{row.hours:.2f}"
        done = f"{row.n_done}/{row.n}" if row.n else ""
        on = "" if not row.n else "device" if row.kind in ON_DEVICE else "CPU"
        lines.append(f"{row.kind:12} {done:>9} {on:>7} {hours if row.n else '':>9} {row.bytes / GIB:9.2f}")
        lines += [f"             {source}" for source in row.sources]
    device = sum(row.hours or 0.0 for row in rows if row.kind in ON_DEVICE)
    cpu = sum(row.hours or 0.0 for row in rows if row.kind not in ON_DEVICE)
    unknown = [row.kind for row in rows if row.hours is None]
    unsized = [row.kind for row in rows if row.unsized]
    left_out = f"; hours of {', '.join(unknown)} are unknown and not in it" if unknown else ""
    left_out += f"; some sizes of {', '.join(unsized)} are unknown and not in it" if unsized else ""
    lines.append(f"total: {device:.1f} device hours and {cpu:.1f} CPU hours, "
                 f"{sum(row.bytes for row in rows) / GIB:.1f} GiB of disk{left_out}")
    return "\n".join(lines) + "\n"


def say(n: int | None) -> str:
    """A number with thousands separated."""
    return "unknown" if n is None else f"{n:,}"


def check_disk(jobs: Sequence[Job], config: Mapping[str, Any], *, processes: int) -> None:
    """Raise ``TailfillError`` when the run's disk lacks the space of what is to do, as far as that is known."""
    run = Path(config["run"])
    place = next(folder for folder in (run, *run.parents) if folder.exists())
    free = shutil.disk_usage(place).free
    wanted = sum(row.bytes for row in cost_rows(jobs, config, count_images(config), processes=processes))
    if wanted > free:
        raise TailfillError(f"run {run}: its disk has {free / GIB:.1f} GiB free; wanted: {wanted / GIB:.1f} GiB for "
                            "what is to do, or a run on another disk")
