"""How reports say each finding (``phrases.yaml``), and the words that deny or doubt one (``cues.yaml``), compiled.

A phrase is a small regular expression over one sentence. So that the data files stay readable, a space stands for any
white space (`` ?`` for any or none), ``...`` for at most ``GAP_WORDS`` words, and word boundaries are put around it.
Where phrases of a finding overlap, the longest counts.

Not promised: every way to say it. A report that calls an effusion "a little water on the left" is not understood.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from cohort.errors import TailfillError, nearest
from cohort.vocabulary.findings import findings

PHRASES = Path(__file__).with_name("phrases.yaml")
CUES = Path(__file__).with_name("cues.yaml")
GAP_WORDS = 6
"""Words that ``...`` may stand for; chosen because ConText's window is six words (Harkema 2009)."""
KINDS = ("negated", "absent", "uncertain")
"""What a cue makes of a finding; where several reach it, the first of these counts."""
DIRECTIONS = ("before", "after", "around")
_GAP = rf"(?:[\s,]+[\w'/-]+){{0,{GAP_WORDS}}}?[\s,]+"


@dataclass(frozen=True, kw_only=True)
class Phrase:
    """One expression of the data files."""

    written: str
    """As it stands in the file: what a mention names as its rule."""
    pattern: re.Pattern[str]
    has_gap: bool
    """Whether it has a ``...``, inside of which a cue may stand ("the heart is *not* enlarged")."""


@dataclass(frozen=True, kw_only=True)
class Wording:
    """What phrases.yaml knows of one finding."""

    finding: str
    phrases: tuple[Phrase, ...]
    exclusions: tuple[Phrase, ...] = ()
    denials: tuple[Phrase, ...] = ()
    implies: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Cue:
    """Words that say something of the findings near them."""

    phrase: Phrase
    kind: str
    """One of ``KINDS``, or ``neither``, ``stop``, ``stops negated``, ``stops uncertain``."""
    direction: str
    """``before`` the findings that it speaks of, ``after`` or ``around`` them; nothing for a stop."""


def compile_phrase(written: str, *, where: str) -> Phrase:
    """A phrase of the data files as an expression; raises ``TailfillError`` naming ``where`` for a broken one."""
    parts = [re.sub(r" +(\??)", lambda gap: r"\s*" if gap[1] else r"\s+", part.strip())
             for part in written.split("...")]
    start, end = (r"\b" if re.match(r"[\w(]", written) else ""), (r"\b" if re.search(r"[\w?)+*]$", written) else "")
    try:
        pattern = re.compile(f"{start}(?:{_GAP.join(parts)}){end}", re.IGNORECASE)
    except re.error as error:
        raise TailfillError(f"{where}: '{written}' is no regular expression: {error}") from error
    if pattern.match(""):
        raise TailfillError(f"{where}: '{written}' matches nothing at all; wanted: words")
    return Phrase(written=written, pattern=pattern, has_gap=len(parts) > 1)


@cache
def wordings_of_reports() -> dict[str, Wording]:
    """Canonical name to its wording, in the order of the file; raises ``TailfillError`` for an entry that is wrong."""
    legal = ("phrases", "exclusions", "denials", "implies")
    found = {}
    for name, entry in _read(PHRASES).items():
        where = f"{PHRASES.name}: '{name}'"
        if name not in findings():
            raise TailfillError(f"{where}: is no finding of the vocabulary{nearest(name, list(findings()))}")
        wrong = [key for key in entry if key not in legal]
        if wrong or not entry.get("phrases"):
            raise TailfillError(f"{where}: has {', '.join(entry)}; wanted: phrases, and perhaps {', '.join(legal[1:])}")
        unknown = [other for other in entry.get("implies", []) if other not in findings()]
        if unknown:
            raise TailfillError(f"{where}: implies '{unknown[0]}'{nearest(unknown[0], list(findings()))}")
        lists: dict[str, Any] = {key: tuple(compile_phrase(str(text), where=where) for text in entry.get(key, []))
                                 for key in legal[:3]}
        found[name] = Wording(finding=name, implies=tuple(entry.get("implies", [])), **lists)
    return found


@cache
def cues() -> tuple[Cue, ...]:
    """The cues in the order of the file; raises ``TailfillError`` for a kind or direction that is not known."""
    content, found = _read(CUES), []
    for kind in KINDS:
        for direction, written in content[kind].items():
            if direction not in (*DIRECTIONS, "stops"):
                near = nearest(direction, [*DIRECTIONS, "stops"])
                raise TailfillError(f"{CUES.name}: {kind} has '{direction}'{near}")
            ends = direction == "stops"
            found += _cues(written, kind=f"stops {kind}" if ends else kind, direction="" if ends else direction)
    for kind in ("neither", "stop"):
        found += _cues(content[kind], kind=kind, direction="")
    return tuple(found)


def _cues(written: Sequence[str], *, kind: str, direction: str) -> list[Cue]:
    return [Cue(phrase=compile_phrase(str(text), where=f"{CUES.name}: {kind}"), kind=kind, direction=direction)
            for text in written]


def _read(file: Path) -> Mapping[str, Any]:
    try:
        return dict(yaml.safe_load(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise TailfillError(f"{file}: cannot be read: {error}") from error
