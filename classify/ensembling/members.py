"""The members of an ensemble: one arm and seed, trained several times with a few keys of ``train`` changed.

``members: {r64: {image_size: 64}, r96: {image_size: 96}}`` in a configuration makes of every arm as many models, with
the arm's one table of slots. Wherever an arm is named, ``ARM@MEMBER`` is one of its models, with folders of its own:
``train/real@r64/seed_0``. All arms have the same members, so an arm is compared with its rival member for member.

Not promised: that more members are better; the report shows each one's score beside the ensemble's.
"""

from dataclasses import asdict

import jsonargparse

from classify.learning.settings import FIRST_EXTRA_SEED, TrainConfig
from cohort.config import Run, check_keys
from cohort.errors import TailfillError, nearest
from cohort.pipeline import member_names


def split_name(run: Run, name: str, seed: int) -> tuple[str, str]:
    """Arm and member of ``ARM@MEMBER``; the member is empty where the run has none, and for critics and folds.

    Raises ``TailfillError`` for a member that the run does not have, and for an arm of an ensemble without one.
    """
    arm, at, member = name.partition("@")
    if at and member not in run.members:
        raise TailfillError(f"arm '{name}': no member '{member}'{nearest(member, list(run.members))}" if run.members
                            else f"arm '{name}': the configuration has no members")
    if run.members and not member and seed < FIRST_EXTRA_SEED:
        raise TailfillError(f"arm '{arm}': has a model for each member; wanted: one of "
                            + ", ".join(member_names(arm, run.members)))
    return arm, member


def member_config(run: Run, config: TrainConfig, member: str) -> TrainConfig:
    """The ``train`` section of a member, checked as a whole; ``config`` itself for the empty name.

    Raises ``TailfillError`` naming the member and the key that is unknown or out of range.
    """
    if not member:
        return config
    check_keys(run.members[member], TrainConfig, where=f"members.{member}")
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(TrainConfig, "train")
    try:
        parsed = parser.parse_object({"train": asdict(config) | run.members[member]})
        made: TrainConfig = parser.instantiate(parsed)["train"]
    except (jsonargparse.ArgumentError, TailfillError, TypeError, ValueError) as error:
        raise TailfillError(f"members.{member}: {error}") from error
    return made
