"""Prepared cohorts joined to one, each finding under one name, and everything announced that this changes.

::

    python -m cohort.prepare merge --cohorts '["RUN1/cohort", "RUN2/cohort"]' --out DIR [--label_space cxr_lt_2024]

Labels meet under the vocabulary's canonical names (NIH's ``Effusion`` becomes ``Pleural Effusion``). Without a
label_space the result has every label of any of them; with one, labels outside it are dropped. A label that a cohort
does not have is unknown in its rows, never absent. Splits stay what they were. Ids get their cohort's root in front
(``nih:13``), because two hospitals count from 1.

Not promised: that a label means the same in both; and that they share no patient, which nothing in a table can show.
Cohorts that share a root are refused.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from cohort.errors import TailfillError
from cohort.preparing.settings import PrepareConfig
from cohort.sources.rows import SourceTable
from cohort.tables import Cohort, load_cohort
from cohort.vocabulary.findings import canonical_names
from cohort.vocabulary.labels import LABEL_SPACES, OWN, LabelSpace

log = logging.getLogger(__name__)


def find_files(config: PrepareConfig, root: Path) -> dict[str, Path]:
    """The cohorts' folders; raises ``TailfillError`` for fewer than two."""
    folders = [Path(folder) for folder in config.cohorts]
    if len({folder.resolve() for folder in folders}) < max(2, len(folders)):
        raise TailfillError(f"prepare.cohorts is {list(config.cohorts)}; wanted: two or more different folders")
    return {f"cohort_{number}": folder for number, folder in enumerate(folders)}


def read(config: PrepareConfig, root: Path, files: Mapping[str, Path]) -> SourceTable:
    """The rows of all cohorts under one label space; the log and the stamp say what that changed."""
    cohorts = {str(folder): load_cohort(folder) for folder in files.values()}
    names: dict[str, str] = {}
    for folder, cohort in cohorts.items():
        for name in cohort.roots:
            if name in names:
                raise TailfillError(f"{folder} and {names[name]}: both have root '{name}'; wanted: different sources")
            names[name] = folder
    space = choose_space(config.space, list(cohorts.values()))
    changes = {folder: describe(cohort, space) for folder, cohort in cohorts.items()}
    for folder, change in changes.items():
        log.info("merge: %s: %s", folder, "; ".join(f"{key}: {', '.join(told) or 'none'}"
                                                    for key, told in change.items()))
    frame = pd.concat([rename(cohort, space) for cohort in cohorts.values()], ignore_index=True)
    kinds = {json.loads((folder / "_stage.json").read_text())["extra"]["patient_ids"] for folder in files.values()}
    return SourceTable(files=list(files.values()), space=space, frame=frame, n_read=len(frame), source="merged",
                       patient_ids=kinds.pop() if len(kinds) == 1 else "some", about={"changes": changes},
                       roots={name: path for cohort in cohorts.values() for name, path in cohort.roots.items()})


def choose_space(name: str, cohorts: list[Cohort]) -> LabelSpace:
    """The space of that name in canonical names, or the union of the cohorts' labels, in order of appearance."""
    labels = LABEL_SPACES[name].labels if name != OWN else [label for cohort in cohorts for label in cohort.labels]
    return LabelSpace(name=name if name != OWN else "merged", labels=tuple(dict.fromkeys(map(canonical, labels))))


def canonical(label: str) -> str:
    """The vocabulary's name for a label, or the label itself where the vocabulary does not have it."""
    return canonical_names().get(label, label)


def describe(cohort: Cohort, space: LabelSpace) -> dict[str, list[str]]:
    """What happens to a cohort's labels: ``renamed``, ``dropped``, and those of the space that are ``unknown``."""
    own = {label: canonical(label) for label in cohort.labels}
    return {"renamed": [f"{old} to {new}" for old, new in own.items() if old != new and new in space.labels],
            "dropped": [label for label, new in own.items() if new not in space.labels],
            "unknown": [label for label in space.labels if label not in own.values()]}


def rename(cohort: Cohort, space: LabelSpace) -> pd.DataFrame:
    """A cohort's rows in the columns of ``space``, with ids that no other cohort has."""
    frame = cohort.frame.rename(columns={label: canonical(label) for label in cohort.labels})
    kept = [column for column in cohort.frame.columns if column not in cohort.labels]
    frame = frame[[*kept, *(label for label in space.labels if label in frame)]]
    unknown = {label: pd.array([pd.NA] * len(frame), dtype="Int8") for label in space.labels if label not in frame}
    ids = {key: frame["root"] + ":" + frame[key] for key in ("image_id", "patient_id")}
    return frame.assign(**ids, **unknown)[[*kept, *space.labels]]
