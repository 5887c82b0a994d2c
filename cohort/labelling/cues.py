"""Is a finding that a sentence names there, denied, doubted, or only spoken of? By the cue words around it.

The way of NegEx and ConText: each cue reaches the findings after it, before it or near it, up to a stop; a longer cue
takes the words of a shorter one. Written here, on a data file (``cohort/vocabulary/cues.yaml``), because the libraries
for it were found wanting (November 2026): negspaCy 1.1 knows negation only and brings spaCy with 17 further packages,
medspaCy 1.3.1 cannot be installed beside the tested pins, and pyConTextNLP's last release is of 2019, ships no lexicon
and leaves a package called ``functional`` beside itself.

Not promised: grammar. "No change in the effusion, which is small" is understood by the words "no change in" alone.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from cohort.vocabulary.phrases import KINDS, Cue, cues

AROUND_WORDS = 4
"""How far a cue under ``around`` reaches, in words."""


@dataclass(frozen=True, kw_only=True)
class FoundCue:
    """A cue at its place in a sentence, end exclusive."""

    cue: Cue
    start: int
    end: int
    words: str


def find_cues(sentence: str) -> list[FoundCue]:
    """The cues of a sentence in order, none overlapping another: the longest at a place wins, then the first."""
    hits = [FoundCue(cue=cue, start=match.start(), end=match.end(), words=match.group().lower())
            for cue in cues() for match in cue.phrase.pattern.finditer(sentence)]
    hits.sort(key=lambda hit: (hit.start - hit.end, hit.start))
    kept: list[FoundCue] = []
    for hit in hits:
        # what stands at the very same place is one word with several meanings ("possible" before and after)
        if all(hit.end <= other.start or hit.start >= other.end or (hit.start, hit.end) == (other.start, other.end)
               for other in kept):
            kept.append(hit)
    return sorted(kept, key=lambda hit: (hit.start, hit.end))


def judge(sentence: str, found: Sequence[FoundCue], *, start: int, end: int, has_gap: bool) -> tuple[str, str | None]:
    """Status of the words from ``start`` to ``end``, exclusive, and the cue that decides it; None where present.

    ``has_gap``: whether a cue may stand inside of these words. Status is ``present``, ``negated``, ``absent`` or
    ``uncertain``.
    """
    reaching = [hit for hit in found if hit.cue.kind in KINDS and _reaches(sentence, hit, found, start, end, has_gap)]
    for kind in KINDS:
        for hit in reaching:
            if hit.cue.kind == kind:
                return kind, hit.words
    return "present", None


def _reaches(sentence: str, hit: FoundCue, found: Sequence[FoundCue], start: int, end: int, has_gap: bool) -> bool:
    if start <= hit.start and hit.end <= end:
        return has_gap
    if hit.start < end and hit.end > start:  # one of them takes words of the other: a cue only where it sticks out
        return hit.cue.direction in ("before", "around") and hit.start < start
    is_before = hit.end <= start
    if hit.cue.direction != "around" and (hit.cue.direction == "before") != is_before:
        return False
    left, right = (hit.end, start) if is_before else (end, hit.start)
    if hit.cue.direction == "around" and len(re.findall(r"\w+", sentence[left:right])) > AROUND_WORDS:
        return False
    return not any(other.cue.kind in ("stop", f"stops {hit.cue.kind}") and left <= other.start < right
                   for other in found)
