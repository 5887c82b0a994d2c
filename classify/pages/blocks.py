"""How the report shows things: tables of text, chapters, notes for undefined numbers, and number formats.

A chapter is data; the two templates only lay it out, so HTML and Markdown show the same numbers. An undefined number is
a dash with a letter, and the letter is explained below the table: nothing is left blank without a reason.
"""

import re
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

DASH = "—"
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of text; columns from ``text`` on the left are left-aligned, the others are numbers."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text: int = 1
    last_text: bool = False
    strong: frozenset[int] = frozenset()
    grey: frozenset[int] = frozenset()
    notes: tuple[str, ...] = ()
    kind: str = field(default="table", init=False)


@dataclass(frozen=True, kw_only=True)
class Chapter:
    """One section: its anchor, its words, its blocks, and the tables of the run that its numbers come from."""

    anchor: str
    title: str
    words: tuple[str, ...] = ()
    blocks: tuple[Any, ...] = ()
    sources: tuple[str, ...] = ()
    points: tuple[str, ...] = ()


class Notes:
    """Reasons of undefined numbers, each with a letter: the cell carries the letter, the table's foot the reason."""

    def __init__(self) -> None:
        self._reasons: list[str] = []

    def dash(self, reason: object) -> str:
        """A dash with the letter of ``reason`` (``no reason given`` when it is null)."""
        text = str(reason) if isinstance(reason, str) and reason else "no reason given"
        if text not in self._reasons:
            self._reasons.append(text)
        return f"{DASH} ({self._letter(self._reasons.index(text))})"

    def lines(self) -> tuple[str, ...]:
        """``(a) reason`` lines in the order of their first use."""
        return tuple(f"({self._letter(i)}) {text}" for i, text in enumerate(self._reasons))

    @staticmethod
    def _letter(i: int) -> str:
        return LETTERS[i % len(LETTERS)] * (i // len(LETTERS) + 1)


def is_null(value: object) -> bool:
    """None, NaN and pandas' NA."""
    return value is None or bool(pd.isna(value))  # type: ignore[call-overload]


def number(value: Any, digits: int = 3) -> str:
    """Fixed decimals, a true minus sign; a dash for null."""
    return DASH if is_null(value) else f"{float(value):.{digits}f}".replace("-", "−")


def p_value(value: Any) -> str:
    """``p = 0.012``, ``p < 0.001`` for what three decimals would call nothing; a dash for null."""
    return "p < 0.001" if not is_null(value) and float(value) < 0.001 else f"p = {number(value)}"


def signed(value: Any, digits: int = 3) -> str:
    """As ``number`` with a plus sign for what is above zero; what rounds to zero has no sign."""
    if is_null(value):
        return DASH
    rounded = round(float(value), digits)
    return f"{rounded:+.{digits}f}".replace("-", "−") if rounded else f"{0:.{digits}f}"


def count(value: Any) -> str:
    """Whole number with thousands separated; a dash for null."""
    return DASH if is_null(value) else f"{int(value):,}"


def plain(text: object) -> str:
    """Text that no Markdown renderer takes for markup: on one line, with HTML and Markdown's signs escaped."""
    line = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#~!])", r"\\\1", line)
