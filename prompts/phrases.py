"""Label vectors in a radiologist's words.

A prompt says who was imaged, in which view, and every finding that the vector carries; nothing else. What a label does
not state (side, size, severity) is not invented: a wording adds at most what the term itself means on a film. Each
wording keeps the label's own words (``Hernia`` -> "hiatal hernia"), because small text encoders are trained on these
prompts and because a reader must be able to get back from the prompt to the labels.

Rules:

- Different sets of labels give different prompts within a variant; the order in which labels are given plays no part.
- A label outside the vocabulary (a cohort made from a CSV may bring any) is spoken as its own name in lower case.
- No finding is ever left out. Where the full wording would not fit the text encoder, the short one is taken; where that
  does not fit either, :func:`phrase` raises, and :func:`fits` says so beforehand.

It does not promise that a pre-trained text encoder knows the words.
"""

import math
import re
from collections.abc import Sequence
from functools import lru_cache

from cohort.errors import TailfillError
from cohort.tables import SEXES, VIEWS
from cohort.vocabulary.findings import wordings

MAX_TOKENS = 75
"""CLIP's 77 positions without the start and end tokens."""

WORDINGS: dict[str, tuple[str, ...]] = wordings()
"""Label to its words, the short one first: ``cohort/vocabulary/findings.yaml``."""

NOTHING = ("no acute cardiopulmonary abnormality", "no abnormality of the lungs", "clear lungs and normal heart")

TEMPLATES = (
    "{Image} of {person}. {Findings}.",
    "{Image}, {patient}: {findings}.",
    "{Findings}. {Image} of {person}.",
    "{Image} of {person} showing {findings}.",
    "{Image}. {Person} with {findings}.",
    "Findings: {findings}. {Image} of {person}.",
)
"""Capitals start a sentence; ``patient`` is ``person`` without the article."""

PLAIN_WORDS = frozenset((
    "arteries", "below", "bones", "chest", "clear", "diaphragm", "enlarged", "film", "findings", "frontal", "heart",
    "infant", "lateral", "lungs", "male", "normal", "other", "patient", "place", "showing", "signs", "soft", "spine",
    "tissues", "visible", "woman",
))
"""Everyday English, taken as one token each; every other word counts by its length."""

SHORT_TEMPLATE = "{Image}, {patient}: {findings}."

N_VARIANTS = len(TEMPLATES)


def phrase(
    labels_present: Sequence[str], *, view: str | None, age: float | None, sex: str | None, variant: int
) -> str:
    """The prompt of one image.

    ``labels_present`` holds the names of the labels that are 1, in any order; empty means that nothing is there.
    ``view`` is PA, AP, LATERAL or None; ``age`` in years, None or NaN when unknown; ``sex`` M, F or None; ``variant``
    any integer, taken modulo ``N_VARIANTS``: it chooses template, wording and the order of the findings.

    Raises ``TailfillError`` for an unknown view or sex, and when even the short wording exceeds ``MAX_TOKENS``.
    """
    if view is not None and view not in VIEWS:
        raise TailfillError(f"prompt: view is {view!r}; wanted: one of {', '.join(VIEWS)}, or None")
    if sex is not None and sex not in SEXES:
        raise TailfillError(f"prompt: sex is {sex!r}; wanted: one of {', '.join(SEXES)}, or None")
    labels = tuple(sorted(set(labels_present)))
    for short in (False, True):
        text = _fill(labels, view=view, age=age, sex=sex, variant=variant % N_VARIANTS, short=short)
        if estimated_tokens(text) <= MAX_TOKENS:
            return text
    raise TailfillError(f"prompt of {len(labels)} findings ({', '.join(labels)}): about {estimated_tokens(text)} "
                        f"tokens even in its short wording; wanted: {MAX_TOKENS} or fewer, with no finding left out")


def fits(labels_present: Sequence[str]) -> bool:
    """Whether :func:`phrase` can say these labels in every variant, whoever was imaged."""
    labels = tuple(sorted(set(labels_present)))
    longest = _fill(labels, view="LATERAL", age=100, sex="F", variant=0, short=True)
    return estimated_tokens(longest) <= MAX_TOKENS


def negative_prompt() -> str:
    """The empty prompt: guidance then points away from the unconditional image, which is what training has learnt.

    A list of flaws ("blurry, text") is made of words that a text encoder trained on radiology prompts never met.
    """
    return ""


def estimated_tokens(text: str) -> int:
    """A cautious estimate of what CLIP's byte-pair encoding makes of ``text``, start and end tokens not counted.

    One token per digit, punctuation mark, word of up to 4 letters and plain word; a longer word costs one per 3.5
    letters, chosen because Greek compounds break into pieces of 3 to 4 letters there. The tokenizer of the generator
    has the last word: whoever encodes a prompt must refuse one that exceeds its length, never cut it.
    """
    return sum(map(_piece_tokens, re.findall(r"[a-z]+|[^\sa-z]", text.lower())))


@lru_cache(maxsize=4096)
def _piece_tokens(piece: str) -> int:
    return 1 if len(piece) <= 4 or piece in PLAIN_WORDS else math.ceil(len(piece) / 3.5)


@lru_cache(maxsize=4096)
def _findings(labels: tuple[str, ...], variant: int, *, short: bool) -> str:
    """All findings in one clause; the variant rotates their order, and reverses it every other time."""
    if not labels:
        return NOTHING[variant % len(NOTHING)]
    start = variant % len(labels)
    order = labels[start:] + labels[:start]
    words = [_wording(label, 0 if short else variant) for label in (order[::-1] if variant % 2 else order)]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _wording(label: str, variant: int) -> str:
    wordings = WORDINGS.get(label, (label.lower().replace("_", " "),))
    return wordings[(variant // 2) % len(wordings)]


def _image(view: str | None, *, short: bool) -> str:
    projection = {"PA": "frontal PA ", "AP": "frontal AP ", "LATERAL": "lateral ", None: ""}[view]
    return projection + ("chest film" if short else "chest radiograph")


def _person(age: float | None, sex: str | None) -> tuple[str, str]:
    """Article and noun, as in ``a``, ``63-year-old woman``; children are boy or girl, below one year an infant."""
    years = None if age is None or math.isnan(age) else int(age)
    adult = years is None or years >= 18
    noun = {"M": "man" if adult else "boy", "F": "woman" if adult else "girl", None: "patient"}[sex]
    if years is None:
        return "a", noun
    if years == 0:
        return {"M": ("a", "male infant"), "F": ("a", "female infant"), None: ("an", "infant")}[sex]
    return "an" if years in (8, 11, 18) or 80 <= years < 90 else "a", f"{years}-year-old {noun}"


def _fill(
    labels: tuple[str, ...], *, view: str | None, age: float | None, sex: str | None, variant: int, short: bool
) -> str:
    """Put image, person and findings into the variant's template, or into the short one."""
    image, findings = _image(view, short=short), _findings(labels, variant, short=short)
    article, patient = _person(age, sex)
    person = f"{article} {patient}"
    return (SHORT_TEMPLATE if short else TEMPLATES[variant]).format(
        image=image, person=person, patient=patient, findings=findings,
        Image=_capital(image), Person=_capital(person), Findings=_capital(findings),
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
