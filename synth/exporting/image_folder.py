"""The accepted images as an image folder of Hugging Face's ``datasets``.

::

    DIR/train/<sample_id>.png      the files as they were drawn, byte for byte
    DIR/train/metadata.parquet     a row per image; ``file_name`` is relative to it, as the library wants
    DIR/README.md                  the card
    DIR/export.json                what it was made from, by hashes

Ids of real images (whose labels a row copies, or from which it was drawn) stay behind: they are the source's, and may
be as confidential as the images. Not promised: that a file that was changed after this is noticed.
"""

from pathlib import Path

import pandas as pd

from cohort.errors import TailfillError
from cohort.stage import hash_bytes
from cohort.tables import write_table
from synth.exporting.facts import Facts

SPLIT = "train"
METADATA = "metadata.parquet"
SCORE = "score_"
"""What stands before the name of a rule in the column of its margins."""
ASKED = ("prompt", "negative_prompt", "seed", "strength", "plan_row")
FIRST = ("file_name", "sample_id", "plan_row", "round", "prompt", "negative_prompt", "charged_to", "view", "sex", "age",
         "seed", "strength", "sha256", "height", "width")
"""Columns before labels and scores."""
TAKEN = frozenset((*FIRST, "image"))
"""What no label may be called here; ``image`` is the column that the library adds."""


def list_metadata(facts: Facts) -> pd.DataFrame:
    """The rows of ``metadata.parquet``, by ``sample_id``; raises ``TailfillError`` when no image was accepted.

    Likewise for a label whose name another column has.
    """
    if facts.kept.empty:
        raise TailfillError(f"{facts.run / 'synthetic'}: none of {len(facts.synthetic)} images was accepted; nothing "
                            "can leave")
    clash = [label for label in facts.cohort.labels if label in TAKEN or label.startswith(SCORE)]
    if clash:
        raise TailfillError(f"label '{clash[0]}' is also the name of another column of {METADATA}; wanted: a cohort "
                            "that calls it otherwise")
    plan = facts.plan.assign(plan_row=range(len(facts.plan)))[["sample_id", *ASKED]]
    files = facts.images[["sample_id", "sha256", "height", "width"]]
    kept = facts.kept.drop(columns="seed", errors="ignore")  # the plan has it too
    joined = kept.merge(plan, on="sample_id", validate="one_to_one")
    joined = joined.merge(files, on="sample_id", validate="one_to_one")
    if len(joined) != len(facts.kept):
        raise TailfillError(f"{facts.run}: {len(facts.kept) - len(joined)} accepted images stand in no row of plan and "
                            "images; wanted: tables of one run")
    joined = joined.assign(file_name=joined["sample_id"] + ".png").rename(
        columns={rule: SCORE + rule for rule in facts.rules})
    return joined[[*FIRST, *facts.cohort.labels, *(SCORE + rule for rule in facts.rules)]]


def write_image_folder(facts: Facts, metadata: pd.DataFrame, folder: Path) -> None:
    """Copy the images and write their table below ``folder``.

    Raises ``TailfillError`` for an image that is gone, or is not the one that was judged.
    """
    (folder / SPLIT).mkdir(parents=True)
    sources = facts.kept.set_index("sample_id")["path"]
    for row in metadata[["sample_id", "file_name", "sha256"]].to_dict("records"):
        source = facts.run / "images" / sources[row["sample_id"]]
        try:
            content = source.read_bytes()
        except OSError as error:
            raise TailfillError(f"{source}: cannot be read: {error.strerror}; wanted: the image that was "
                                "drawn") from error
        if hash_bytes(content) != row["sha256"]:
            raise TailfillError(f"{source}: was changed after it was drawn (sha256 {hash_bytes(content)[:12]}, "
                                f"images.parquet {str(row['sha256'])[:12]})")
        (folder / SPLIT / str(row["file_name"])).write_bytes(content)
    write_table(metadata, folder / SPLIT / METADATA)
