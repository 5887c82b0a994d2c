"""The rule-based labeller: every mention of every finding, with what the words around it make of it.

Per sentence that speaks of the picture: the phrases of all findings (``cohort/vocabulary/phrases.yaml``), without those
that an exclusion covers, each judged by the cues. Statements that deny a finding without naming it ("heart size is
normal") are mentions of status ``negated``. Nothing here looks at another sentence, so a report may contradict itself;
``deriving`` says what counts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from cohort.labelling.cues import find_cues, judge
from cohort.labelling.sections import read_sentences
from cohort.vocabulary.phrases import Phrase, Wording, wordings_of_reports

STATUSES = ("present", "negated", "uncertain", "absent")
"""There; said not to be there; doubted; not spoken of, or only as history, as a question."""


@dataclass(frozen=True, kw_only=True)
class Mention:
    """What a report says of a finding at one place; ends are exclusive, places are characters of the report's text."""

    finding: str
    phrase: str | None
    """The words as written; None where a model gave none, or none that stand in the text."""
    section: str | None
    """The heading above, in lower case; empty where there is none."""
    start: int | None
    end: int | None
    sentence_start: int | None
    sentence_end: int | None
    status: str
    """One of ``STATUSES``."""
    rule: str
    """What decided it: the phrase of the data file and the cue; or the style of a prompt."""


def find_mentions(text: str, wanted: Sequence[str]) -> list[Mention] | None:
    """Mentions of the ``wanted`` findings in a report, in its order; None where no part of it speaks of the picture."""
    sentences = read_sentences(text)
    if not sentences:
        return None
    mentions = [Mention(finding=hit.finding, phrase=sentence.text[hit.start:hit.end], section=sentence.section,
                        start=sentence.start + hit.start, end=sentence.start + hit.end, status=hit.status,
                        sentence_start=sentence.start, sentence_end=sentence.end, rule=hit.rule)
                for sentence in sentences for hit in _read_sentence(sentence.text, tuple(wanted))]
    return sorted(mentions, key=lambda mention: (mention.start or 0, mention.end or 0, mention.finding))


@lru_cache(maxsize=1 << 16)
def _read_sentence(sentence: str, wanted: tuple[str, ...]) -> tuple["_Hit", ...]:
    """What one sentence says; remembered, because reports repeat theirs ("No pleural effusion.")."""
    known, hits = wordings_of_reports(), []
    spoken_of = [(name, *hit) for name in wanted if name in known for hit in _find_phrases(sentence, known[name])]
    found = find_cues(sentence) if spoken_of else []
    for name, phrase, start, end, denies in spoken_of:
        status, cue = judge(sentence, found, start=start, end=end, has_gap=phrase.has_gap)
        if denies and status != "present":  # "the lungs are not clear" says nothing for certain
            continue
        rule = "; ".join([phrase.written, *(["denial"] if denies else [cue] if cue else [])])
        hits.append(_Hit(finding=name, start=start, end=end, status="negated" if denies else status, rule=rule))
    return tuple(hits)


@dataclass(frozen=True, kw_only=True)
class _Hit:
    """A mention by its place in its sentence."""

    finding: str
    start: int
    end: int
    status: str
    rule: str


def _find_phrases(sentence: str, wording: Wording) -> Iterator[tuple[Phrase, int, int, bool]]:
    """Phrase, start, end and whether it denies, of what no exclusion covers and no longer phrase takes."""
    barred = [match.span() for phrase in wording.exclusions for match in phrase.pattern.finditer(sentence)]
    hits = [(phrase, *match.span(), denies) for phrases, denies in ((wording.phrases, False), (wording.denials, True))
            for phrase in phrases for match in phrase.pattern.finditer(sentence)]
    taken: list[tuple[int, int]] = []
    for phrase, start, end, denies in sorted(hits, key=lambda hit: (hit[1] - hit[2], hit[1])):
        if not any(left <= start and end <= right for left, right in barred) and not any(
                start < right and left < end for left, right in taken):
            taken.append((start, end))
            yield phrase, start, end, denies
