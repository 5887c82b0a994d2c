"""What a run cannot say, derived from what it holds: support, slots left empty, design, cohort, weights.

Not promised: completeness. What no table or stamp tells (a radiologist's eye, another hospital) is one general line.
"""

from collections.abc import Mapping
from typing import Any

from classify.comparison.pairs import NEW_REAL
from classify.pages.cautions import top_cautions
from classify.pages.evidence import Evidence
from cohort.pipeline import is_stale


def limits(evidence: Evidence) -> list[str]:
    """What this run cannot say, derived from what it holds."""
    found = [*_limits_of_support(evidence), *_limits_of_images(evidence), *_limits_of_slots(evidence),
             *_limits_of_design(evidence), *_limits_of_cohort(evidence), *_limits_of_provenance(evidence)]
    stale = [made.folder.relative_to(evidence.run.folder).as_posix() for made in evidence.made
             if made.folder.is_relative_to(evidence.run.folder) and is_stale(dict(made.stamp))]
    if stale:
        found.append(f"An input has changed since these folders were made, so they may not belong together: "
                     f"{', '.join(stale[:8])}{' …' if len(stale) > 8 else ''}.")
    return found


def _limits_of_support(evidence: Evidence) -> list[str]:
    few = [(label, evidence.support(label)) for label in evidence.labels]
    named = [f"{label} ({s[0]} images of {s[1]} patients)" for label, s in few if s is not None and s[1] < 10]
    if not named:
        return []
    return ["With fewer than 10 positive test patients no interval is given for a class: " + ", ".join(named) +
            ". A number shown for such a class describes these few patients and no others."]


def _limits_of_images(evidence: Evidence) -> list[str]:
    """Findings that the images that were asked for them hardly show."""
    if evidence.drawn.empty:
        return []
    named = evidence.drawn[evidence.drawn["says"] == "hardly drawn"]["label"]
    return [f"The images made hardly show what they were asked for: {', '.join(named)}. Whatever they did, or the "
            "lack of those that the rule `drawn` dropped, says nothing of images that show it."] if len(named) else []


def _limits_of_design(evidence: Evidence) -> list[str]:
    found = ["All arms share one generator, one filter and, where train.init_seed is set, one classifier to "
             "start from, so the intervals are conditional on them: another training of these could give another "
             "answer, and that spread is not in the intervals."]
    if "oracle" not in evidence.arms:
        found.append("There is no oracle arm (new real images in the same slots), so the sensitivity of the experiment "
                     "is unknown: a result without gain does not show that better images would not have helped.")
    seeds = int(evidence.comparison["n_seeds"].min())
    if seeds < 5:
        found.append(f"{seeds} seeds per arm are too few for a claim (5 are wanted); the spread between trainings is "
                     "itself uncertain.")
    if not evidence.recovered.empty:
        found.append("The recovered share is measured against new real images in the slots that synthetic ones have or "
                     "were meant to have: one that found no image counts as nothing recovered. A generator that has "
                     "seen the finding elsewhere makes the share optimistic.")
    return found


def _limits_of_cohort(evidence: Evidence) -> list[str]:
    found = [*top_cautions(evidence.cohort_extra)]
    if "test" in enriched_splits(evidence):
        found.append("Scarce labels are more frequent in the test set than among patients. AP grows with prevalence: "
                     "differences between arms can be read, the level of AP cannot be carried over.")
    found.append("Labels are taken as the source gives them; their errors are in every number, and nothing here has "
                 "been read by a radiologist. One test set of one source: no statement about other hospitals.")
    return found


def enriched_splits(evidence: Evidence) -> dict[str, float]:
    """Split to the factor on the prevalence of tail and control labels, where the source made it other than 1."""
    factors = evidence.cohort_extra.get("enrichment") or {}
    return {split: float(factor) for split, factor in factors.items() if factor != 1}


def _limits_of_slots(evidence: Evidence) -> list[str]:
    """Slots that were meant for other images and hold duplicates, since there were too few of those."""
    found = []
    for arm in evidence.arms:
        counts = [made.stamp["counts"] for made in evidence.stamps("arm") if made.arm == arm]
        empty, held = (sum(int(c.get(key, 0)) for c in counts for key in keys)
                       for keys in (("unfilled",), ("synthetic", "synthetic_negative", "new_real")))
        kind = "new real" if arm in NEW_REAL else "synthetic"
        if empty:
            found.append(f"Too few {kind} images for arm {arm}: over its seeds {empty:,} slots meant for {kind} images "
                         f"hold duplicates instead, {held:,} hold {kind} ones." +
                         ("" if held else f" It has therefore nothing to say about {kind} images."))
    return found


def _limits_of_provenance(evidence: Evidence) -> list[str]:
    unknown = sorted({made.entry.name for made in evidence.made if _says_unknown(made.stamp.get("extra", {}))})
    found = []
    if unknown:
        found.append("Weights of unknown provenance were used in " + ", ".join(unknown) + ": they may have been "
                     "trained on images of the test patients.")
    commits = {str(made.stamp.get("git_commit")) for made in evidence.made}
    if len(commits) > 1 or any(commit.endswith("-dirty") for commit in commits):
        found.append("The stages were not all made by one committed version of the code: the table of hashes names "
                     "each stage's commit, and -dirty marks uncommitted changes.")
    if any("imagenet" in str(made.stamp.get("extra", {})).lower() for made in evidence.stamps("filter")):
        found.append("Fidelity is measured by an encoder trained on photographs: it ranks sets of images, and does not "
                     "tell whether a finding is drawn correctly.")
    return found


def _says_unknown(tree: Any) -> bool:
    """Whether ``provenance: unknown`` stands anywhere in a stamp's extra."""
    if isinstance(tree, Mapping):
        return any((key == "provenance" and value == "unknown") or _says_unknown(value) for key, value in tree.items())
    return isinstance(tree, list) and any(_says_unknown(value) for value in tree)
