"""The parts of a report that describe the picture, sentence by sentence, with their places in the text.

Findings and impression speak of the picture; history, indication and comparison speak of the patient, of a question or
of another picture, and what is named there is not thereby seen. A heading is a line's beginning, or a sentence's, of
words that are known (``READ``, ``IGNORED``) with a colon, or in capitals with a colon. A part under an unknown heading
in capitals is read, unless it names a history, a reason and the like (``NOT_SEEN``). Where the heading is what the
words speak of ("HEART: enlarged"), it belongs to the first sentence. In a report without findings or impression under
a heading, what follows a blank line after an ignored part is read too, as many hospitals write no heading there; in one
without headings, everything.

Not promised: headings in other languages than English; words that a line break cuts in two.
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
           "clinical question", "diagnosis", "contrast", "past medical history", "medical history", "provided history",
           "history of present illness", "chief complaint", "clinical details", "clinical indications")
LONGEST = 1000
"""Characters of a sentence; what is longer has no full stops, and is cut at a space: time grows with the cube."""
SUBJECTS = ("heart", "lungs", "pleura", "bones", "mediastinum", "devices", "lines and tubes")
"""Headings, beside unknown ones in capitals, that say what the words below speak of."""
NOT_SEEN = re.compile(r"\b(history|indications?|reason|complaint|comparison|technique|diagnosis|symptoms)\b")
"""Words of a heading under which no picture is described, unless findings or impression are named with them."""
_KNOWN = "|".join(sorted((re.escape(name).replace(r"\ ", r"\s+") for name in (*READ, *IGNORED)), key=len, reverse=True))
HEADING = re.compile(rf"(?:^|(?<=\n)|(?<=[.!?]\s))[ \t]*(?:(?P<known>(?i:{_KNOWN}))[ \t]*:"
                     r"|(?P<capitals>[A-Z][A-Z /,&()-]{2,50})[ \t]*:"
                     r"|(?P<line>(?:FINAL|WET READ|PRELIMINARY)[ \t]+REPORT)[ \t]*(?=\n))")
BREAK = re.compile(r"(?<=[.!?])(?<!\b[Dd]r\.)(?<!\b[Mm]r\.)(?<!\bvs\.)(?<!\bi\.e\.)(?<!\be\.g\.)"
                   r"(?<!\n\d\.)(?<!\s\s\d\.)(?<![\n:.]\s\d\.)"
                   r"(?<!\s\?)\s+"
                   r"|\n\s*\n|\n\s*(?=(?:[-*•]|\d+[.)])\s)"
                   r"|\n[ \t]*(?=[A-Z][a-z]+\b)(?!(?:Dr|Mr|Mrs|Ms|Kerley|Swan|Port|Hickman|Dobbhoff)\b)")
"""Between two sentences: after a full stop (but not that of "Dr." or of a list's "1."), a blank line, a list's item, a
line that begins with a word in lower case after its capital: one statement a line, without full stops."""


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
    """The parts of a report in order; together with the other headings they are the whole text."""
    heads = list(HEADING.finditer(text))
    parts = [Section(name="", start=0, end=heads[0].start() if heads else len(text), is_read=not heads)]
    for head, after in zip_longest(heads, heads[1:]):
        name = re.sub(r"\s+", " ", (head["known"] or head["capitals"] or head["line"]).strip().lower())
        names_subject = name in SUBJECTS or bool(head["capitals"] and name not in READ)
        parts.append(Section(name=name, start=head.start(head.lastgroup or 0) if names_subject else head.end(),
                             end=after.start() if after else len(text), is_read=is_of_picture(name)))
    return parts


def is_of_picture(heading: str) -> bool:
    """Whether the picture is described under a heading in lower case."""
    if heading in (*READ, *IGNORED):
        return heading in READ
    return not NOT_SEEN.search(heading) or "findings" in heading or "impression" in heading


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
        for left, right in _pieces(text, start, end):
            words = text[left:right]
            left += len(words) - len(words.lstrip())
            if words.strip():
                yield Sentence(section=part.name, start=left, end=left + len(words.strip()), text=words.strip())
        start = gap.end() if gap else end


def _pieces(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """From ``start`` to ``end`` in pieces of at most ``LONGEST`` characters, cut at a space where there is one."""
    while end - start > LONGEST:
        space = max(text.rfind(gap, start + 1, start + LONGEST) for gap in " \n")
        cut = space if space > start else start + LONGEST
        yield start, cut
        start = cut
    yield start, end
