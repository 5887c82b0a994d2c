"""From mentions to one label per finding: which mention counts, what an uncertain one becomes, and what follows.

Per report and finding the strongest mention counts: present before uncertain before negated (the order of Irvin et al.
2019; a report that says "no effusion" and then "small left effusion" has one). What a finding implies
(``phrases.yaml``) it implies with its own status. Then the policies: ``uncertain`` by name, as for CheXpert's tables
(``cohort.sources.chexpert``), and ``unmentioned``: absent, the common reading, or unknown.

Two labels follow from the others and are never looked for by themselves. ``No Finding``: no other label of the space,
support devices apart, is present; unknown while one is uncertain. ``Normal``: that, and the report says so (a phrase
of ``Normal``, not doubted or denied).
"""

from collections.abc import Mapping, Sequence

from cohort.labelling.rules import Mention
from cohort.sources.chexpert import UNCERTAIN
from cohort.vocabulary.findings import canonical_names
from cohort.vocabulary.phrases import wordings_of_reports

STRENGTH = ("present", "uncertain", "negated", "absent")
"""Strongest first."""
DERIVED = ("No Finding", "Normal")
DEVICES = "Support Devices"
"""No disease: it does not keep a study from being without findings (Irvin et al. 2019)."""
UNMENTIONED: dict[str, int | None] = {"absent": 0, "unknown": None}


def asked_findings(labels: Sequence[str]) -> list[str]:
    """The canonical names that have to be looked for, for these labels: their own, what implies them, and Normal."""
    own = [canonical_names().get(label, label) for label in labels]
    implying = [name for name, wording in wordings_of_reports().items() if set(wording.implies) & set(own)]
    return [name for name in dict.fromkeys([*own, *implying]) if name != "No Finding"]


def overall_status(mentions: Sequence[Mention]) -> dict[str, str]:
    """Finding to its status in the whole report, of those that are mentioned or implied."""
    status: dict[str, str] = {}
    for mention in mentions:
        _strengthen(status, mention.finding, mention.status)
    for finding, wording in wordings_of_reports().items():
        if status.get(finding) in ("present", "uncertain"):
            for other in wording.implies:
                _strengthen(status, other, status[finding])
    return status


def to_labels(
    status: Mapping[str, str], labels: Sequence[str], *, uncertain: str, unmentioned: str, silent: Sequence[str] = ()
) -> tuple[dict[str, int | None], list[str]]:
    """1, 0 or None per label, and the labels that were uncertain before the policy; in the order of ``labels``.

    ``silent``: labels that nothing can be known of, because no rule looks for them.
    """
    said = {label: status.get(canonical_names().get(label, label), "absent") for label in labels}
    diseases = [label for label in labels if label not in (*DERIVED, DEVICES)]
    is_present = any(said[label] == "present" for label in diseases)
    is_doubted = any(said[label] == "uncertain" for label in diseases)
    for label in set(labels) & set(DERIVED):
        says_so = label == "No Finding" or said[label] == "present"
        said[label] = "negated" if is_present or not says_so else "uncertain" if is_doubted else "present"
    values = {"present": 1, "negated": 0, "uncertain": UNCERTAIN[uncertain](), "absent": UNMENTIONED[unmentioned]}
    doubted = [label for label in labels if said[label] == "uncertain"]
    found = {label: values[said[label]] for label in labels}
    for label in set(doubted) & set(DERIVED):  # the policy speaks of findings: what follows from them turns round
        found[label] = {None: None, 1: 0, 0: 1}[values["uncertain"]]
    return {label: None if label in silent else found[label] for label in labels}, doubted


def _strengthen(status: dict[str, str], finding: str, new: str) -> None:
    if finding not in status or STRENGTH.index(new) < STRENGTH.index(status[finding]):
        status[finding] = new
