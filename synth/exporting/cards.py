"""The two cards: of the images that leave, and of the generator.

A card is the ``README.md`` of a folder: a header that the hub reads, then what somebody who has only the folder must
know to decide whether to use it. Nothing leaves without one.
"""

from collections.abc import Sequence

import pandas as pd

from classify.exporting.licences import licence_header
from classify.pages.blocks import count, number, plain
from synth.exporting.facts import Facts
from synth.exporting.words import (
    about_cohort,
    about_copies,
    about_fidelity,
    about_generator,
    about_rights,
    code,
    table,
    with_header,
)

SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"),
         (10_000_000, "1M<n<10M"))
"""The hub's size categories, by their upper ends."""
TAGS = ("synthetic", "medical", "radiology", "chest-x-ray", "tailfill")


def size_category(n_images: int) -> str:
    """The hub's word for a number of images."""
    return next((name for limit, name in SIZES if n_images < limit), "n>10M")


def dataset_card(facts: Facts, metadata: pd.DataFrame, *, licence: str, base_licence: str | None) -> str:
    """The card of the images; ``metadata``: the table that leaves with them."""
    header = licence_header(licence) | {
        "pretty_name": f"Synthetic chest radiographs ({facts.rights[0].name})", "language": ["en"],
        "task_categories": ["image-classification", "text-to-image"], "size_categories": [size_category(len(metadata))],
        "tags": list(TAGS)}
    names = ", ".join(right.name for right in facts.rights)
    sections = [
        f"{count(len(metadata))} synthetic chest radiographs, drawn by a diffusion model that has learnt from "
        f"{plain(names)}, each asked for by a row of a plan and accepted by a filter. **Synthetic, not for "
        "diagnosis.**\n",
        HOW_TO_READ, about_columns(facts), about_generator(facts.generator, base_licence), about_cohort(facts),
        about_filter(facts), about_fidelity(facts.fidelity), about_copies(facts),
        about_rights(licence, facts.rights, base_licence, what="these images"), about_limits(facts, metadata)]
    return with_header(header, "Synthetic chest radiographs of rare findings", sections)


HOW_TO_READ = """```python
from datasets import load_dataset
images = load_dataset("imagefolder", data_dir="THIS_FOLDER", split="train")
```
"""


def about_columns(facts: Facts) -> str:
    """What stands in ``metadata.parquet``."""
    scores = ", ".join(code(f"score_{rule}") for rule in facts.rules) or "none"
    return ("## Columns\n\n`train/metadata.parquet` has one row per image:\n\n"
            "- `file_name`, `sha256`, `height`, `width`\n"
            "- `sample_id`, `plan_row`, `round`: the row of the plan that asked for it\n"
            "- `prompt`, `negative_prompt`, `seed`, `view`, `sex`, `age`: what was asked (null: not asked)\n"
            "- `charged_to`: the scarce finding that it was made for, or `negative`: a matched image without one\n"
            "- `strength`: of noise, where it was drawn from a real radiograph; null where from pure noise\n"
            f"- one column per label, 1 or 0: {', '.join(map(code, facts.cohort.labels))}. "
            "What was asked for, and not contradicted by the filter; nobody has read these images\n"
            f"- {scores}: margin of each rule of the filter, in its own unit; 0 or more passes, below 0 only "
            "a rule that drops nothing has let it through, null was not judged\n\n"
            "Ids of real images are left out.\n")


def about_filter(facts: Facts) -> str:
    """What was asked, made and kept, per class and in all; and what each rule dropped."""
    asked, made = facts.plan["charged_to"].value_counts(), facts.synthetic["charged_to"].value_counts()
    kept = facts.kept["charged_to"].value_counts()
    rows = [_accepted(str(name), int(asked[name]), int(made.get(name, 0)), int(kept.get(name, 0)))
            for name in sorted(asked.index)]
    rows.append(_accepted("all", len(facts.plan), len(facts.synthetic), len(facts.kept)))
    reasons = facts.synthetic["reason"].value_counts()
    rules = table(("Rule", "Dropped by it first", "Kept below 0"),
                  [(rule, count(reasons.get(rule, 0)), count((facts.kept[rule] < 0).sum())) for rule in facts.rules])
    return ("## Filter and acceptance\n\n"
            + table(("Asked for", "Asked", "Made", "Kept", "Kept of made"), rows)
            + "\nWhat was not made had failed to draw. Rules, in the order in which they give the reason; one that "
              "only scores keeps images below 0, too:\n\n" + rules)


def _accepted(name: str, asked: int, made: int, kept: int) -> Sequence[str]:
    return name, count(asked), count(made), count(kept), f"{number(100 * kept / made, 1)} %" if made else "none made"


def about_limits(facts: Facts, metadata: pd.DataFrame) -> str:
    """What these images cannot be used to say."""
    drawn_from_real = int(metadata["strength"].notna().sum())
    lines = [
        "Labels say what was asked. A filter that was calibrated on real images has looked for it; no radiologist has.",
        "Findings that were not asked for are 0, and may show all the same where the filter had no critic for them.",
        "The mix of findings, views, ages and sexes is the plan's, not that of any population.",
        "A classifier can learn that an image is synthetic instead of learning a finding: use the matched negatives "
        "(`charged_to` is `negative`), and real images beside these.",
        "Whether training with them helps is another question, which has to be measured on real test images.",
        f"{count(drawn_from_real)} of them were drawn from a real radiograph and may resemble it"
        if drawn_from_real else "None of them was drawn from a real radiograph; all began as pure noise.",
    ]
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines) + "\n"


def model_card(facts: Facts, *, licence: str, base_licence: str | None, lora: bool) -> str:
    """The card of the generator."""
    base = facts.generator.base
    on_hub = {"base_model": base} if base and "/" in base else {}
    header = licence_header(licence) | {"library_name": "diffusers", "pipeline_tag": "text-to-image", **on_hub,
                                        "tags": list(TAGS)}
    example = str(facts.plan.sort_values("sample_id")["prompt"].iloc[0])
    sections = [
        "A text-to-image pipeline in diffusers' layout that draws chest radiographs, for rare findings above all. "
        "**Synthetic, not for diagnosis.**\n",
        "```python\nfrom diffusers import DiffusionPipeline\n"
        'pipeline = DiffusionPipeline.from_pretrained("THIS_FOLDER", use_safetensors=True)\n```\n',
        f"It was taught captions in the words of its prompts, such as: {plain(example)}\n"
        + ("\n`lora/` holds the adapters alone, for its base pipeline.\n" if lora else ""),
        about_generator(facts.generator, base_licence), about_cohort(facts), about_filter(facts),
        about_fidelity(facts.fidelity), about_copies(facts),
        about_rights(licence, facts.rights, base_licence, what="what it draws"),
        "## Limits\n\n- The filter's figures above are those of one run's images; what you draw has to be filtered "
        "anew.\n- It can draw training images, whole or in part: test what it draws for copies before it goes "
        "anywhere.\n"
        "- It shows what its training cohort showed, in that cohort's mix of machines, views and patients.\n"]
    return with_header(header, "A generator of synthetic chest radiographs", sections)
