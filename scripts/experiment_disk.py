"""What an experiment will write, in bytes: pixels, latents, weights and tables, from their shapes.

An upper end: what is written only for a while counts as if it stayed. Weights of a pipeline are those of its
safetensors where it is a folder here; of hub ids only some are known. Not counted: logs, tables of kilobytes,
TensorBoard.
"""

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

import timm
import torch
from experiment_counts import Counts, add, times

from synth.judging.copies import CopyReader
from synth.judging.gathering import SEARCHING
from synth.judging.memorisation import MatchReader

FLOAT, HALF = 4, 2
"""Bytes of a float32 and a float16."""
PNG_BYTES_PER_PIXEL = 0.52
"""Of 8-bit grey radiographs: .52 in NIH's at 128 pixels, .45 at 256, .40 in the demo's generated ones."""
COHORT_BYTES_PER_ROW = 70
"""Of cohort.parquet: 69 where ids are as long as MIMIC's and labels 40 (make_cxr_lt_tables, 100,000 rows)."""
PREDICTION_BYTES_PER_ROW = 100
"""Of a row of predictions.parquet beside labels and logits: ids, mostly repeated."""
LATENT_FACTOR, LATENT_CHANNELS = 8, 4
"""Pixels per side of a latent's pixel, and channels, of Stable Diffusion 1 and 2."""
ENCODER_WIDTHS = {"efficientnet_lite0": 1280}
"""Features that the filter keeps per image and encoder."""
COPY_WIDTH, MATCH_WIDTH = CopyReader.width, MatchReader.width
"""Numbers that it keeps of a real image for the search for copies, and of an image of what one search found."""
HUB_PARAMETERS = {"stabilityai/stable-diffusion-2-1-base": 1_289_952_427}
"""U-Net 865,910,724, text encoder 340,387,840, autoencoder 83,653,863: counted from their architectures."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """Something that is written; ``bytes`` is None where unknown, and ``source`` says why or how."""

    what: str
    bytes: int | None
    source: str


@lru_cache
def classifier_parameters(model: str, n_labels: int) -> int:
    """Of a timm model for one channel and ``n_labels`` logits; built without memory for its weights."""
    with torch.device("meta"):
        built = timm.create_model(model, in_chans=1, num_classes=n_labels)
    return sum(p.numel() for p in built.parameters())


@lru_cache
def pipeline_parameters(pipeline: str | None) -> int | None:
    """Of a pipeline's folder, from the headers of its safetensors, or of a known hub id; None for any other."""
    if pipeline is None:
        return None
    files = sorted(Path(pipeline).rglob("*.safetensors")) if Path(pipeline).is_dir() else []
    if not files:
        return HUB_PARAMETERS.get(pipeline)
    total = 0
    for file in files:
        with file.open("rb") as stream:
            header = json.loads(stream.read(struct.unpack("<Q", stream.read(8))[0]))
        total += sum(prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    return total


def list_items(kind: str, train: Mapping[str, Any], config: Mapping[str, Any], counts: Counts) -> Iterator[Item]:
    """What one stage of a kind writes in its folder; ``train``: the settings of its model, where it has one."""
    if kind in ("prepare", "oracle", "external"):
        yield from _prepared(kind, config, counts)
    elif kind == "finetune":
        yield from _finetuned(config, counts)
    elif kind == "autoencoder":
        yield Item(what="autoencoder", bytes=None, source="it is counted when it is built")
    elif kind in ("generate", "fill"):
        yield _drawn(counts.planned, image_px(config), unknown=counts.planned_source)
        if kind == "fill":
            yield Item(what="images of further rounds", bytes=None, source="as many as the filter leaves missing")
    elif kind == "reconstruct":
        n = add(counts.train, images_of("oracle", config, counts)) if config["reconstruct"]["oracle"] else counts.train
        yield _drawn(n, config["reconstruct"]["image_size"] or image_px(config), unknown=counts.source)
    elif kind in ("train", "critic"):
        n = classifier_parameters(train["model"], counts.labels) if counts.labels else None
        yield Item(what="weights", bytes=times(n, FLOAT, 2), source=(
            f"raw and averaged, {n:,} parameters" if n else "number of labels"))
    elif kind in ("predict", "ensemble"):
        rows, width = add(counts.val, counts.test), times(counts.labels, FLOAT + 1)
        yield Item(what="logits", bytes=times(rows, 2, add(width, PREDICTION_BYTES_PER_ROW)), source=(
            "validation and test, raw and averaged weights" if rows and width else counts.source))


def _drawn(n: int | None, size: int | None, *, unknown: str) -> Item:
    """``n`` PNGs of ``size`` pixels a side; ``unknown``: why it is not known how many."""
    told = unknown if n is None else "image size" if size is None else (
        f"{n:,} PNGs of {size} px, {PNG_BYTES_PER_PIXEL} bytes a pixel")
    return Item(what="images", bytes=times(n, size, size, PNG_BYTES_PER_PIXEL), source=told)


def images_of(role: str, config: Mapping[str, Any], counts: Counts) -> int | None:
    """Images of the cohort itself, or of a further one, which is known where it is a phantom."""
    if role == "prepare":
        return counts.all
    section = config.get(role)
    if section is None:
        return 0
    return int(section["phantom"]["images"]) if section["source"] == "phantom" else None


def _prepared(role: str, config: Mapping[str, Any], counts: Counts) -> Iterator[Item]:
    n = images_of(role, config, counts)
    yield Item(what="table", bytes=times(n, COHORT_BYTES_PER_ROW), source=(
        f"{COHORT_BYTES_PER_ROW} bytes a row" if n else counts.source))
    if config[role].get("source") == "phantom":
        size = config[role]["phantom"]["size"]
        yield Item(what="images", bytes=times(n, size, size, PNG_BYTES_PER_PIXEL),
                   source=f"PNGs of {size} px, {PNG_BYTES_PER_PIXEL} bytes a pixel")


def _finetuned(config: Mapping[str, Any], counts: Counts) -> Iterator[Item]:
    section, size = config["finetune"], image_px(config)
    n = pipeline_parameters(section["pipeline"])
    told = f"{n:,} parameters" if n else ("trained from nothing" if section["pipeline"] is None else
                                         f"{section['pipeline']} is not here, and its size is not known")
    yield Item(what="pipeline", bytes=times(n, FLOAT), source=f"{told}, float32" if n else told)
    if section["mode"] == "full":
        yield Item(what="checkpoint, while it learns", bytes=times(n, FLOAT, 4),
                   source=f"at most weights, their average and AdamW's two moments of {told}" if n else told)
    if section["pipeline"] is None:
        yield Item(what="latents, while it learns", bytes=None, source="its autoencoder is the run's own")
    else:
        side = None if size is None else size // LATENT_FACTOR
        yield Item(what="latents, while it learns", source="train and validation, mean and spread, float16" if size else
                   "image size", bytes=times(add(counts.train, counts.val), 2 * LATENT_CHANNELS, side, side, HALF))


def image_px(config: Mapping[str, Any]) -> int | None:
    """Pixels per side of the images that are made, where the settings or the pipeline's folder say it."""
    if config["generate"]["height"]:
        return int(config["generate"]["height"])
    pipeline = config["generate"]["pipeline"] or config["finetune"]["pipeline"]
    unet = Path(str(pipeline)) / "unet" / "config.json"
    if not unet.is_file():
        section = config.get("autoencoder") or {}
        return section.get("image_size")
    return int(json.loads(unet.read_text(encoding="utf-8"))["sample_size"]) * LATENT_FACTOR


def shared_items(config: Mapping[str, Any], counts: Counts) -> list[Item]:
    """What several stages share in the run's ``cache``: decoded images, and what the filter has read of them."""
    base = config["train"]["image_size"]
    sizes = sorted({base, *(keys.get("image_size", base) for keys in config["members"].values())})
    images = add(counts.all, counts.planned, *(images_of(role, config, counts) for role in ("oracle", "external")))
    items = [Item(what=f"decoded images at {size} px", bytes=times(images, size, size),
                  source="all real and made ones, a byte a pixel" if images else "number of images") for size in sizes]
    size, real = image_px(config), add(counts.train, counts.val)
    items.append(Item(what=f"decoded images at {size or 'unknown'} px for generator and filter",
                      bytes=times(real, 2, size, size),
                      source="train and validation, twice at most" if real and size else "images or their size"))
    judges, names = config["filter"], list(config["filter"]["encoders"])
    strange = [name for name in names if name not in ENCODER_WIDTHS]
    width = sum([ENCODER_WIDTHS.get(name, 0) for name in names] + [
        counts.labels or 0 for _ in range(len(judges["critic_seeds"]) + judges["folds"])])
    left_out = f", without those of {', '.join(strange)}" if strange else ""
    of_real, of_made = width + COPY_WIDTH + MATCH_WIDTH, width + len(SEARCHING["made"]) * MATCH_WIDTH
    items.append(Item(
        what="features for the filter", bytes=add(times(real, of_real, FLOAT), times(counts.planned, of_made, FLOAT)),
        source=f"{of_real:,} numbers a real image at most, {of_made:,} an image made{left_out}"))
    return items
