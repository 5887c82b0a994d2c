"""Groups against counts made by hand; what a label space accepts."""

import pandas as pd
import pytest

from cohort.errors import TailfillError
from cohort.vocabulary.labels import NIH_14, LabelSpace, assign_groups, count_labels, prevalence


def frame_of(positives: dict[str, int], *, n: int, unknown: int = 0) -> pd.DataFrame:
    """``n`` known train rows with so many positives per label, and ``unknown`` rows more whose labels are null."""
    columns = {label: pd.array([1] * k + [0] * (n - k) + [None] * unknown, dtype="Int8")
               for label, k in positives.items()}
    return pd.DataFrame({"split": "train", "patient_id": [f"p{i // 2}" for i in range(n + unknown)], **columns})


def test_groups_at_and_around_their_boundaries() -> None:
    frame = frame_of({"a": 101, "b": 100, "c": 10, "d": 9, "e": 0}, n=1000)
    expected = {"a": "head", "b": "medium", "c": "medium", "d": "tail", "e": "tail"}
    assert assign_groups(frame, list("abcde")) == expected


def test_unknown_labels_leave_the_denominator() -> None:
    frame = frame_of({"a": 2}, n=100, unknown=900)
    assert prevalence(frame, ["a"])["a"] == pytest.approx(0.02)
    assert assign_groups(frame, ["a"]) == {"a": "medium"}


def test_only_train_rows_count() -> None:
    test = frame_of({"a": 900}, n=1000).assign(split="test")
    assert assign_groups(pd.concat([frame_of({"a": 5}, n=1000), test]), ["a"]) == {"a": "tail"}


def test_a_source_may_know_the_group() -> None:
    frame = frame_of({"a": 5, "b": 5}, n=1000)
    assert assign_groups(frame, ["a", "b"], known={"a": "medium"}) == {"a": "medium", "b": "tail"}


def test_a_label_unknown_everywhere_is_named() -> None:
    with pytest.raises(TailfillError, match=r"label 'a'.*unknown in every train image"):
        assign_groups(frame_of({"a": 0}, n=0, unknown=5), ["a"])


def test_counts_are_of_positive_images_patients_and_known() -> None:
    counts = count_labels(frame_of({"a": 5}, n=10, unknown=3), ["a"], {"a": "head"})
    assert counts.to_dict("records") == [
        {"label": "a", "group": "head", "split": "train", "n_images": 5, "n_patients": 3, "n_known": 10}
    ]


def test_vector_reads_the_releases_spelling() -> None:
    vector = NIH_14.vector("Hernia|Pleural_Thickening")
    assert [label for label, value in vector.items() if value] == ["Hernia", "Pleural Thickening"]
    assert list(vector) == list(NIH_14.labels)
    assert not any(NIH_14.vector("No Finding").values())


@pytest.mark.parametrize(("findings", "told"), [
    ("Herna", "unknown label 'Herna'; did you mean 'Hernia'"),
    ("", "no findings given"),
    ("No Finding|Mass", "holds both"),
    ("Mass|", "unknown label ''"),
])
def test_vector_refuses(findings: str, told: str) -> None:
    with pytest.raises(TailfillError, match=told):
        NIH_14.vector(findings)


@pytest.mark.parametrize("labels", [
    ("Mass", "view"), ("tail",), ("negative",), ("logit_x",), ("Mass", "Mass"), (), (" ",),
])
def test_a_label_space_refuses_reserved_and_repeated_names(labels: tuple[str, ...]) -> None:
    with pytest.raises(TailfillError):
        LabelSpace(name="x", labels=labels)
