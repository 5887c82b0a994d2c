"""The vocabulary (``findings.yaml``) as Python sees it: one ``Finding`` per canonical name.

A finding has one canonical name, CXR-LT's wording wherever CXR-LT has it, and the name that each source gives it. So
cohorts can be merged (``cohort.vocabulary.merging``), a source's table can be read into canonical columns, and prompts
know the words (``prompts.phrases``).

Not promised: that two sources mean quite the same by the same name. NIH's Infiltration and CXR-LT's come from different
labellers and different hospitals, and no table can mend that.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from cohort.errors import TailfillError

FILE = Path(__file__).with_name("findings.yaml")
SOURCES = ("nih", "cxr_lt", "chexpert", "vindr", "padchest")
"""Whose names the vocabulary has."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One entry of the vocabulary."""

    name: str
    """The canonical name."""
    names: Mapping[str, tuple[str, ...]]
    """Source to the labels that mean this finding there, PadChest's several, others' one."""
    wordings: tuple[str, ...]
    """Words for prompts, the short one first."""
    definition: str
    """What it is, in a sentence."""
    source: str
    """Where to read more, as the head of the file has it."""
    aliases: tuple[str, ...] = ()
    """Other names that label spaces of ours use for it (NIH's ``Effusion``)."""


@cache
def findings() -> dict[str, Finding]:
    """The vocabulary by canonical name; raises ``TailfillError`` for an entry that lacks something."""
    entries, aliases = _entries()
    found = {}
    for name, entry in entries.items():
        names = {source: (label,) for source, label in entry["names"].items()}
        if "padchest" in entry:
            names["padchest"] = tuple(entry["padchest"])
        unknown = names.keys() - set(SOURCES)
        if unknown or not all(entry.get(key) for key in ("wordings", "definition", "source")):
            raise TailfillError(f"{FILE.name}: '{name}' needs wordings, definition and source, and names of "
                                f"{', '.join(SOURCES)}; it has {', '.join(entry)}, and names of {', '.join(names)}")
        found[name] = Finding(name=name, names=names, wordings=tuple(entry["wordings"]), source=entry["source"],
                              definition=entry["definition"],
                              aliases=tuple(other for other, alias in aliases.items() if alias["same_as"] == name))
    return found


@cache
def wordings() -> dict[str, tuple[str, ...]]:
    """Words for prompts by label, aliases with words of their own included."""
    return ({name: finding.wordings for name, finding in findings().items()}
            | {alias: tuple(entry["wordings"]) for alias, entry in _entries()[1].items()})


@cache
def canonical_names() -> dict[str, str]:
    """Every label that one of our label spaces may have, to its canonical name."""
    return {alias: finding.name for finding in findings().values() for alias in (finding.name, *finding.aliases)}


def names_of(source: str) -> dict[str, tuple[str, ...]]:
    """Canonical name to a source's own labels, for the findings that it has, in the order of the vocabulary."""
    return {name: finding.names[source] for name, finding in findings().items() if source in finding.names}


@cache
def _entries() -> tuple[dict[str, dict], dict[str, dict]]:
    """Findings, and aliases of findings, as they stand in the file."""
    content = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return ({name: entry for name, entry in content.items() if "same_as" not in entry},
            {name: entry for name, entry in content.items() if "same_as" in entry})
