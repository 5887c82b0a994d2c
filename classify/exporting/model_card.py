"""The card of an exported classifier: what it is for, what it has learnt from, how good it was, what it cannot say.

Markdown with the header that model hubs read. Numbers come from the export's own table; nothing is rounded up.
Not promised: completeness about the cohort, of which the card knows what its stamp says.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from classify.exporting.bundle import Bundle
from classify.exporting.licences import licence_header
from classify.pages.blocks import DASH, count, is_null, number, plain
from cohort.tables import Cohort

USES = """\
For research on the findings below in chest radiographs like those it has learnt from, and for checking the numbers of
this card. **It is no medical device**, has not been read against by a radiologist, and must not decide about a patient,
nor stand in for a reading."""
USE_IT = """\
    python -m classify.predict --weights THIS_FOLDER --images FOLDER --out PREDICTIONS

A probability is `sigmoid(logit / temperature)`; a finding is called present where the logit reaches its threshold. Both
were chosen on the validation split: the temperature by cross-entropy, one for all labels; each threshold by F1."""
SHOWN = ("AP", "AUROC", "F1")
"""Metrics of a class in the card's table; all five stand in metrics.parquet."""


def write_card(
    bundle: Bundle, cohort: Cohort, stamp: Mapping[str, Any], metrics: pd.DataFrame, *, licence: str,
    about: Mapping[str, Any],
) -> str:
    """The text of ``README.md``; ``stamp`` is the cohort's, ``metrics`` as ``measured.metric_table`` makes them."""
    parts = [
        header(licence), "# Classifier of chest radiographs", USES, "## How to use it", USE_IT,
        "## What it takes", preprocessing(bundle, about), "## What it has learnt from", training(cohort, stamp, about),
        "## How good it was", quality(metrics, cohort), "## What it cannot say",
        "\n".join(f"- {line}" for line in limits(bundle, cohort, stamp, metrics, about)),
        "## Licence", f"{plain(licence)}, as stated by whoever exported it. The images that it has learnt from have "
        "terms of their own, which may bind weights, too."]
    return "\n\n".join(parts) + "\n"


def header(licence: str) -> str:
    """The YAML that hubs read; a licence that is none of theirs is ``other`` with its name."""
    lines = ["---", *(f"{key}: {value}" for key, value in licence_header(licence).items()), "library_name: timm",
             "pipeline_tag: image-classification", "tags:", "- chest-x-ray", "- multi-label", "- long-tail", "---"]
    return "\n".join(lines)


def preprocessing(bundle: Bundle, about: Mapping[str, Any]) -> str:
    """Size, grey statistics and views in words."""
    card = bundle.card
    views = ", ".join(f"{view} {n:,}" for view, n in bundle.views.items())
    return (f"One grey image of any size and 8 or 16 bits, or DICOM: scaled to 0..1 by the range of its format, "
            f"squeezed to {card.image_size} x {card.image_size} pixels (bicubic, antialiased, neither padded nor "
            f"cropped), less {card.mean:.6g}, over {card.std:.6g}. Views in training: {views} (policy "
            f"for laterals: {about['laterals']}); a view that is not among them is outside of what it knows. Network: "
            f"`{card.model}`, head `{card.head}`; {len(card.labels)} labels: {_names(card.labels)}.")


def training(cohort: Cohort, stamp: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    """The cohort, and the arm."""
    extra, rows = stamp["extra"], []
    for split in ("train", "val", "test"):
        part = cohort.split(split)
        rows.append(f"| {split} | {len(part):,} | {part['patient_id'].nunique():,} |")
    images = "real images only" if not about["synthetic_slots"] else (
        f"real and synthetic images ({about['synthetic_slots']:,} of {about['slots']:,} training slots)")
    return (f"Source `{extra.get('source', 'unnamed')}`, label space `{extra.get('label_space', 'unnamed')}`; arm "
            f"`{about['arm']}`, seed {about['seed']}, {about['weights']} weights: {images}, {about['steps']:,} steps. "
            f"Provenance of the starting weights: {about['provenance']}.\n\n| split | images | patients |\n| :--- | "
            "---: | ---: |\n" + "\n".join(rows))


def quality(metrics: pd.DataFrame, cohort: Cohort) -> str:
    """Metrics of every class and group on the test split, with intervals and support."""
    head = ("Test split; 95 % intervals by resampling patients, for this one training. F1 at the threshold in "
            f"`config.json`.\n\n| label | group | positive images (patients) | {' | '.join(SHOWN)} | why a number or "
            "interval lacks |\n| :--- | :--- | ---: " + "| ---: " * len(SHOWN) + "| :--- |")
    lines = []
    for label, part in metrics.groupby("label", sort=False):
        cells, first = part.set_index("metric").loc[list(SHOWN)], part.iloc[0]
        if first["n_positive_images"] == 0 and label not in cohort.labels:
            continue
        group = cohort.groups.get(str(label), "mean")
        reasons = dict.fromkeys(str(text) for text in cells["reason"].dropna())
        lines.append(f"| {plain(label)} | {group} | {count(first['n_positive_images'])} "
                     f"({count(first['n_positive_patients'])}) | "
                     + " | ".join(_with_interval(row) for _, row in cells.iterrows())
                     + f" | {plain('; '.join(reasons))} |")
    return "\n".join([head, *lines])


def limits(
    bundle: Bundle, cohort: Cohort, stamp: Mapping[str, Any], metrics: pd.DataFrame, about: Mapping[str, Any]
) -> Sequence[str]:
    """What holds of this export, and what holds of all."""
    found = []
    if stamp["extra"].get("patient_ids") != "given":
        found.append("**Images without patient ids count as patients of their own**, so splits may share patients: the "
                     "numbers above may be too good and their intervals too narrow.")
    undecided = [label for label, threshold in bundle.decisions.thresholds.items() if threshold is None]
    if undecided:
        found.append(f"No validation image has {_names(undecided)}: no threshold, and no decision.")
    if bundle.decisions.temperature is None:
        found.append("No temperature could be fitted: probabilities are not calibrated.")
    few = metrics[(metrics["metric"] == "AP") & metrics["label"].isin(cohort.labels) & metrics["ci_low"].isna()]
    if len(few):
        found.append(f"Too few positive test patients for an interval: {_names(few['label'])}.")
    if about["provenance"] != "this run":
        found.append("The weights that training started from have seen images that nobody has named, test patients "
                     "perhaps among them.")
    return [*found,
            "Labels are taken as the source gives them; their errors are in training and in every number.",
            "One source, one test set: nothing is known of other hospitals, machines and patients. AP and decisions "
            "depend on how frequent a finding is.",
            "A network trained on radiographs may betray some of them; treat the weights as you treat the images."]


def _with_interval(row: pd.Series) -> str:
    if is_null(row["value"]):
        return DASH
    return number(row["value"]) + ("" if is_null(row["ci_low"]) else
                                   f" ({number(row['ci_low'])} to {number(row['ci_high'])})")


def _names(labels: Iterable[str]) -> str:
    return ", ".join(map(plain, labels))
