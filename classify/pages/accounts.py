"""The chapters that keep accounts: what was scarce and asked for, what was made and kept, how training went, what it
cost, and with which settings. Counts balance in every table: planned = made + failed, made = kept + dropped by reason.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from classify.figures.curves import Curve, curve_plot
from classify.figures.plots import Axis, Interval, Plot, Row, arm_series, row_plot
from classify.pages.blocks import DASH, Chapter, Notes, Table, count, is_null, number
from classify.pages.evidence import Evidence, Made, histories
from classify.pages.limits import enriched_splits
from cohort.vocabulary.labels import CONTROL


def scarcity_chapter(evidence: Evidence) -> Chapter:
    """Real counts, the budget, and what became of every image that was asked for."""
    fates = _fates(evidence)
    blocks: list[Any] = [_scarcity_plot(evidence, fates), _budget_table(evidence), _fate_table(evidence, fates)]
    blocks += [_threshold_table(evidence.thresholds)] if len(evidence.thresholds) else []
    blocks += [table for table in (_slot_table(evidence), *_seen_tables(evidence)) if table.rows]
    return Chapter(
        anchor="asked", title="What was scarce, and what was asked",
        words=("Groups are fixed once, with the cohort.",), points=(*_group_points(evidence),
                                                                       *_cohort_points(evidence)),
        blocks=tuple(blocks),
        sources=("cohort/cohort.parquet", "plan/budget.parquet", "plan/plan.parquet", "images/images.parquet",
                 "synthetic/synthetic.parquet", "synthetic/thresholds.parquet", "arms/ARM/seed_N/_stage.json"),
    )


def _group_points(evidence: Evidence) -> list[str]:
    """The labels of each group; negative controls where the cohort has any."""
    rules = {"tail": "under 1 % of train images", "medium": "1 to 10 % of train images",
             "head": "over 10 % of train images", CONTROL: "no visible sign, so nothing to gain"}
    named = {group: ", ".join(evidence.cohort.in_group(group)) for group in rules}
    return [f"{group.capitalize()} ({rule}): {named[group] or 'no class'}." for group, rule in rules.items()
            if named[group] or group != CONTROL]


def _cohort_points(evidence: Evidence) -> list[str]:
    """What the source did to the cohort: site, enrichment, label noise."""
    extra, found = evidence.cohort_extra, []
    if extra.get("site"):
        found.append(f"All real images are from site {extra['site']}.")
    found += [f"{split.capitalize()} set enriched ×{factor:g} for {' and '.join(_scarce_groups(evidence))} labels."
              for split, factor in enriched_splits(evidence).items()]
    noise = extra.get("label_noise")
    if noise:
        rates = ", ".join(f"{label} {rate:g}" for label, rate in noise.items()) if isinstance(noise, Mapping) else noise
        found.append(f"Labels of {' and '.join(extra.get('noisy_splits') or ['train'])} are noisy on purpose: share of "
                     f"positives recorded as negative, with as many the other way: {rates}. Other splits are clean.")
    return found


def _scarce_groups(evidence: Evidence) -> list[str]:
    return [group for group in ("tail", CONTROL) if evidence.cohort.in_group(group)]


def _fates(evidence: Evidence) -> pd.DataFrame:
    """Per class charged: planned, made, failed, kept, and dropped by reason; index = label or ``negative``."""
    plan = evidence.plan[["sample_id", "charged_to"]]
    status = evidence.images.set_index("sample_id")["status"]
    decided = evidence.synthetic.set_index("sample_id")
    fate = np.select(
        [~plan["sample_id"].isin(status.index), plan["sample_id"].map(status).eq("error"),
         ~plan["sample_id"].isin(decided.index), plan["sample_id"].map(decided["keep"]).eq(True)],
        ["not made", "failed", "not filtered", "kept"],
        default="dropped: " + plan["sample_id"].map(decided["reason"]).fillna("no reason given").astype(str),
    )
    table = pd.crosstab(plan["charged_to"], pd.Series(fate, index=plan.index))
    drops = sorted(str(column) for column in table if column != "kept")
    return table.reindex(columns=["kept", *drops], fill_value=0)


def _scarcity_plot(evidence: Evidence, fates: pd.DataFrame) -> Plot:
    """Real positives, the images asked for and those kept, per class on a log axis."""
    budget, names = evidence.budget.set_index("label"), {"real, train": 0, "asked for": 1, "kept": 3}
    rows = []
    for label in evidence.labels:
        asked = budget["target"].get(label, 0)
        values = (budget["n_real"].get(label, 0), asked, fates["kept"].get(label, 0) if asked else None)
        marks = tuple(Interval(series=series, value=None if is_null(v) or v <= 0 else float(v))
                      for series, v in zip(names.values(), values, strict=True))
        rows.append(Row(label=f"{label} ({evidence.cohort.groups[label]})", marks=marks))
    return row_plot(rows, title="Images per class: real, asked for, kept", names=names,
                    axis=Axis(label="images (log scale)", log=True))


def _budget_table(evidence: Evidence) -> Table:
    """The plan's own account."""
    notes, budget = Notes(), evidence.budget.set_index("label")
    ordered = [name for name in evidence.labels if name in budget.index]
    rows = []
    for label in ordered:
        row = budget.loc[label]
        reason = "" if is_null(row["reason"]) else notes.dash(row["reason"]).removeprefix(f"{DASH} ")
        rows.append((f"{label} {reason}".strip(), str(row["group"]), count(row["n_real"]),
                     f"{100 * row['prevalence']:.2f} %", count(row["target"]), count(row["charged"]),
                     count(row["carried"])))
    columns = ("Class", "Group", "Real in train", "Prevalence", "Asked for", "Planned for it", "Carry the finding")
    return Table(title="The budget", rows=tuple(rows), text=2, notes=notes.lines(), columns=columns)


def _fate_table(evidence: Evidence, fates: pd.DataFrame) -> Table:
    """What became of every planned image."""
    order = [name for name in (*evidence.labels, "negative") if name in fates.index]
    total = fates.loc[order].sum()
    rows = [(*_charge(evidence, name), count(fates.loc[name].sum()), *(count(v) for v in fates.loc[name]))
            for name in order]
    rows.append(("All", "", count(total.sum()), *(count(v) for v in total)))
    return Table(title="What became of every planned image", rows=tuple(rows), text=2,
                 strong=frozenset([len(rows) - 1]),
                 columns=("Charged to", "Group", "Planned", *(str(name).capitalize() for name in fates.columns)))


def _charge(evidence: Evidence, name: str) -> tuple[str, str]:
    return ("matched negatives", "") if name == "negative" else (name, evidence.cohort.groups[name])


def _threshold_table(table: pd.DataFrame) -> Table:
    """What an image had to reach."""
    notes = Notes()
    rows = tuple((str(r["rule"]), DASH if is_null(r["label"]) else str(r["label"]), str(r.get("direction", "at least")),
                  str(r["source"]), notes.dash(r.get("reason")) if is_null(r["threshold"]) else number(r["threshold"]),
                  count(r["n_positive"]), f"{count(r.get('n_failed'))} of {count(r.get('n_judged'))}",
                  "dropped" if r.get("drops", True) else "told only") for r in table.to_dict("records"))
    return Table(title="What an image had to reach to be kept", rows=rows, text=4, notes=notes.lines(),
                 columns=("Rule", "Class", "Score has to be", "Threshold from", "Threshold", "Positives behind it",
                          "Images that fail", "They are"))


def _slot_table(evidence: Evidence) -> Table:
    """What each arm trained on: the counts in its stamps, mean over seeds."""
    counts = {arm: [dict(made.stamp["counts"]) for made in _arm_folders(evidence, arm)] for arm in evidence.arms}
    keys = sorted({key for each in counts.values() for one in each for key in one}, key=lambda k: (k != "slots", k))
    rows = [(arm, str(len(each)), *(count(round(np.mean([one.get(key, 0) for one in each]))) for key in keys))
            for arm, each in counts.items() if each]
    return Table(title="Slots of each arm, mean over seeds", rows=tuple(rows),
                 columns=("Arm", "Seeds", *(key.replace("_", " ").capitalize() for key in keys)))


def _seen_tables(evidence: Evidence) -> list[Table]:
    """How often each arm shows a scarce label in training and, where that differs, with what summed loss weight."""
    labels = [label for label in evidence.labels if label in evidence.cohort.scarce]
    seen = {(label, arm): pd.DataFrame([made.stamp["extra"].get("tail_seen", {}).get(label) or {}
                                        for made in _arm_folders(evidence, arm)]).mean()
            for label in labels for arm in evidence.arms}
    shown = {key: mean for key, mean in seen.items() if {"slots", "synthetic", "weight"} <= set(mean.index)}
    if not shown:
        return []
    slots = {key: f"{m['slots']:,.0f} ({m['synthetic']:,.0f})" for key, m in shown.items()}
    weights = {key: number(m["weight"], 1) for key, m in shown.items()}
    tables = [_by_arm(evidence, labels, slots, "Positive slots per scarce label (of them synthetic), mean over seeds")]
    if any(m["weight"] != m["slots"] for m in shown.values()):
        tables.append(_by_arm(evidence, labels, weights, "Summed loss weight of these slots, mean over seeds"))
    return tables


def _by_arm(evidence: Evidence, labels: Sequence[str], cells: Mapping[tuple[str, str], str], title: str) -> Table:
    rows = tuple((label, evidence.cohort.groups[label], *(cells.get((label, arm), DASH) for arm in evidence.arms))
                 for label in labels)
    return Table(title=title, rows=rows, text=2, columns=("Class", "Group", *evidence.arms))


def _arm_folders(evidence: Evidence, arm: str) -> list[Made]:
    return [made for made in evidence.stamps("arm") if made.arm == arm]


def curves_chapter(evidence: Evidence) -> Chapter:
    """Small multiples: one panel per model that was trained."""
    blocks: list[Plot] = []
    sources = []
    for stage, title in (("autoencoder", "Autoencoder"), ("finetune", "Generator")):
        for made, table in histories(evidence, stage):
            blocks += _generator_panels(title, table)
            sources.append(f"{made.folder.relative_to(evidence.run.folder).as_posix()}/history.parquet")
    blocks += _arm_panel(histories(evidence, "critic"), "Critics and shared start", 0)
    trained = histories(evidence, "train")
    losses = np.concatenate([_curve(table, "loss", 0).y for _, table in trained if "loss" in table] or [np.zeros(0)])
    shared = (float(losses.min()), float(losses.max())) if losses.size and losses.max() > losses.min() else None
    for arm in evidence.arms:
        blocks += _arm_panel([(made, table) for made, table in trained if made.arm == arm], f"Classifier, {arm}",
                             arm_series(arm, evidence.arms), ylim=shared)
    sources += ["train/ARM/seed_N/history.parquet"] if trained else []
    words = "Loss over optimiser steps, one line per model." if blocks else "No stage of this run left a history."
    return Chapter(anchor="curves", title="Training curves", blocks=tuple(blocks), sources=tuple(sources),
                   words=(words,))


def _generator_panels(title: str, table: pd.DataFrame) -> list[Plot]:
    """Training loss and, where measured, validation loss per group."""
    losses = {c: i for c, i in (("loss", 3), ("val_loss", 1)) if c in table}
    groups = {c: i for c, i in (("val_head", 0), ("val_medium", 2), ("val_tail", 3)) if c in table}
    panels = []
    for columns, what in ((losses, "loss"), (groups, "validation loss by group")):
        columns = {c: i for c, i in columns.items() if table[c].notna().any()}
        if columns:
            panels.append(curve_plot([_curve(table, c, i) for c, i in columns.items()], title=f"{title}, {what}",
                                     xlabel="step", names={c.replace("_", " "): i for c, i in columns.items()}))
    return panels


def _arm_panel(found: Sequence[tuple[Made, pd.DataFrame]], title: str, series: int, *,
               ylim: tuple[float, float] | None = None) -> list[Plot]:
    """One panel with a line per seed, or none."""
    curves = [_curve(table, "loss", series, faint=len(found) > 1) for _, table in found if "loss" in table]
    return [curve_plot(curves, title=title, xlabel="step", names={"loss": series}, ylim=ylim)] if curves else []


def _curve(table: pd.DataFrame, column: str, series: int, *, faint: bool = False) -> Curve:
    """A column over ``step``, averaged in at most 120 bins so that the page stays small."""
    frame = table[["step", column]].astype("float64").dropna()
    frame = frame.groupby(np.arange(len(frame)) // max(1, math.ceil(len(frame) / 120))).mean()
    return Curve(series=series, x=frame["step"].to_numpy(), y=frame[column].to_numpy(), faint=faint)


def cost_chapter(evidence: Evidence) -> Chapter:
    """Minutes per stage, and rates where a table tells them."""
    rows = []
    for name in dict.fromkeys(made.entry.name for made in evidence.made):
        made = evidence.stamps(name)
        seconds = sum(float(m.stamp["seconds"]) for m in made)
        devices = ", ".join(sorted({str(m.stamp["device"]) for m in made}))
        rows.append((name, devices, str(len(made)), number(seconds / 60, 1), _rate(evidence, name, seconds)))
    total = sum(float(made.stamp["seconds"]) for made in evidence.made)
    rows.append(("all", "", str(len(evidence.made)), number(total / 60, 1), ""))
    table = Table(title="Time per stage", rows=tuple(rows), text=2, strong=frozenset([len(rows) - 1]),
                  columns=("Stage", "Device", "Folders", "Minutes", "Images / s"))
    return Chapter(anchor="cost", title="What it cost", blocks=(table,),
                   words=(f"{number(total / 3600, 2)} hours in all, as the stamps tell. A stage that was interrupted "
                          "may have counted its last run only.",),
                   sources=("*/_stage.json", "images/images.parquet", "train/ARM/seed_N/history.parquet"))


def _rate(evidence: Evidence, name: str, seconds: float) -> str:
    """Images per second of the stages that make or read images one by one."""
    if name == "generate" and seconds > 0:
        return number((evidence.images["status"] == "ok").sum() / seconds, 2)
    rates = [table["images_per_second"].median() for _, table in histories(evidence, name)
             if "images_per_second" in table]
    return number(np.mean(rates), 1) if rates else DASH


def settings_chapter(evidence: Evidence) -> Chapter:
    """Settings, versions and hashes of every stage."""
    settings = _settings_table(evidence)
    hashes = tuple((_place(evidence, m), m.stamp["output_hash"][:16], m.stamp["fingerprint"][:16],
                    str(m.stamp.get("git_commit") or "unknown")[:12] + (
                        "-dirty" if str(m.stamp.get("git_commit")).endswith("-dirty") else ""))
                   for m in evidence.made)
    versions: dict[str, set[str]] = {}
    for made in evidence.made:
        for package, version in {**made.stamp["versions"], "python": made.stamp["python"]}.items():
            versions.setdefault(package, set()).add(str(version))
    return Chapter(
        anchor="settings", title="Settings, versions, hashes",
        words=("Settings of the first folder of each stage; arms differ in their arm table only. The resolved "
               "configuration is config.yaml beside the report's folder.",),
        blocks=(settings, Table(title="Versions", columns=("Package", "Version"), text=2,
                                rows=tuple((p, ", ".join(sorted(v))) for p, v in sorted(versions.items()))),
                Table(title="Hashes", columns=("Folder", "Output", "Fingerprint", "Commit"), rows=hashes, text=4)),
        sources=("*/_stage.json", "config.yaml"),
    )


def _settings_table(evidence: Evidence) -> Table:
    rows = []
    for name in dict.fromkeys(made.entry.name for made in evidence.made):
        flat = _flat(evidence.stamps(name)[0].stamp["config"])
        rows.append((name, " · ".join(f"{key} {json.dumps(value)}" for key, value in sorted(flat.items()))))
    return Table(title="Settings", columns=("Stage", "Settings"), rows=tuple(rows), text=2)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _place(evidence: Evidence, made: Made) -> str:
    """A folder relative to the run's, or its bare name when it lies elsewhere."""
    inside = made.folder.is_relative_to(evidence.run.folder)
    return made.folder.relative_to(evidence.run.folder).as_posix() if inside else made.folder.name
