"""The parts of a card that images and generator share, in Markdown: whose images, what drew, how near, which terms.

A number that a stage has not measured is not there, and the card says that it is not. Whatever comes from outside
(label names, prompts, names of pipelines) is escaped: it can neither break a table nor bring markup of its own.
"""

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd
import yaml

from classify.pages.blocks import DASH, count, is_null, number, plain
from synth.exporting.facts import Facts, Generator
from synth.exporting.rights import Rights
from synth.measuring.fidelity import FLOOR

FIDELITY_NAMES = ("all", "tail", "medium", "head", "control", "negative")
"""Sets that a card shows; those of single labels stand in the run."""
FIDELITY_METRICS = ("KID", "FID")


def code(text: object) -> str:
    """``text`` as a code span, in which nothing but a backtick has a meaning."""
    return f"`{' '.join(str(text).split()).replace('`', chr(39))}`"


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, text: int = 1) -> str:
    """A Markdown table whose first ``text`` columns are words and whose others are numbers."""
    rule = [":--" if place < text else "--:" for place in range(len(columns))]
    lines = [columns, rule, *([plain(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def with_header(header: Mapping[str, object], title: str, sections: Sequence[str]) -> str:
    """A card: the hub's YAML header, the title, the sections."""
    front = yaml.safe_dump(dict(header), sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n\n# {plain(title)}\n\n" + "\n".join(sections)


def about_cohort(facts: Facts) -> str:
    """Whom the generator has learnt from: name, terms, citation, how many."""
    images, patients = facts.n_train
    whom = "patients not known to the source" if patients is None else f"{count(patients)} patients"
    lines = [f"- **{plain(right.name)}**. Licence: {plain(right.licence)}. Citation: {plain(right.citation)}."
             for right in facts.rights]
    labels = ", ".join(f"{plain(label)} ({facts.cohort.groups[label]})" for label in facts.cohort.labels)
    bound = "\n\n" + ABOUT_AGREEMENTS if any(right.agreement for right in facts.rights) else ""
    return (f"## Training cohort\n\n{count(images)} training images, {whom}:\n\n" + "\n".join(lines) +
            f"\n\nLabels and their frequency groups: {labels}.{bound}\n")


ABOUT_AGREEMENTS = (
    "**Agreements.** These radiographs may be used only by those who have signed their data use agreement. What a "
    "generator has learnt from them, weights and images, may fall under the same agreement: share it only with people "
    "who may hold the radiographs themselves, unless the owner of the data has told you otherwise."
)


def about_generator(generator: Generator, base_licence: str | None) -> str:
    """What drew the images: weights, what it started from, how it was trained."""
    start = ("trained from nothing on the training cohort" if generator.base is None else
             f"{plain(generator.base)}, licence: {plain(base_licence)}")
    lines = [f"- **Weights**: sha256 `{generator.sha256}`", f"- **Base pipeline**: {start}"]
    if generator.training is None:
        lines.append("- **Fine-tuning**: none in this run")
    else:
        stamp, settings = generator.training, generator.training["config"]
        mode = "in full" if settings.get("mode", "full") == "full" else "by low-rank adapters, merged"
        counts = stamp["counts"]
        lines.append(f"- **Fine-tuning**: {mode}, {count(counts.get('steps'))} steps of "
                     f"{count(settings.get('batch_size'))} images, on {count(counts.get('train_images'))} images")
        versions = stamp.get("versions", {})
        lines.append("- **Made with**: " + ", ".join(f"{name} {versions[name]}" for name in ("tailfill", "torch",
                                                     "diffusers") if name in versions))
    told = ("all patients are recorded whom it and its parents have learnt from; none of them is a test patient"
            if generator.provenance == "known" else
            "not all patients are known whom it or its parents have learnt from: images of its test patients may be "
            "among them")
    return "## Generator\n\n" + "\n".join([*lines, f"- **Provenance**: {told}"]) + "\n"


def about_fidelity(fidelity: pd.DataFrame) -> str:
    """KID and FID of what was kept, each beside what real images reach among themselves."""
    title = "## Fidelity\n\n"
    if fidelity.empty:
        return title + "Not measured in this run.\n"
    rows = []
    for name in dict.fromkeys(fidelity["name"]):
        for encoder in dict.fromkeys(fidelity["encoder"]):
            for metric in FIDELITY_METRICS:
                part = fidelity[(fidelity["name"] == name) & (fidelity["encoder"] == encoder)
                                & (fidelity["metric"] == metric)].set_index("set")
                if name in FIDELITY_NAMES and "kept" in part.index:
                    rows.append(_fidelity_row(name, encoder, metric, part))
    weights = fidelity.drop_duplicates("encoder")
    encoders = "; ".join(f"{plain(row['encoder'])} (sha256 `{str(row['encoder_sha256'])[:16]}`, {plain(row['resize'])})"
                         for row in weights.to_dict("records"))
    return (title + "Kept images against real training images, and the floor: two halves of the real images that share "
            "no patient. Lower is nearer; nothing can be asked below the floor. FID depends on N and holds only beside "
            "a floor at the same N. None of this says whether a finding is right.\n\n"
            + table(("Set", "Encoder", "Metric", "Kept", "Floor", "N kept", "N real"), rows, text=3)
            + f"\nEncoders: {encoders}.\n")


def _fidelity_row(name: str, encoder: str, metric: str, part: pd.DataFrame) -> tuple[object, ...]:
    def value(which: str) -> str:
        if which not in part.index or is_null(part.loc[which, "value"]):
            reason = part["reason"].get(which)
            return f"none: {reason}" if isinstance(reason, str) else "none"
        spread = part.loc[which, "spread"]
        return number(part.loc[which, "value"]) + ("" if is_null(spread) else f" ± {number(spread)}")

    kept = part.loc["kept"]
    floor = DASH if is_null(kept["value"]) else value(FLOOR)  # alone it would be read as that of another N
    return (name, encoder, metric, value("kept"), floor, count(kept["n_synthetic"]), count(kept["n_real"]))


def about_copies(facts: Facts) -> str:
    """What the gate against copies did, and what the set as a whole says."""
    title, dropped = "## Memorisation\n\n", int(facts.synthetic["reason"].eq("memorisation").sum())
    if "memorisation" not in facts.rules or facts.memorised.empty:
        return title + ("**Not tested.** The filter of this run had no rule against copies: some of the images may be "
                        "training images.\n")
    words = [f"{count(dropped)} of {count(len(facts.synthetic))} images made were dropped because they stand too near "
             "a training image, whatever crop, shift, mirror or window lies between. A copied detail in a new chest is "
             "not seen by this test."]
    for row in facts.memorised.to_dict("records"):
        if is_null(row["share"]):
            words.append(f"The set as a whole was not tested: {plain(row.get('reason') or 'too few images')}.")
        else:
            words.append(
                f"Of all that was made, {number(100 * row['share'], 1)} % lie nearer to training images than to as "
                f"many held-out ones (95 % interval {number(100 * row['low'], 1)} to {number(100 * row['high'], 1)} %; "
                f"50 % without memorisation, {number(100 * row['if_all_copied'], 1)} % if every image were a copy; "
                f"{count(row['n'])} images).")
    return title + " ".join(words) + "\n"


def about_rights(licence: str, rights: Sequence[Rights], base_licence: str | None, *, what: str) -> str:
    """Licence and use."""
    learnt = "; ".join(dict.fromkeys(f"{plain(right.name)}: {plain(right.licence)}" for right in rights))
    base = f" Its base pipeline: {plain(base_licence)}." if base_licence else ""
    stated = "as the one who exported it states" if rights and not all(right.passed_on for right in rights) else (
        "as Tailfill's code")
    return (f"## Licence and use\n\n**Licence**: {plain(licence)}, {stated}. Behind it stand the terms of what was "
            f"learnt from ({learnt}).{base}\n\n**For** research on classifiers of rare findings: training with {what} "
            "beside real images, and measuring what that brings on real ones.\n\n**Not for** diagnosis, teaching of "
            "reading, testing or certifying a classifier, or any decision about a patient. Synthetic, not for "
            "diagnosis.\n")
