"""The page of a rehearsal: what new real images would have brought, and which share of it synthetic ones did bring.

It uses the report's layout, so that whoever can read one can read the other. Not promised: anything that the tables in
the same folder do not say; the page computes nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from classify.compare import Endpoint
from classify.comparison.pairs import ABOUT
from classify.figures.plots import Axis, Interval, Plot, Row, row_plot
from classify.pages.blocks import Chapter, Notes, Table, is_null, number, signed
from classify.pages.cautions import top_cautions
from classify.rehearsal.choices import Cell
from classify.rehearsal.pictures import images_chapter
from classify.rehearsal.prediction import Forecast
from classify.rehearsal.prevalence import AT_PREVALENCE
from classify.rehearsal.settings import RehearsalConfig
from classify.rehearsal.shares import ORACLE, REHEARSED_GROUP, RIVAL
from classify.report import lay_out
from cohort.config import Run
from cohort.stage import require
from cohort.tables import Cohort

UNBEATEN = {"real": "no added slots at all", "duplicate": "repeats among real images as they are",
            "permuted": "the same images under each other's labels",
            "permuted-harmonised": "the same images under each other's labels"}
"""The arms of ``shares.rivals_aside`` in words."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All that the page speaks of."""

    run: Run
    cohort: Cohort
    config: RehearsalConfig
    endpoint: Endpoint
    folders: Mapping[Cell, Path]
    recovered: pd.DataFrame
    contrasts: pd.DataFrame
    runs: pd.DataFrame
    prediction: pd.DataFrame
    forecast: Forecast
    provenance: str

    def row(self, *, level: int, label: str, arm: str, metric: str) -> pd.Series:
        """One row of ``recovered``."""
        table = self.recovered
        return table[(table["level"] == level) & (table["label"] == label) & (table["arm"] == arm)
                     & (table["metric"] == metric)].iloc[0]

    def against(self, *, level: int) -> pd.DataFrame:
        """The rows of ``contrasts`` over all findings, in the endpoint's metric."""
        table = self.contrasts
        return table[(table["level"] == level) & (table["label"] == REHEARSED_GROUP)
                     & (table["metric"] == self.endpoint.metric)]

    @property
    def levels(self) -> list[int]:
        """Lowest first."""
        return sorted(int(level) for level in self.recovered["level"].unique())

    @property
    def labels(self) -> list[str]:
        """The findings, then their mean."""
        return list(dict.fromkeys(self.recovered["label"]))


def render(found: Findings) -> dict[str, str]:
    """``rehearsal.html``, ``rehearsal.md`` and ``summary.txt``, text by file name."""
    lines = verdict_lines(found)
    end = found.endpoint
    first = found.row(level=found.levels[0], label=REHEARSED_GROUP, arm=end.arm, metric=end.metric)
    shown = {
        "title": "Rehearsal: what are synthetic images worth here?", "verdict": lines[0],
        "headline": {
            "value": percent(first["share"]), "hash": "",
            "interval": f"undefined: {first['reason']}" if is_null(first["share"]) else
                        f"{percent(first['ci_low'])} to {percent(first['ci_high'])}",
            "what": f"recovered share at {found.levels[0]} positives, ratio of mean gains in {end.metric}: "
                    f"{end.arm} over {end.rival}, by {ORACLE} over {RIVAL}",
            "support": f"{n_findings(found)}, {int(first['n_runs'])} thinnings each; "
                       f"{int(first['n_positive_patients']):,} positive test patients",
            "terms": ". ".join(f"{name.capitalize()}: {ABOUT[name]}"
                               for name in dict.fromkeys((RIVAL, end.rival, end.arm, ORACLE))) + ".",
        },
        "chapters": [
            Chapter(anchor="verdict", title="Verdict", words=tuple(lines[1:]), sources=("results/recovered.parquet",)),
            shares_chapter(found), tail_chapter(found), sensitivity_chapter(found), runs_chapter(found),
            images_chapter(found.folders, level=found.levels[0], seed=found.run.seed), limits_chapter(found),
        ],
        "run": found.run.folder.name, "n_images": len(found.cohort.frame),
        "source": str(require(found.cohort.folder, "cohort")["extra"].get("source") or "unnamed source"),
        "n_patients": int(found.cohort.frame["patient_id"].nunique()),
        "cautions": top_cautions(require(found.cohort.folder, "cohort")["extra"]),
    }
    pages = lay_out(shown)
    return {"rehearsal.html": pages["report.html"], "rehearsal.md": pages["report.md"],
            "summary.txt": "\n".join(lines) + "\n"}


def verdict_lines(found: Findings) -> list[str]:
    """The answer in one line, then one line per level, then what is predicted for the tail."""
    end, lines = found.endpoint, list[str]()
    for level in found.levels:
        oracle = found.row(level=level, label=REHEARSED_GROUP, arm=ORACLE, metric=end.metric)
        own = found.row(level=level, label=REHEARSED_GROUP, arm=end.arm, metric=end.metric)
        gains = (f"the oracle gains {gain_words(oracle)}, {end.arm} {gain_words(own)}")
        share = (f"no recovered share: {own['reason']}" if is_null(own["share"]) else
                 f"recovered share {percent(own['share'])} ({percent(own['ci_low'])} to {percent(own['ci_high'])})")
        aside = "; ".join(f"{end.arm} against {row['rival']}: {signed(row['delta'])} ({between(row, 'low', 'high')})"
                          for _, row in found.against(level=level).iterrows())
        lines.append(f"At {level} positives, over {n_findings(found)}: {gains} in {end.metric}; {share}."
                     + (f" {aside[0].upper()}{aside[1:]}." if aside else ""))
    return [headline_of(found), *lines, tail_line(found)]


def n_findings(found: Findings) -> str:
    """``1 finding``, ``3 findings``."""
    n = len(found.labels) - 1
    return f"{n} finding{'s' * (n != 1)}"


def headline_of(found: Findings) -> str:
    """The answer at the lowest level."""
    end, level = found.endpoint, found.levels[0]
    own = found.row(level=level, label=REHEARSED_GROUP, arm=end.arm, metric=end.metric)
    if is_null(own["share"]):
        oracle = found.row(level=level, label=REHEARSED_GROUP, arm=ORACLE, metric=end.metric)
        unclear = not is_null(oracle["gain_low"]) and oracle["gain_low"] <= 0
        return (f"Cannot say: even real images bring no clear gain at {level} positives" if unclear else
                f"Cannot say: {own['reason']}")
    if own["ci_low"] > 0:
        rows = found.against(level=level).to_dict("records")
        unbeaten = [UNBEATEN[row["rival"]] for row in rows if is_null(row["low"]) or row["low"] <= 0]
        but = f", but are not shown to be better than {' or '.join(unbeaten)}" if unbeaten else ""
        return f"Synthetic images recover {percent(own['share'])} of what real ones would bring{but}"
    if own["ci_high"] < 0:
        return f"Synthetic images harm at {level} positives, where real images would help"
    return f"No gain shown at {level} positives, though real images would bring one"


def tail_line(found: Findings) -> str:
    """What the tail may expect."""
    if found.forecast.rule is None:
        return f"No prediction for the tail: {found.forecast.reason}."
    errors = found.forecast.errors
    told = ", ".join(f"{rule} {percent(error)}" for rule, error in errors.items())
    checked = found.prediction[found.prediction["inside"].notna()]
    n_inside = int(checked["inside"].sum())
    hits = f" Of {len(checked)} measured shares {n_inside} lie in their interval." if len(checked) else ""
    return (f"Prediction for the tail by '{found.forecast.rule}' of {found.forecast.n_findings} findings; a finding "
            f"left out is missed by, in parts of what real images bring on average: {told}.{hits}")


def shares_chapter(found: Findings) -> Chapter:
    """Per finding and level: the share against the number of real positives."""
    end, rows, notes, cells = found.endpoint, [], Notes(), []
    metrics = (end.metric, *(metric for metric in ("AUROC", AT_PREVALENCE) if metric != end.metric))
    for label in found.labels:
        for level in found.levels:  # side by side: does the share move with the number of real positives?
            own = found.row(level=level, label=label, arm=end.arm, metric=end.metric)
            rows.append(Row(label=f"{label}, {level}", strong=label == REHEARSED_GROUP,
                            text=percent(own["share"]) if not is_null(own["share"]) else "undefined",
                            marks=(Interval(series=3, value=_plain(own["share"]), low=_plain(own["ci_low"]),
                                            high=_plain(own["ci_high"])),)))
            for metric in metrics:
                one = found.row(level=level, label=label, arm=end.arm, metric=metric)
                cells.append((label, f"{level}", metric, number(one["rival_value"]), signed(one["gain"]),
                              between(one, "gain_low", "gain_high"), signed(one["oracle_gain"]),
                              share_words(one, notes)))
    axis = Axis(label="share of the oracle's gain", percent=True, within=(-1.0, 2.0),
                lines={0.0: "duplicates", 1.0: "oracle"})
    drawn = [row for row in rows if row.marks[0].value is not None]
    blocks: list[Plot | Table] = []
    if drawn:
        blocks.append(row_plot(drawn, title=f"Recovered share in {end.metric}, by finding and real positives",
                               names={end.arm: 3}, axis=axis))
    blocks.append(Table(title=f"Gains over {end.rival} and recovered share", text=3, rows=tuple(cells),
                        columns=("Finding", "Positives", "Metric", end.rival, end.arm, "95 %", ORACLE,
                                 "Share (Fieller set)"), notes=notes.lines(),
                        strong=frozenset(i for i, row in enumerate(cells) if row[0] == REHEARSED_GROUP)))
    return Chapter(
        anchor="shares", title="Recovered share", blocks=tuple(blocks), sources=("results/recovered.parquet",),
        words=(f"How much of what as many new real images brought did {end.arm} bring? No share is given unless the "
               "oracle's own interval excludes 0. Over findings it is the ratio of mean gains. AP at prevalence is "
               "AP as it would be where the finding is as rare as in training.",))


def tail_chapter(found: Findings) -> Chapter:
    """What the actual tail may expect, and where it could be measured, whether that came true."""
    notes, rows = Notes(), []
    for row in found.prediction.to_dict("records"):
        interval = (notes.dash(row["reason"]) if is_null(row["predicted"]) else
                    f"{percent(row['predicted'])} ({percent(row['low'])} to {percent(row['high'])})"
                    + (" *" if isinstance(row["reason"], str) else ""))
        measured = (notes.dash(row["measured_reason"]) if is_null(row["measured"]) else
                    f"{percent(row['measured'])} ({percent(row['measured_low'])} to {percent(row['measured_high'])})")
        rows.append((str(row["label"]), f"{row['n_real']:,}", interval, measured,
                     "" if is_null(row["inside"]) else "yes" if row["inside"] else "no"))
    table = Table(title="Recovered share of the actual tail", rows=tuple(rows), notes=(*notes.lines(), *(
        ["* outside the levels that were rehearsed"] if any(" *" in row[2] for row in rows) else [])),
                  columns=("Tail class", "Real positives", "Predicted (95 % for one class)", "Measured", "Inside"))
    return Chapter(
        anchor="tail", title="What the tail may expect", blocks=(table,), words=(
            tail_line(found), "The unit of the interval is the finding: it holds how much findings differ, not only "
            "how well each was measured. It is that of a class which real images help as much as the average finding; "
            "where they help less, its share scatters more. Fewer than six findings, or real images that bring nothing "
            "clear, allow no prediction."),
        sources=("results/prediction.parquet",))


def sensitivity_chapter(found: Findings) -> Chapter:
    """Could the rehearsal have said yes?"""
    rows, end = [], found.endpoint
    for level in found.levels:
        for label in found.labels:
            for arm in [arm for arm in found.config.arms if arm != "duplicate"]:
                one = found.row(level=level, label=label, arm=arm, metric=end.metric)
                if label == REHEARSED_GROUP or arm == ORACLE:
                    rows.append((label, f"{level}", arm, one["rival"], number(one["value"]), signed(one["gain"]),
                                 between(one, "gain_low", "gain_high"), number(one["p"])))
    return Chapter(
        anchor="sensitivity", title="Could it have said yes?", words=(
            "Before a missing gain means anything, the withheld real images must beat the repeats clearly.",),
        blocks=(Table(title=f"Every arm over its repeats, {end.metric}", text=4, rows=tuple(rows),
                      columns=("Finding", "Positives", "Arm", "Rival", "Value", "Gain", "95 %", "p")),),
        sources=("results/recovered.parquet",))


def runs_chapter(found: Findings) -> Chapter:
    """What was taken away, made and kept."""
    rows = tuple((
        row["finding"], str(row["level"]), str(row["seed"]), f"{row['train_n_before']} → {row['train_n_kept']}",
        f"{row['val_n_before']} → {row['val_n_kept']}",
        f"{percent(row['company_before'])} → {percent(row['company_after'])}",
        f"{row['kept']} of {row['made']}", f"{row['synthetic']} of {row['slots']}",
    ) for row in found.runs.to_dict("records"))
    return Chapter(
        anchor="runs", title="Thinned, made, kept",
        sources=("results/runs.parquet", "set_*/level_*/seed_*/cohort", "set_*/level_*/seed_*/overlap.parquet"),
        words=("Each row is one thinning, with patients, a generator and a training of its own. Company: the share of "
               "the finding's positives with another thinned finding beside it.",),
        blocks=(Table(title="The runs", columns=("Finding", "Level", "Seed", "Train positives", "Validation positives",
                                                 "Company", "Kept of made", "Synthetic slots"), rows=rows),))


def limits_chapter(found: Findings) -> Chapter:
    """What a rehearsal cannot say."""
    together = found.runs.groupby(["set", "level", "seed"])["finding"].nunique().max()
    points = [
        "A thinned finding is not a tail class: it may be easier or harder to see, and to draw.",
        "Levels share seeds and, as far as they go, patients: their rows are no independent evidence.",
        "The share is that of this generator, filter and classifier, with these settings.",
    ]
    if found.provenance != "known":
        points.append("Some weights do not say whose images they learnt from (provenance unknown). If their images "
                      "held the finding, every share here is optimistic.")
    if together > 1:
        points.append("Findings thinned together share a generator; whoever was withheld for one is withheld for all, "
                      "so their company in what remains is not what it was (column Company).")
    if found.config.quick:
        points.append("Quick: heads on a frozen backbone and a brief fine-tuning. Whole trainings may gain more, or "
                      "less.")
    return Chapter(anchor="limits", title="What this cannot say", points=tuple(points))


def percent(value: object) -> str:
    """A share as whole per cent, with a true minus sign; a dash for null."""
    return number(None if is_null(value) else 100 * float(value), 0) + ("" if is_null(value) else " %")  # type: ignore[arg-type]


def gain_words(row: pd.Series) -> str:
    """A gain with its interval."""
    return f"{signed(row['gain'])} ({between(row, 'gain_low', 'gain_high')})"


def between(row: pd.Series, low: str, high: str) -> str:
    """An interval, or why there is none."""
    return "no interval" if is_null(row[low]) else f"{signed(row[low])} to {signed(row[high])}"


def share_words(row: pd.Series, notes: Notes) -> str:
    """A share with its set, or a dash with its reason."""
    if is_null(row["share"]):
        return notes.dash(row["reason"])
    return f"{percent(row['share'])} ({percent(row['ci_low'])} to {percent(row['ci_high'])})"


def _plain(value: object) -> float | None:
    return None if is_null(value) else float(value)  # type: ignore[arg-type]
