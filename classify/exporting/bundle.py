"""An exported classifier on disk: weights, and in ``config.json`` all that must be known to use them.

::

    model.safetensors    the weights, float32 as trained; never a pickle, which would run whatever code it holds
    config.json          model, labels in order, preprocessing, temperature, thresholds, views, sha256 of the weights
    metrics.parquet      the metrics on the test split, with intervals
    README.md            the model card

A probability is ``sigmoid(logit / temperature)``, and a finding is called present where the logit is at least its
threshold: both were chosen on the validation split, and either may be null. Whatever does not fit together is refused:
another count of labels than the head has, thresholds of other labels, tensors of other shapes, changed weights.

Not promised: that the labels mean at another hospital what they meant where they were learnt.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from scipy.special import expit
from torch import nn

from classify.learning.heads import HEADS
from classify.learning.models import Card, build_classifier, load_weights
from cohort.errors import TailfillError, nearest
from cohort.stage import hash_file

CONFIG, MODEL = "config.json", "model.safetensors"
FORMAT, VERSION = "tailfill-classifier", 1
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
"""Suffixes under which weights are pickled."""
RESIZE = "squeezed to a square, bicubic with antialiasing, neither padded nor cropped"
GREY = "8-bit grey, white is dense; 16-bit files by the full range of the format, DICOM as a screen would show it"


@dataclass(frozen=True, kw_only=True)
class Decisions:
    """What turns logits into probabilities and decisions; chosen on the validation split."""

    temperature: float | None
    """Divides every logit, above 0; None: none was fitted, and probabilities are not calibrated."""
    thresholds: Mapping[str, float | None]
    """Label to the logit from which on the finding is called present; None: no validation image has it."""

    def probabilities(self, logits: NDArray[np.floating]) -> NDArray[np.float64]:
        """float (n, n_labels), logits -> the same shape, 0 to 1."""
        return np.asarray(expit(np.asarray(logits, dtype=np.float64) / (self.temperature or 1.0)))


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A classifier ready for use."""

    card: Card
    decisions: Decisions
    views: Mapping[str, int] = field(default_factory=dict)
    """View (``unknown`` where the source has none) to the images of it in the training split; empty: not known."""


def config_of(bundle: Bundle, *, sha256: str, about: Mapping[str, Any]) -> dict[str, Any]:
    """The content of ``config.json``; ``about`` is whatever else is told of the training, and not read again."""
    card, decisions = bundle.card, bundle.decisions
    return {
        "format": FORMAT, "version": VERSION, "model": card.model, "head": card.head, "labels": list(card.labels),
        "preprocessing": {"image_size": card.image_size, "mean": card.mean, "std": card.std, "grey": GREY,
                          "resize": RESIZE},
        "decisions": {"temperature": decisions.temperature, "thresholds": dict(decisions.thresholds)},
        "views": dict(bundle.views), "weights": {"file": MODEL, "sha256": sha256}, "about": dict(about),
    }


def load_bundle(folder: Path) -> tuple[nn.Module, Bundle]:
    """The model in evaluation mode and what belongs to it; raises ``TailfillError`` for what does not fit together."""
    bundle, sha256 = read_config(folder)
    refuse_pickles(folder)
    file = folder / MODEL
    found = hash_file(file)
    if found != sha256:
        raise TailfillError(f"{file}: its sha256 is {found[:12]}, {CONFIG} names {sha256[:12]}; wanted: the weights "
                            "that were exported with it")
    card = bundle.card
    model = build_classifier(card.model, len(card.labels), head=card.head, image_size=card.image_size)
    check_shapes(model, file, n_labels=len(card.labels))
    load_weights(model, file)
    return model.eval(), bundle


def read_config(folder: Path) -> tuple[Bundle, str]:
    """``config.json`` and the sha256 that it names; raises ``TailfillError`` naming the key at fault."""
    file = folder / CONFIG
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        kind = content.get("format"), content.get("version")
    except (OSError, ValueError, AttributeError) as error:
        raise TailfillError(f"{file}: cannot be read as the config of an exported classifier: {error}") from error
    if kind != (FORMAT, VERSION):
        raise TailfillError(f"{file}: format is {kind[0]!r}, version {kind[1]!r}; wanted: '{FORMAT}', {VERSION}")
    try:
        preprocessing, decisions = content["preprocessing"], content["decisions"]
        card = Card(model=content["model"], head=content["head"], labels=tuple(content["labels"]),
                    **{key: preprocessing[key] for key in ("image_size", "mean", "std")})
        bundle = Bundle(card=card, views=content["views"], decisions=Decisions(
            temperature=decisions["temperature"], thresholds=dict(decisions["thresholds"])))
        sha256 = str(content["weights"]["sha256"])
    except KeyError as error:
        raise TailfillError(f"{file}: has no key {error}") from error
    except (TypeError, ValueError) as error:
        raise TailfillError(f"{file}: is not the config of an exported classifier: {error}") from error
    check_bundle(bundle, where=file)
    return bundle, sha256


def check_bundle(bundle: Bundle, *, where: Path) -> None:
    """Raise ``TailfillError`` for the first value that is out of range or does not fit the labels."""
    card, decisions = bundle.card, bundle.decisions
    labels = list(card.labels)
    if not labels or len(set(labels)) < len(labels) or not all(isinstance(label, str) and label for label in labels):
        raise TailfillError(f"{where}: labels are {labels!r}; wanted: different names, one or more")
    differing = sorted(set(labels) ^ set(decisions.thresholds))
    if differing:
        raise TailfillError(f"{where}: decisions.thresholds and labels differ in {', '.join(differing[:3])}; wanted: "
                            "one threshold, or null, for each label")
    if not isinstance(card.model, str) or not isinstance(card.head, str):
        raise TailfillError(f"{where}: model is {card.model!r}, head {card.head!r}; wanted: a name each")
    views = bundle.views
    if not isinstance(views, Mapping) or not all(isinstance(n, int) for n in views.values()):
        raise TailfillError(f"{where}: views are {views!r}; wanted: views, each with its number of training images")
    if card.head not in HEADS:
        raise TailfillError(f"{where}: head is '{card.head}'{nearest(str(card.head), list(HEADS))}")
    numbers: dict[str, Any] = {"preprocessing.image_size": card.image_size, "preprocessing.mean": card.mean,
               "preprocessing.std": card.std, "decisions.temperature": decisions.temperature,
               **{f"decisions.thresholds.{label}": value for label, value in decisions.thresholds.items()}}
    for key, value in numbers.items():
        may_lack = key.startswith("decisions.")
        above = 0 if key.endswith((".image_size", ".std", ".temperature")) else -math.inf
        if not ((value is None and may_lack) or (_is_number(value) and value > above)):
            raise TailfillError(f"{where}: {key} is {value!r}; wanted: a number{' above 0' if not above else ''}"
                                f"{', or null' if may_lack else ''}")
    if not isinstance(card.image_size, int):
        raise TailfillError(f"{where}: preprocessing.image_size is {card.image_size}; wanted: a whole number")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def refuse_pickles(folder: Path) -> None:
    """Raise ``TailfillError`` where the weights are missing, or are a pickle under whatever name."""
    file = folder / MODEL
    if not file.is_file():
        pickled = sorted(path.name for path in folder.glob("*") if path.suffix.lower() in PICKLES)
        why = f"; {pickled[0]} is a pickle, which can run any code, and is not read" if pickled else ""
        raise TailfillError(f"{file}: no such file{why}; wanted: weights as safetensors")
    try:
        with safe_open(file, framework="pt"):
            pass
    except (OSError, SafetensorError) as error:
        with file.open("rb") as stream:
            start = stream.read(2)
        kind = "begins like a pickle, which can run any code; wanted: safetensors" if start in (b"PK", b"\x80\x02",
                b"\x80\x03", b"\x80\x04", b"\x80\x05") else f"is no readable safetensors file: {error}"
        raise TailfillError(f"{file}: {kind}") from error


def check_shapes(model: nn.Module, file: Path, *, n_labels: int) -> None:
    """Raise ``TailfillError`` naming the first tensor of the file that the model lacks, misses or has otherwise."""
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    with safe_open(file, framework="pt") as stored:
        found = {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise TailfillError(f"{file}: tensor '{name}' is {found.get(name, 'missing')}; wanted: "
                                f"{wanted.get(name, 'none of that name')}, for a model of {n_labels} labels")
