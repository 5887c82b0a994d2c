"""Every label can be said, is recognisable, fits the text encoder, and no two sets of labels sound the same."""

import itertools

import numpy as np
import pytest

from cohort.errors import TailfillError
from prompts.phrases import (
    MAX_TOKENS,
    N_VARIANTS,
    NOTHING,
    WORDINGS,
    estimated_tokens,
    fits,
    negative_prompt,
    phrase,
)

NIH_14 = ["Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema", "Fibrosis", "Hernia",
          "Infiltration", "Mass", "Nodule", "Pleural Thickening", "Pneumonia", "Pneumothorax"]
CXR_LT_2024 = [
    "Support Devices", "Lung Opacity", "Cardiomegaly", "Pleural Effusion", "Atelectasis", "Pneumonia", "Edema",
    "Normal", "Enlarged Cardiomediastinum", "Consolidation", "Pneumothorax", "Fracture", "Infiltration",
    "Rib Fracture", "Nodule", "Mass", "Calcification of the Aorta", "Hernia", "Emphysema", "Adenopathy",
    "Tortuous Aorta", "Pleural Thickening", "Granuloma", "Fissure", "Lung Lesion", "Tuberculosis",
    "Subcutaneous Emphysema", "Pulmonary Embolism", "Fibrosis", "Pulmonary Hypertension", "Kyphosis", "Infarction",
    "Pneumomediastinum", "Hydropneumothorax", "Pleural Other", "Pneumoperitoneum", "Azygos Lobe",
    "Round(ed) Atelectasis", "Clavicle Fracture", "Lobar Atelectasis", "Scoliosis", "Hilum", "Osteopenia",
    "Cardiomyopathy", "Bulla",
]
SPOKEN_OTHERWISE = {"Round(ed) Atelectasis": ("rounded", "atelectasis")}


def words_of(label: str) -> tuple[str, ...]:
    return SPOKEN_OTHERWISE.get(label, tuple(label.lower().split()))


def everywhere(
    labels: list[str], *, age: float | None = 63, sex: str | None = "F", view: str | None = "PA"
) -> list[str]:
    return [phrase(labels, view=view, age=age, sex=sex, variant=v) for v in range(N_VARIANTS)]


@pytest.mark.parametrize("label", sorted({*NIH_14, *CXR_LT_2024}))
def test_every_known_label_has_wordings_that_keep_its_own_words(label: str) -> None:
    assert label in WORDINGS
    for text in everywhere([label]):
        assert all(word in text.lower() for word in words_of(label)), text


def test_all_45_labels_of_cxr_lt_are_covered() -> None:
    assert len(set(CXR_LT_2024)) == 45


def test_different_label_sets_never_sound_the_same() -> None:
    sets = [[], *([label] for label in WORDINGS), *map(list, itertools.combinations(sorted(WORDINGS), 2))]
    for variant in range(N_VARIANTS):
        said = [phrase(labels, view="AP", age=50, sex="M", variant=variant) for labels in sets]
        assert len(set(said)) == len(sets)


def test_at_least_four_variants_of_each_vector_and_the_order_of_labels_plays_no_part() -> None:
    labels = ["Hernia", "Mass", "Edema"]
    assert len(set(everywhere(labels))) == N_VARIANTS >= 4
    assert len(set(everywhere([]))) >= 4
    for shuffled in itertools.permutations(labels):
        assert everywhere(list(shuffled)) == everywhere(labels)


def test_the_order_of_findings_varies_over_variants() -> None:
    texts = everywhere(["Emphysema", "Fibrosis", "Hernia"])
    orders = {tuple(sorted(("emphysema", "fibrosis", "hernia"), key=text.lower().index)) for text in texts}
    assert len(orders) >= 3


def test_any_eight_findings_are_said_in_full_and_fit() -> None:
    findings = [label for label in CXR_LT_2024 if label != "Normal"]
    costliest = sorted(findings, key=lambda label: -estimated_tokens(WORDINGS[label][0]))[:8]
    rng = np.random.default_rng(0)
    for labels in [costliest, *(list(rng.choice(findings, 8, replace=False)) for _ in range(30))]:
        assert fits(labels)
        for text in everywhere(labels, age=100, view="LATERAL"):
            assert estimated_tokens(text) <= MAX_TOKENS
            assert len(text.split()) <= 50
            assert all(WORDINGS[label][0] in text.lower() for label in labels)


def test_fits_says_beforehand_whether_phrase_raises() -> None:
    rng = np.random.default_rng(1)
    outcomes = set()
    for n in range(1, 15):
        labels = list(rng.choice(CXR_LT_2024, n, replace=False))
        outcomes.add(fits(labels))
        if fits(labels):
            everywhere(labels, age=100, view="LATERAL")
    assert outcomes == {True, False}
    with pytest.raises(TailfillError, match=r"45 findings.*no finding left out"):
        phrase(CXR_LT_2024, view="PA", age=60, sex="F", variant=0)


@pytest.mark.parametrize(("age", "sex", "said"), [
    (63.0, "F", "a 63-year-old woman"), (80.0, "M", "an 80-year-old man"), (8.0, "F", "an 8-year-old girl"),
    (17.9, "M", "a 17-year-old boy"), (18.0, "M", "an 18-year-old man"), (0.4, "F", "a female infant"),
    (None, "M", "a man"), (float("nan"), None, "a patient"), (50.0, None, "a 50-year-old patient"),
])
def test_the_patient_in_words(age: float | None, sex: str | None, said: str) -> None:
    assert f" {said}" in phrase(["Mass"], view="PA", age=age, sex=sex, variant=0)


@pytest.mark.parametrize(("view", "said"), [("PA", "frontal pa"), ("AP", "frontal ap"), ("LATERAL", "lateral")])
def test_the_view_is_said_in_every_variant_and_no_other(view: str, said: str) -> None:
    assert all(said in text.lower() for text in everywhere(["Mass"], view=view))
    assert not any(said in text.lower() for text in everywhere(["Mass"], view=None))


def test_sentences_are_whole() -> None:
    for labels in ([], ["Hernia"], ["Hernia", "Mass", "Edema"]):
        for view, age, sex in itertools.product(("PA", None), (63, None), ("F", None)):
            for text in everywhere(labels, view=view, age=age, sex=sex):
                assert text[0].isupper()
                assert text.endswith(".")
                assert "  " not in text
                assert all(part[0].isupper() for part in text.split(". "))


def test_variants_repeat_after_their_number() -> None:
    again = [phrase(["Mass", "Hernia"], view="PA", age=63, sex="F", variant=v + N_VARIANTS) for v in range(N_VARIANTS)]
    assert again == everywhere(["Mass", "Hernia"])


def test_nothing_present_is_said_so() -> None:
    assert phrase([], view="PA", age=63, sex="F", variant=0).endswith("No acute cardiopulmonary abnormality.")
    assert all(any(nothing in text.lower() for nothing in NOTHING) for text in everywhere([]))


def test_a_label_outside_the_vocabulary_is_its_own_name() -> None:
    assert "kartagener syndrome" in phrase(["Kartagener_Syndrome"], view=None, age=None, sex=None, variant=3)


def test_unknown_view_and_sex_are_errors() -> None:
    with pytest.raises(TailfillError, match="view is 'pa'"):
        phrase([], view="pa", age=1, sex="F", variant=0)
    with pytest.raises(TailfillError, match="sex is 'female'"):
        phrase([], view="PA", age=1, sex="female", variant=0)


def test_the_negative_prompt_is_the_unconditional_one() -> None:
    assert negative_prompt() == ""
