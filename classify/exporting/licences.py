"""A licence as a card states it: one line of text, and the identifier by which model hubs know it.

Not promised: that whoever states a licence may give it.
"""

import re

from cohort.errors import TailfillError

HUB_LICENCES = frozenset((
    "apache-2.0", "mit", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nd-4.0",
    "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0", "openrail", "openrail++", "creativeml-openrail-m", "odc-by", "pddl",
    "gpl-3.0", "unlicense",
))
"""Identifiers of the hub that a licence is likely to have; any other is ``other`` there, under its own name."""
LONGEST = 200
"""Characters of a licence's name."""


def check_licence(given: str, *, flag: str = "--licence") -> str:
    """The licence without blanks around it; raises ``TailfillError`` for what is no single line of text."""
    if not given.strip() or len(given) > LONGEST or not given.isprintable():
        raise TailfillError(f"{flag} is {given!r}; wanted: an identifier such as cc-by-nc-4.0, or a name on one line")
    return given.strip()


def licence_header(licence: str) -> dict[str, str]:
    """What the hub's YAML header says of a licence: its identifier, or ``other`` with its name."""
    identifier = licence.lower()
    if identifier in HUB_LICENCES:
        return {"license": identifier}
    slug = re.sub(r"[^a-z0-9]+", "-", identifier).strip("-") or "other"
    return {"license": "other", "license_name": slug}
