"""Who is compared with whom: every arm has one rival, the arm that differs from it in one thing only.

The pairs of a comparison are each arm against ``real``, each against its own rival, and the endpoint's arm against all.
Not promised: that a pair answers a question of its own; with every arm there are two dozen, and one endpoint.
"""

from collections.abc import Sequence

from classify.arms.amounts import plain_arms, split_amount
from cohort.config import arm_at

RIVALS = {
    "oversample": "real",
    "crt": "real",
    "duplicate": "real",
    "duplicate-then-real": "real",
    "synthetic": "duplicate",
    "unfiltered": "duplicate",
    "permuted": "duplicate",
    "external": "duplicate",
    "oracle": "duplicate",
    "oracle-full": "duplicate",
    "duplicate-reconstructed": "duplicate",
    "oracle-reconstructed": "duplicate",
    "duplicate-harmonised": "duplicate",
    "synthetic-harmonised": "duplicate-harmonised",
    "permuted-harmonised": "duplicate-harmonised",
    "oracle-reconstructed-harmonised": "duplicate-harmonised",
    "synthetic-then-real": "duplicate-then-real",
    "diverse-to-specific": "duplicate",
}
"""Arm -> the arm that it has to beat: for arms that put other images into the slots of repeated ones, those repeats."""

HARMONISED_ARM = "-harmonised"
"""Ends the names of arms in which real images, too, went through the generator's autoencoder."""
NEW_REAL = ("oracle", "oracle-full", "external")
"""Arms whose slots hold real images from outside the cohort; those of the others hold real or synthetic ones."""

ABOUT = {
    "real": "the real images once each: plain training",
    "oversample": "images of rare findings repeated by frequency: the textbook remedy",
    "crt": "plain training, then a new head alone on class-balanced images: is the head the problem?",
    "duplicate": "repeats of real tail images in the added slots: what costs nothing",
    "duplicate-then-real": "as duplicate, finished on the real images alone",
    "synthetic": "kept synthetic images in half of these slots: what has to prove itself",
    "unfiltered": "as synthetic, drawn without the filter: is the filter worth it?",
    "permuted": "as synthetic, with the labels shuffled among its images: content, or noise that regularises?",
    "external": "real images of the generator's own pre-training site: could one train on those directly?",
    "oracle": "new real images in these slots: the most that better images could bring",
    "oracle-full": "as oracle, and every new real image once beside the others: what having them all would bring",
    "duplicate-reconstructed": "as duplicate, through the generator's autoencoder: what its texture alone costs",
    "oracle-reconstructed": "as oracle, through that autoencoder: the ceiling of any generator around it",
    "duplicate-harmonised": "as duplicate, a share of repeats and of real images through the generator's autoencoder",
    "synthetic-harmonised": "as synthetic, as many real images through the generator's autoencoder: content alone",
    "permuted-harmonised": "as synthetic-harmonised, with the labels shuffled among its images",
    "oracle-reconstructed-harmonised": "as oracle-reconstructed, as many real images likewise: the ceiling then",
    "synthetic-then-real": "as synthetic, finished on the real images alone",
    "diverse-to-specific": "as unfiltered, finished on the kept images that the critic is surest of: a curriculum",
}
"""Arm -> one line for a reader: what stands in it, and which question it answers."""


def rivals_of(arms: Sequence[str]) -> dict[str, str]:
    """Arm to its rival, for those of ``arms`` whose rival is there too, in their order.

    An arm at another amount has its rival at that amount: ``synthetic-2x`` has ``duplicate-2x``, which has ``real``.
    """
    found = {}
    for arm in arms:
        base, amount = split_amount(arm)
        rival = RIVALS.get(base)
        found[arm] = rival if rival in (None, "real") else arm_at(rival, amount)
    return {arm: rival for arm, rival in found.items() if rival is not None and rival in arms}


def slot_rivals(arms: Sequence[str]) -> dict[str, str]:
    """``rivals_of`` without the arms that are measured against ``real``: those that fill the slots of repeats."""
    return {arm: rival for arm, rival in rivals_of(arms).items() if rival != "real"}


def oracle_rival(rival: str) -> str:
    """Whom the oracle has to beat in an experiment with this rival: of harmonised arms the plain one, as it is plain.
    """
    return rival.removesuffix(HARMONISED_ARM)


def default_pairs(arms: Sequence[str], *, arm: str, rival: str) -> list[tuple[str, str]]:
    """The (arm, rival) pairs of a comparison, the endpoint's first and none twice.

    Arms at other amounts are compared with their own rivals only.
    """
    plain = plain_arms(arms, arm, rival)
    pairs = [
        (arm, rival),
        *((other, "real") for other in plain if "real" in arms),
        *((arm, other) for other in plain),
        *rivals_of(arms).items(),
        *(("oracle", oracle_rival(rival)) for other in arms if other == "oracle" and oracle_rival(rival) in arms),
    ]
    return [pair for pair in dict.fromkeys(pairs) if pair[0] != pair[1]]
