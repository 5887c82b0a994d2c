"""The chapters about results: the verdict, the differences between arms, fidelity, and the other metrics."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from classify.comparison.pairs import ABOUT, slot_rivals
from classify.figures.plots import Axis, Interval, Plot, Row, arm_series, row_plot
from classify.pages.arms import (
    arm_forests,
    arm_table,
    difference_mark,
    difference_text,
    member_tables,
    recovered_plots,
    recovered_tables,
    row_name,
)
from classify.pages.blocks import DASH, Chapter, Notes, Table, count, is_null, number, p_value, signed
from classify.pages.evidence import GROUPS, Evidence

MEANING = {"AP": "AP, average precision, 0 to 1: how far up the images with the finding are ranked.",
           "AUROC": "AUROC, 0 to 1: the chance that an image with the finding ranks above one without.",
           "F1": "F1, 0 to 1: the balance of findings found and false alarms."}
"""What the endpoint's metric tells, for a reader who has not met it."""
METRIC_NAMES = {"ECE": "Calibration error (ECE)", "ECE_T": "Calibration error after one temperature (ECE_T)"}
"""Metric to its heading, where that is not its name."""
FIDELITY_SETS = {"kept": 3, "made": 1, "real floor": 0}
"""Set of images -> series of its mark."""
FIDELITY_SHARES = {"reconstructed": "Reconstructed", "made against reconstructed": "Made against reconstructed"}
"""Sets of a run with a reconstruction to their columns: the autoencoder's share of a distance, and the denoiser's."""
FIDELITY_PLOTS = ("KID", "FID")
"""Metrics that are drawn; the table has all of them."""


def group_of(evidence: Evidence, name: str) -> str:
    """The group that is printed beside every number."""
    return "" if name in GROUPS else evidence.cohort.groups[name]


def support_text(evidence: Evidence, name: str) -> str:
    """``images / patients`` positive in the test split."""
    found = evidence.support(name)
    return DASH if found is None else f"{found[0]:,} / {found[1]:,}"


def verdict_chapter(evidence: Evidence) -> Chapter:
    """The verdict in words; the number of its endpoint stands in ``headline``."""
    sentences = evidence.verdict.get("sentences", [])
    words = [sentences] if isinstance(sentences, str) else list(sentences)
    recovered, end = evidence.verdict.get("recovered"), evidence.endpoint
    stated = f"{end['arm']} against {end['rival']}, mean {end['metric']} of the {end['group']} group"
    points = [sentence for sentence in words[1:] if not str(sentence).startswith(stated)]  # it stands in ``headline``
    shown = [str(sentence).replace(" %", "\u00a0%") for sentence in
             (*words[:1], recovered, evidence.verdict.get("amounts"), *points) if sentence]
    n_words = len(words[:1]) + bool(recovered)
    return Chapter(anchor="verdict", title="The verdict", blocks=recovered_plots(evidence),
                   words=tuple(shown[:n_words]), points=(*shown[n_words:], evidence.looks),
                   sources=("comparison/_stage.json", "comparison/comparison.parquet", "endpoint.json", "looks.jsonl",
                            *(["comparison/recovered.parquet"] if recovered else [])))


def headline(evidence: Evidence) -> dict[str, str]:
    """The endpoint's number in pieces: value, interval, what it is, and on how many positives it rests."""
    end = evidence.endpoint
    row = evidence.result(arm=end["arm"], rival=end["rival"], label=end["group"], metric=end["metric"]) or {}
    low, high = row.get("ci_low"), row.get("ci_high")
    images, patients = evidence.support(end["group"]) or (0, 0)
    defined, undefined = evidence.members(end["group"])
    left_out = f"; without a value and left out: {', '.join(undefined)}" if undefined else ""
    return {
        "value": signed(row.get("delta")),
        "interval": (f"undefined: {row.get('reason') or 'no such row in the comparison'}"
                     if is_null(low) or is_null(high) else f"{signed(low)} to {signed(high)}"),
        "what": f"difference in mean {end['metric']} over the {end['group']} group "
                f"({', '.join(defined) or 'no class'}{left_out}), "
                f"{end['arm']} against {end['rival']}",
        "terms": ". ".join(f"{name.capitalize()}: {ABOUT.get(name, 'an arm of this run')}"
                           for name in (end["rival"], end["arm"])) + f". {MEANING.get(end['metric'], '')}",
        "support": f"{images:,} positive test images of {patients:,} patients; "
                   f"{count(row.get('n_seeds'))} seeds per arm; {p_value(row.get('p'))}",
        "hash": evidence.endpoint_hash or "",
    }


def delta_chapter(evidence: Evidence) -> Chapter:
    """Per class, the endpoint's pair; per arm, its difference to its own rival; and the tables behind both."""
    end = evidence.endpoint
    pair, main = (end["arm"], end["rival"]), f"{end['arm'].capitalize()} against {end['rival']}"
    blocks: list[Plot | Table] = [
        _class_forest(evidence, title=f"{main}, difference in {end['metric']}"), *arm_forests(evidence),
        arm_table(evidence), _means_table(evidence, end["metric"]),
        _delta_table(evidence, end["metric"], [pair], title=f"{main}: the differences"),
    ]
    for title, pairs in (("Every arm against real", [(arm, "real") for arm in evidence.arms if arm != "real"]),
                         ("Every arm against its rival", [*slot_rivals(evidence.arms).items()])):
        compared = [one for one in pairs if evidence.difference(one, end["group"])]
        if compared and compared != [pair]:
            blocks.append(_delta_table(evidence, end["metric"], compared, title=f"{title}: the differences"))
    blocks += recovered_tables(evidence)
    return Chapter(
        anchor="deltas", title="What each class gained or lost",
        words=("Each mark is the difference between two arms, averaged over seeds, with its 95 % interval over "
               "patients and seeds together. A hollow mark has no interval, and an arrow lies beyond the axis: "
               "the table has the number and the reason.",),
        blocks=tuple(blocks),
        sources=("comparison/comparison.parquet",
                 *([] if evidence.recovered.empty else ["comparison/recovered.parquet"])),
    )


def _class_forest(evidence: Evidence, *, title: str) -> Plot:
    """The endpoint's pair, a row per group and class."""
    arm, rival, metric = (evidence.endpoint[key] for key in ("arm", "rival", "metric"))
    series = arm_series(arm, evidence.arms)
    found = [(name, evidence.difference((arm, rival), name)) for name in evidence.rows]
    rows = [Row(label=row_name(evidence, name), marks=(difference_mark(row, series),), strong=name in GROUPS,
                text=difference_text(row)) for name, row in found]
    axis = Axis(label=f"difference in {metric}", zero=True, ends=(f"{rival} better", f"{arm} better"))
    return row_plot(rows, title=title, names={arm: series}, axis=axis)


def _means_table(evidence: Evidence, metric: str) -> Table:
    """Each arm's own value per group and class, with its support."""
    notes = Notes()

    def value(arm: str, name: str) -> str:
        row = evidence.result(arm=arm, rival=None, label=name, metric=metric) or {"reason": "not computed"}
        return notes.dash(row.get("reason")) if is_null(row.get("value")) else number(row["value"])

    return _result_table(evidence, title=f"{metric} on test, mean over seeds", value=value, notes=notes)


def _result_table(evidence: Evidence, *, title: str, value: Callable[[str, str], str], notes: Notes) -> Table:
    """Groups and classes down, arms across."""
    rows = tuple((row_name(evidence, name), group_of(evidence, name), support_text(evidence, name),
                  *(value(arm, name) for arm in evidence.arms)) for name in evidence.rows)
    strong = frozenset(i for i, name in enumerate(evidence.rows) if name in GROUPS)
    columns = ("Class", "Group", "Positives (images / patients)", *evidence.arms)
    return Table(title=title, columns=columns, rows=rows, text=2, strong=strong, notes=notes.lines())


def _delta_table(evidence: Evidence, metric: str, pairs: Sequence[tuple[str, str]], *, title: str) -> Table:
    """Difference and interval of each pair per group and class; p and seeds too when there is but one pair."""
    notes, rows = Notes(), []
    for name in evidence.rows:
        cells: list[str] = []
        for arm, rival in pairs:
            row = evidence.result(arm=arm, rival=rival, label=name, metric=metric) or {"reason": "not computed"}
            delta, interval = _delta_cells(row, notes)
            cells += [delta, interval, number(row.get("p")), count(row.get("n_seeds"))] if len(pairs) == 1 else [
                delta if delta == interval else f"{delta} ({interval})" if "to" in interval else f"{delta} {interval}"]
        rows.append((row_name(evidence, name), group_of(evidence, name), support_text(evidence, name), *cells))
    heads = [f"{arm} − {rival}" for arm, rival in pairs]
    heads += ["95 % interval", "p (classes: Holm)", "Seeds"] if len(pairs) == 1 else []
    strong = frozenset(i for i, name in enumerate(evidence.rows) if name in GROUPS)
    return Table(title=title, columns=("Class", "Group", "Positives (images / patients)", *heads), rows=tuple(rows),
                 text=2, strong=strong, notes=notes.lines())


def _delta_cells(row: Mapping[str, Any], notes: Notes) -> tuple[str, str]:
    """A difference and its interval, each a dash with the reason's letter where it is undefined."""
    bare = is_null(row.get("ci_low")) or is_null(row.get("ci_high"))
    return (notes.dash(row.get("reason")) if is_null(row.get("delta")) else signed(row["delta"]),
            notes.dash(row.get("reason")) if bare else f"{signed(row['ci_low'])} to {signed(row['ci_high'])}")


def fidelity_chapter(evidence: Evidence) -> Chapter:
    """Distances of kept and made images to real ones, beside what real images reach against each other."""
    table, plots = evidence.fidelity, []
    if table.empty:
        return Chapter(anchor="fidelity", title="How close to real", words=("This run measured no fidelity.",))
    encoders = {str(r["encoder"]): f"{r['encoder']} (sha256 {str(r['encoder_sha256'])[:12]}, resize {r['resize']})"
                for r in table.to_dict("records")}
    for encoder in encoders:
        for metric in FIDELITY_PLOTS:
            plot = _fidelity_plot(table[(table["metric"] == metric) & (table["encoder"] == encoder)], metric, encoder)
            plots += [plot] if plot else []
    tables = [_fidelity_table(evidence, encoder) for encoder in encoders]
    return Chapter(
        anchor="fidelity", title="How close to real", blocks=(*plots, *tables),
        words=("KID and FID are distances: lower is closer. Precision is the share of synthetic images that look real, "
               "recall the share of real images that synthetic ones come near; density and coverage say the same and "
               "mind outliers less. For these four higher is better. The real floor is what an equally large set of "
               "real images reaches against other real images: nothing better can be expected. "
               + ("Reconstructed are real images that went through the generator's autoencoder and nothing else: how "
                  "far these lie from real ones is the autoencoder's doing, and how far the images made lie from these "
                  "is the denoiser's. " if table["set"].isin(FIDELITY_SHARES).any() else "")
               + "Measured by " + "; ".join(encoders.values()) + ".",),
        sources=("synthetic/fidelity.parquet",),
    )


def _fidelity_table(evidence: Evidence, encoder: str) -> Table:
    """One row per set of images and metric: kept, made, floor, whose share it is, and on how many images each rests."""
    notes, rows, table = Notes(), [], evidence.fidelity
    shares = {kind: head for kind, head in FIDELITY_SHARES.items() if table["set"].eq(kind).any()}
    for (name, metric), part in table[table["encoder"] == encoder].groupby(["name", "metric"], sort=False):
        by_set = part.set_index("set").to_dict("index")
        cells = []
        for kind in (*FIDELITY_SETS, *shares):
            r = by_set.get(kind, {"reason": "not computed"})
            spread = "" if is_null(r.get("spread")) else f" ± {number(r['spread'], 4)}"
            cells.append(notes.dash(r.get("reason")) if is_null(r.get("value")) else number(r["value"], 4) + spread)
        sizes = [count(by_set.get(kind, {}).get("n_synthetic")) for kind in ("kept", "made")]
        rows.append((str(name), evidence.cohort.groups.get(str(name), ""), str(metric), *cells,
                     count(part["n_real"].max()), " / ".join(sizes)))
    columns = ("Images", "Group", "Metric", "Kept", "Made", "Real floor", *shares.values(), "Real images",
               "Synthetic (kept / made)")
    return Table(title=f"Synthetic against real training images, measured by {encoder}", text=3, rows=tuple(rows),
                 notes=notes.lines(), columns=columns)


def _fidelity_plot(table: pd.DataFrame, metric: str, encoder: str) -> Plot | None:
    """Kept, made and floor on one axis; None when nothing is defined."""
    names = FIDELITY_SETS
    rows = []
    for name in dict.fromkeys(table["name"]):
        marks = []
        for r in table[table["name"] == name].to_dict("records"):
            if not is_null(r["value"]) and r["set"] in names:
                v, s = float(r["value"]), 0.0 if is_null(r.get("spread")) else float(r["spread"])
                marks.append(Interval(series=names[r["set"]], value=v, low=v - s, high=v + s))
        rows += [Row(label=str(name), marks=tuple(marks), strong=name == "all")] if marks else []
    title = f"{metric} to real training images, measured by {encoder}"
    return row_plot(rows, title=title, names=names, axis=Axis(label=metric)) if rows else None


def metrics_chapter(evidence: Evidence) -> Chapter:
    """The other metrics: ranking, decisions at validated thresholds, calibration."""
    table, weights = evidence.metrics, evidence.endpoint.get("weights", "ema")
    if table.empty:
        return Chapter(anchor="metrics", title="Ranking, decisions, calibration", words=("No metrics.parquet here.",))
    chosen = table[(table["split"] == "test") & (table["weights"] == weights)]
    blocks = [_metric_table(evidence, chosen[chosen["metric"] == metric], str(metric))
              for metric in dict.fromkeys(chosen["metric"]) if metric != evidence.endpoint["metric"]]
    blocks += [_weights_table(evidence, table)] if table["weights"].nunique() > 1 else []
    sentence, members = evidence.verdict.get("members"), member_tables(evidence)
    return Chapter(
        anchor="metrics", title="Ranking, decisions, calibration", blocks=(*members, *blocks),
        words=("AUROC is the chance that a positive image ranks above a negative one; F1 takes each class's threshold "
               "from validation; ECE is the gap between stated and observed probability, ECE_T what is left of it when "
               "each training's logits are divided by one temperature, fitted on validation. Test split, "
               f"{weights} weights.", *([str(sentence)] if sentence else [])),
        sources=("comparison/metrics.parquet", *(["comparison/members.parquet"] if members else [])),
    )


def _weights_table(evidence: Evidence, table: pd.DataFrame) -> Table:
    """The endpoint's metric by the moving average of the weights and by the last ones, means over seeds."""
    metric, notes = evidence.endpoint["metric"], Notes()
    chosen = table[(table["split"] == "test") & (table["metric"] == metric)]
    means = chosen.groupby(["weights", "arm", "label"])["value"].mean()  # NaN where no seed has a value

    def value(arm: str, name: str) -> str:
        both = [means.get((weights, arm, name)) for weights in ("ema", "raw")]
        return notes.dash("undefined") if any(map(is_null, both)) else " / ".join(number(one) for one in both)

    return _result_table(evidence, title=f"{metric} by averaged (EMA) / last weights", value=value, notes=notes)


def _metric_table(evidence: Evidence, table: pd.DataFrame, metric: str) -> Table:
    """Mean over seeds per arm and row; ± is the standard deviation between seeds."""
    notes = Notes()

    def value(arm: str, name: str) -> str:
        found = table[(table["arm"] == arm) & (table["label"] == name)]
        values = found["value"].dropna()
        if values.empty:
            return notes.dash("not computed" if found.empty else found["reason"].iloc[0])
        spread = f" ± {number(values.std(), 3)}" if len(values) > 1 else ""
        return number(values.mean()) + spread

    name = METRIC_NAMES.get(metric, metric)
    return _result_table(evidence, title=f"{name}, mean ± standard deviation over seeds", value=value, notes=notes)
