"""The parts of a report that describe the picture, sentence by sentence, with their places in the text.

Findings and impression speak of the picture; history, indication and comparison speak of the patient, of a question or
of another picture, and what is named there is not thereby seen. A heading is a line's beginning, or a sentence's, of
words that are known (``READ``, ``IGNORED``) with a colon, or in capitals with a colon. A part under an unknown heading
in capitals (``LUNGS:``) is read. In a report without findings or impression under a heading, what follows a blank line
after an ignored part is read too, as many hospitals write no heading there; in one without headings, everything.

Not promised: headings in other languages than English.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest

READ = ("findings", "finding", "impression", "impressions", "conclusion", "conclusions", "opinion", "interpretation",
        "findings and impression", "findings/impression", "final impression", "wet read", "report", "summary",
        "preliminary report", "chest", "heart", "lungs", "pleura", "bones", "mediastinum", "devices", "lines and tubes")
IGNORED = ("indication", "indications", "clinical indication", "history", "clinical history", "clinical information",
           "patient history", "reason", "reason for exam", "reason for examination", "reason for study",
           "reason for this examination", "comparison", "comparisons", "comparison study", "technique", "procedure",
           "exam", "examination", "examination type", "study", "type of examination", "date", "exam date",
           "clinical data",
           "recommendation", "recommendations", "notification", "notifications", "signed", "dictated by", "addressee",
           "attending", "final report", "view", "views", "procedure comments", "cc", "admitting diagnosis", "symptoms",
           "clinical question", "diagnosis", "contrast")
_KNOWN = "|".join(sorted((re.escape(name).replace(r"\ ", r"\s+") for name in (*READ, *IGNORED)), key=len, reverse=True))
HEADING = re.compile(rf"(?:^|(?<=\n)|(?<=[.!?]\s))[ \t]*(?:(?P<known>(?i:{_KNOWN}))[ \t]*:"
                     r"|(?P<capitals>[A-Z][A-Z /,&()-]{2,50})[ \t]*:"
                     r"|(?P<line>(?:FINAL|WET READ|PRELIMINARY)[ \t]+REPORT)[ \t]*(?=\n))")
BREAK = re.compile(r"(?<=[.!?])(?<!\b[Dd]r\.)(?<!\b[Mm]r\.)(?<!\bvs\.)(?<!\bi\.e\.)(?<!\be\.g\.)(?<!\b\d\.)\s+"
                   r"|\n\s*\n|\n\s*(?=(?:[-*•]|\d+[.)])\s)")
"""Between two sentences: after a full stop (but not that of "Dr." or of a list's "1."), a blank line, a list's item."""


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """A sentence of a part that is read; ``start`` and ``end`` are places in the report's text, end exclusive."""

    section: str
    start: int
    end: int
    text: str


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a report: heading in lower case (nothing where there is none), and where its words stand."""

    name: str
    start: int
    end: int
    is_read: bool


def split_sections(text: str) -> list[Section]:
    """The parts of a report in order; together with the headings they are the whole text."""
    heads = list(HEADING.finditer(text))
    parts = [Section(name="", start=0, end=heads[0].start() if heads else len(text), is_read=not heads)]
    for head, after in zip_longest(heads, heads[1:]):
        name = re.sub(r"\s+", " ", (head["known"] or head["capitals"] or head["line"]).strip().lower())
        parts.append(Section(name=name, start=head.end(), end=after.start() if after else len(text),
                             is_read=name not in IGNORED))
    return parts


def read_sentences(text: str) -> list[Sentence]:
    """The sentences of the parts that speak of the picture, in order; none where a report has no such part."""
    parts = split_sections(text)
    if not any(part.is_read and text[part.start:part.end].strip() for part in parts):
        parts = [_after_blank_line(text, part) for part in parts]
    return [sentence for part in parts if part.is_read for sentence in _sentences(text, part)]


def _after_blank_line(text: str, part: Section) -> Section:
    """What follows a blank line in an ignored part, read; where there is none, the part as it is."""
    blank = re.search(r"\S[^\n]*\n\s*\n", text[part.start:part.end])
    return part if blank is None else Section(name="", start=part.start + blank.end(), end=part.end, is_read=True)


def _sentences(text: str, part: Section) -> Iterator[Sentence]:
    start = part.start
    for gap in [*BREAK.finditer(text, part.start, part.end), None]:
        end = gap.start() if gap else part.end
        words = text[start:end]
        if words.strip():
            left = start + len(words) - len(words.lstrip())
            yield Sentence(section=part.name, start=left, end=left + len(words.strip()), text=words.strip())
        start = gap.end() if gap else end
