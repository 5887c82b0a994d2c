"""What a rule is, and the rules there are: ``RULES`` names them, ``filter.rules`` chooses them and their order.

A rule is a function of ``Evidence`` that returns criteria: a score per image, a threshold with its source, and the
images that it applies to. Its keyword arguments with their defaults are its settings, so
``filter.rules: {blank: {quantile: .01}}`` needs nothing else. Thresholds come from real images, never from the images
judged. A rule of your own is one function, which says with ``reads`` what it looks at, and one line of the
configuration, its place as ``module:function``::

    filter: {rules: {blank: null, "my_rules:too_sharp": {quantile: .999}}}

Rules run in the order of the configuration; each sees which images are still standing, and the first that an image
fails is its reason. A rule that cannot judge says so in its criterion and fails nobody. Of any rule, ``drop: false``
lets it score and tell without dropping an image, as ``ADVISORY`` ones do unless they are told otherwise.
"""

import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import numpy as np

from cohort.errors import TailfillError, nearest
from cohort.tables import RESERVED
from synth.judging.evidence import Evidence

Settings = Mapping[str, float | int | str | bool]
"""Of a rule."""


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """One score with one threshold. A null threshold means *not judged*, and ``reason`` says why."""

    label: str | None
    score: np.ndarray
    """float64 (n,), in the unit that ``source`` tells."""
    applies: np.ndarray
    """bool (n,): which images it judges."""
    threshold: float | None
    at_least: bool
    """Whether the score must reach the threshold, or must not exceed it."""
    source: str
    """Where the threshold comes from."""
    n_positive: int | None = None
    """Positive images behind the threshold or the judgement, where it is about a label."""
    reason: str | None = None
    drops: bool = True
    """Whether an image that fails is dropped, or only told of."""

    def margin(self) -> np.ndarray:
        """float64 (n,): distance on the passing side of the threshold, >= 0 passes; NaN where nothing is judged."""
        if self.threshold is None:
            return np.full(len(self.score), np.nan)
        margin = self.score - self.threshold if self.at_least else self.threshold - self.score
        return np.where(self.applies, margin, np.nan)


Rule = Callable[..., list[Criterion]]
"""``rule(evidence, *, setting=default, ...)``."""


def reads(*kinds: str) -> Callable[[Rule], Rule]:
    """Say what a rule reads: kinds of readers, keys of ``gathering.SETS``. Others may be missing from its evidence.

    ``copies`` gives what a search found, the readings of ``gathering.SEARCHING`` (``memorisation.matches_of``).
    """
    def mark(rule: Rule) -> Rule:
        rule.reads = kinds  # type: ignore[attr-defined]
        return rule

    return mark


def read_by(rules: Iterable[str]) -> set[str]:
    """The kinds of readers that rules need, by name or place."""
    return {kind for name in rules for kind in getattr(find_rule(name), "reads", ())}


RULES: dict[str, str] = {
    "blank": "synth.judging.sanity:blank",
    "saturated": "synth.judging.sanity:saturated",
    "frame": "synth.judging.sanity:frame",
    "bar": "synth.judging.sanity:bar",
    "checkerboard": "synth.judging.sanity:checkerboard",
    "view": "synth.judging.sanity:view",
    "realism": "synth.judging.realism:realism",
    "neighbourhood": "synth.judging.realism:neighbourhood",
    "memorisation": "synth.judging.memorisation:memorisation",
    "label_agreement": "synth.judging.agreement:label_agreement",
    "drawn": "synth.measuring.drawn:drawn",
    "diversity": "synth.judging.diversity:diversity",
}
"""Name to the place of its function, in the default order."""
ADVISORY = ("realism", "neighbourhood")
"""Rules that drop nothing unless they are told to. Next to real images they fail nearly all that a small generator
makes, and such images have helped all the same (RESULTS.md): how far from real they are is worth knowing, and no
reason to throw them away."""


def find_rule(name: str) -> Rule:
    """The function of a rule, by its name or its place; raises ``TailfillError`` for one that is not to be found."""
    if name not in RULES and ":" not in name:
        raise TailfillError(f"filter.rules: unknown rule '{name}'{nearest(name, list(RULES))}; wanted: one of them, or "
                            "'module:function' for one of your own")
    module, _, function = RULES.get(name, name).partition(":")
    try:
        rule: Rule = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise TailfillError(f"filter.rules: '{name}' cannot be imported: {error}; wanted: module:function") from error
    return rule


def own_files(rules: Iterable[str]) -> dict[str, Path]:
    """The source files of a user's own rules, by ``rule NAME``: what they compute is known by it.

    Not promised: what such a file imports. Raises ``TailfillError`` for a rule that is in no file.
    """
    files = {}
    for name in rules:
        if name not in RULES:
            find_rule(name)
            file = getattr(importlib.import_module(name.partition(":")[0]), "__file__", None)
            if file is None or not Path(file).is_file():
                raise TailfillError(f"filter.rules: '{name}' is in no file; wanted: a module with a source file")
            files[f"rule {name}"] = Path(file)
    return files


def column(name: str) -> str:
    """The column of a rule's margins: its name, or its function's where it is given by place; ``view_rule`` and the
    like where the tables have a column of that name."""
    own = name.rpartition(":")[2]
    return f"{own}_rule" if own in RESERVED else own


def check_rules(rules: Mapping[str, Settings | None]) -> None:
    """Raise ``TailfillError`` for an unknown rule or setting, or a setting out of range.

    What a setting may be follows from its default: a whole number is a count from 1 on, another number a share
    strictly between 0 and 1, a text one of those that its ``Literal`` names.
    """
    columns = [column(name) for name in rules]
    if len(set(columns)) < len(columns):
        raise TailfillError(f"filter.rules: two rules of one name among {columns}; wanted: a name for each")
    for name, settings in rules.items():
        rule = find_rule(name)
        hints = get_type_hints(rule)
        legal = {"drop": name not in ADVISORY} | {
            key: parameter.default for key, parameter in inspect.signature(rule).parameters.items()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY}
        for key, value in (settings or {}).items():
            if key not in legal:
                raise TailfillError(f"filter.rules.{name}: unknown key '{key}'{nearest(key, list(legal))}")
            if wanted := _objection(value, default=legal[key], hint=hints.get(key)):
                raise TailfillError(f"filter.rules.{name}.{key} is {value!r}; wanted: {wanted}")


def _objection(value: object, *, default: object, hint: object) -> str | None:
    """What a setting should have been, or None where it is that."""
    if get_origin(hint) is Literal:
        return None if value in get_args(hint) else f"one of {', '.join(map(str, get_args(hint)))}"
    if isinstance(default, bool):
        return None if isinstance(value, bool) else "true or false"
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(default, int):
        return None if number and isinstance(value, int) and value >= 1 else "a whole number from 1 on"
    return None if number and 0 < value < 1 else "a share between 0 and 1"  # type: ignore[operator]


def apply_rules(rules: Mapping[str, Settings | None], evidence: Evidence) -> dict[str, list[Criterion]]:
    """Every rule's criteria by its column, in the order of the configuration."""
    verdicts: dict[str, list[Criterion]] = {}
    standing = evidence.still_standing
    for name, settings in rules.items():
        chosen = {"drop": name not in ADVISORY, **(settings or {})}
        drops = chosen.pop("drop")
        criteria = find_rule(name)(replace(evidence, standing=standing), **chosen)
        verdicts[column(name)] = [replace(criterion, drops=bool(drops)) for criterion in criteria]
        standing = standing & ~fails(verdicts[column(name)], len(standing))
    return verdicts


def fails(criteria: list[Criterion], n: int) -> np.ndarray:
    """bool (n,): images that a rule drops."""
    return worst_margin([criterion for criterion in criteria if criterion.drops], n) < 0


def worst_margin(criteria: list[Criterion], n: int) -> np.ndarray:
    """float64 (n,): the smallest margin over a rule's criteria; an image fails below 0; NaN where none judged it."""
    margins = np.stack([np.full(n, np.nan), *(criterion.margin() for criterion in criteria)])
    smallest = np.where(np.isnan(margins), np.inf, margins).min(axis=0)
    return np.where(np.isfinite(smallest), smallest, np.nan)
