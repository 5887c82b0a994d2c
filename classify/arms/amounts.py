"""Arms at other amounts: ``synthetic-2x`` is ``synthetic`` in twice as many added slots per class.

A dose-response asks how many images per class are worth making. So an amount multiplies ``arm.slots_per_class``: the
classes get equally many slots at every amount, the share of them that synthetic images are to hold stays, and so do
their weight, the optimiser's steps and the test set. Each amount has a rival of its own in the very same slots
(``synthetic-2x`` against ``duplicate-2x``), since a larger amount also shows the tail more often. The amount 1 is the
plain arm. Layouts are nested: the slots of a smaller amount are the first ones, class by class, of a larger one, and
hold the same images (``layout.tail_slots`` and ``filling.fill_slots`` draw in order).

Not promised: that so many images were kept. What is missing stays a repeat and is counted as unfilled.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from cohort.config import arm_at
from cohort.errors import TailfillError

if TYPE_CHECKING:
    from classify.arms.rivals import Arm, Draw

NAME = re.compile(r"(?P<base>.+)-(?P<amount>\d+(?:\.\d+)?)x")


def split_amount(arm: str) -> tuple[str, float]:
    """``synthetic-0.25x`` to ("synthetic", 0.25); any other name to itself and 1."""
    found = NAME.fullmatch(arm)
    return (found["base"], float(found["amount"])) if found else (arm, 1.0)


def plain_arms(arms: Sequence[str], *also: str) -> list[str]:
    """Those of ``arms`` that have no amount in their name or are among ``also``, in their order."""
    return [arm for arm in arms if arm in also or split_amount(arm)[0] == arm]


class WithAmounts(Mapping[str, "Arm"]):
    """The arms by name; any of them that has added slots can be asked for at any amount, too.

    Iteration yields the plain names only. A name that is no arm, or an amount that no run would write so (``1x``,
    ``02x``), is a ``KeyError``.
    """

    def __init__(self, plain: Mapping[str, "Arm"]) -> None:
        self._plain = plain

    def __getitem__(self, name: str) -> "Arm":
        if name in self._plain:
            return self._plain[name]
        base, amount = split_amount(name)
        if amount == 1 or arm_at(base, amount) != name or "slots_per_class" not in self._plain[base].settings:
            raise KeyError(name)
        arm = self._plain[base]
        return replace(arm, build=lambda draw: arm.build(_at_amount(draw, amount, name=name)))

    def __iter__(self) -> Iterator[str]:
        return iter(self._plain)

    def __len__(self) -> int:
        return len(self._plain)


def _at_amount(draw: "Draw", amount: float, *, name: str) -> "Draw":
    """The draw with so many times as many slots per class, rounded; raises ``TailfillError`` where none are left."""
    slots = round(draw.config.slots_per_class * amount)
    if slots < 1:
        raise TailfillError(f"arm '{name}': {amount:g} times {draw.config.slots_per_class} slots (arm.slots_per_class) "
                            "is none; wanted: a larger amount, or more slots")
    return replace(draw, config=replace(draw.config, slots_per_class=slots))
