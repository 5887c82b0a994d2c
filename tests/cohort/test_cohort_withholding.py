"""Thinning: patients leave whole, nothing disappears, test stays, and a withheld patient who turns up is found."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from withheld_toys import LABELS, toy_frame, write_toy

from cohort.errors import TailfillError
from cohort.provenance import write_patients
from cohort.stage import Stage, require
from cohort.tables import RECONSTRUCTED, load_cohort, write_table
from cohort.withholding.cohorts import Thinning, write_thinned
from cohort.withholding.proof import prove_apart
from cohort.withholding.thinning import overlap, room_of, sets_apart, thin, thinning_rows

FRAME = toy_frame(600, seed=1)


def counted(frame: pd.DataFrame, split: str, label: str) -> int:
    return int((frame.loc[frame["split"] == split, label] == 1).sum())


@pytest.mark.parametrize("findings", [["Effusion"], ["Effusion", "Mass"], ["Effusion", "Mass", "Nodule"]])
@pytest.mark.parametrize("level", [0, 1, 10, 40])
def test_patients_leave_whole_and_the_level_is_met_up_to_one_patient(findings: list[str], level: int) -> None:
    gone = thin(FRAME, findings, level=level, rng=np.random.default_rng(3))
    kept, withheld = FRAME[~gone], FRAME[gone]
    assert not set(kept["patient_id"]) & set(withheld["patient_id"])
    assert (kept["split"] == "test").sum() == (FRAME["split"] == "test").sum()
    assert withheld.groupby("patient_id")[findings].sum().gt(0).any(axis=1).all()  # nobody leaves for nothing
    most = FRAME.groupby("patient_id")[findings].sum().max().max()
    for split in ("train", "val"):
        for finding, room in room_of(FRAME, findings, level=level)[split].items():
            assert counted(kept, split, finding) <= room
            if len(findings) == 1:
                assert counted(kept, split, finding) > room - most


def test_validation_is_thinned_as_far_as_train() -> None:
    gone = thin(FRAME, ["Effusion"], level=40, rng=np.random.default_rng(0))
    shares = {split: counted(FRAME[~gone], split, "Effusion") / counted(FRAME, split, "Effusion")
              for split in ("train", "val")}
    assert shares["val"] == pytest.approx(shares["train"], rel=0.5)


def test_a_draw_is_its_seed_whatever_the_order_of_the_rows_and_levels_are_nested() -> None:
    shuffled = FRAME.sample(frac=1, random_state=0)
    one, same, other = (set(frame.loc[thin(frame, ["Mass"], level=20, rng=np.random.default_rng(seed)), "image_id"])
                        for frame, seed in ((FRAME, 5), (shuffled, 5), (FRAME, 6)))
    assert one == same != other
    low = FRAME.loc[~thin(FRAME, ["Mass"], level=10, rng=np.random.default_rng(5))]
    high = FRAME.loc[~thin(FRAME, ["Mass"], level=20, rng=np.random.default_rng(5))]
    shared = set(low.loc[low["Mass"] == 1, "patient_id"]) & set(high.loc[high["Mass"] == 1, "patient_id"])
    assert len(shared) >= 0.8 * low.loc[low["Mass"] == 1, "patient_id"].nunique()


@pytest.mark.parametrize(("findings", "level", "said"), [
    ([], 3, "one finding or more"), (["Efusion"], 3, "no label 'Efusion'.*Effusion"), (["Mass"], -1, "0 or more"),
    (["Mass"], 10_000, "thinning 'Mass' to 10000 positives: train has"),
])
def test_what_cannot_be_thinned_is_refused(findings: list[str], level: int, said: str) -> None:
    with pytest.raises(TailfillError, match=said):
        thin(FRAME, findings, level=level, rng=np.random.default_rng(0))


def test_findings_that_meet_too_often_are_thinned_apart() -> None:
    shares = overlap(FRAME, ["Effusion", "Mass", "Nodule"])
    train = FRAME[FRAME["split"] == "train"]
    assert shares.loc["Mass", "Effusion"] == pytest.approx(train.loc[train["Mass"] == 1, "Effusion"].mean())
    assert sets_apart(FRAME, ["Effusion", "Mass", "Nodule"], max_overlap=1.0) == [["Effusion", "Mass", "Nodule"]]
    apart = sets_apart(FRAME, ["Effusion", "Mass", "Nodule"], max_overlap=0.3)
    assert apart == [["Effusion", "Nodule"], ["Mass"]]
    assert sets_apart(FRAME, ["Effusion", "Mass"], max_overlap=0.0) == [["Effusion"], ["Mass"]]


def test_two_cohorts_hold_what_one_held(tmp_path: Path) -> None:
    parent = write_toy(tmp_path / "parent", FRAME)
    thinning = Thinning(findings=("Effusion", "Nodule"), level=15, seed=0)
    thinned, withheld = tmp_path / "run" / "cohort", tmp_path / "run" / "oracle"
    write_thinned(parent, thinning, thinned=thinned, withheld=withheld)
    write_thinned(parent, thinning, thinned=thinned, withheld=withheld)  # again: nothing to do
    kept, gone, whole = load_cohort(thinned), load_cohort(withheld), load_cohort(parent)
    both = pd.concat([kept.frame, gone.frame]).sort_values("image_id").reset_index(drop=True)
    pd.testing.assert_frame_equal(both, whole.frame.sort_values("image_id").reset_index(drop=True))
    assert kept.salt == gone.salt == whole.salt
    assert [kept.groups[label] for label in LABELS] == ["tail", whole.groups["Mass"], "tail", whole.groups["Hernia"]]
    rows = pd.read_parquet(thinned / "thinning.parquet")
    assert (rows["n_before"] == rows["n_kept"] + rows["n_withheld"]).all()
    with pytest.raises(TailfillError, match=r"level was 15, now 16"):
        write_thinned(parent, replace(thinning, level=16), thinned=thinned, withheld=withheld)


def test_new_patients_join_the_withheld_ones_only_if_they_are_new(tmp_path: Path) -> None:
    parent = write_toy(tmp_path / "parent", FRAME)
    new = write_toy(tmp_path / "new", toy_frame(50, seed=2, prefix="q"), salt="another")
    thinning = Thinning(findings=("Mass",), level=10, seed=1)
    write_thinned(parent, thinning, thinned=tmp_path / "a", withheld=tmp_path / "b", truth=new)
    pool = load_cohort(tmp_path / "b")
    joined = pool.frame[pool.frame["root"] == "truth:toy"]
    assert len(joined) == (load_cohort(new).frame["split"] == "train").sum()
    assert pool.image_paths(joined)[0].parent == new
    with pytest.raises(TailfillError, match="wanted: other patients"):
        write_thinned(parent, thinning, thinned=tmp_path / "c", withheld=tmp_path / "d",
                      truth=write_toy(tmp_path / "old", FRAME.head(20)))


def test_company_is_counted_before_and_after() -> None:
    gone = thin(FRAME, ["Effusion", "Mass"], level=20, rng=np.random.default_rng(2))
    groups = dict.fromkeys(LABELS, "tail")
    rows = thinning_rows(FRAME, gone, ["Effusion", "Mass"], groups).set_index(["label", "split"])
    train = FRAME[(FRAME["split"] == "train") & (FRAME["Mass"] == 1)]
    assert rows.loc[("Mass", "train"), "company_before"] == pytest.approx(train["Effusion"].mean())
    assert rows.loc[("Hernia", "train"), "n_before"] == counted(FRAME, "train", "Hernia")


# --- the proof -------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run on a thinned cohort: a generator, a plan, and an oracle arm that has seen the withheld patients."""
    parent = write_toy(tmp_path / "parent", FRAME)
    folder = tmp_path / "run"
    write_thinned(parent, Thinning(findings=("Effusion",), level=15, seed=0), thinned=folder / "cohort",
                  withheld=folder / "oracle")
    kept, gone = load_cohort(folder / "cohort"), load_cohort(folder / "oracle")
    plant(folder, "generator", patients=kept.split("train")["patient_id"], salt=kept.salt)
    plant(folder, "plan", label_source_id=kept.split("train")["image_id"].head(30))
    everyone = pd.concat([kept.split("train"), gone.split("train")])
    plant(folder, "train/oracle-full/seed_0", patients=everyone["patient_id"], salt=kept.salt, oracle=True)
    return folder


def plant(run: Path, name: str, *, patients: pd.Series | None = None, salt: str = "", label_source_id: object = None,
          oracle: bool = False, cohort: Path | None = None) -> None:
    """A complete stage below ``run`` that has seen ``patients``, or names images in its table."""
    inputs = {"cohort": cohort or run / "cohort"} | ({"oracle": run / "oracle"} if oracle else {})
    stage = Stage(name.split("/")[0], run / name, config={}, inputs=inputs)
    stage.begin()
    table = pd.DataFrame({"label_source_id": [] if label_source_id is None else label_source_id}, dtype="str")
    write_table(table, stage.folder / "plan.parquet")
    if patients is not None:
        write_patients(stage.folder, patients, salt=salt)
    stage.finish(outputs=["plan.parquet"], counts={})


def prove(run: Path) -> pd.DataFrame:
    return prove_apart([run], thinned=load_cohort(run / "cohort"), withheld=load_cohort(run / "oracle"),
                       thinned_hash=require(run / "cohort", "cohort")["output_hash"])


def test_a_clean_run_is_proved_clean_and_its_oracle_is_found(run: Path) -> None:
    table = prove(run)
    assert (table.loc[~table["is_oracle"], "n_withheld"] == 0).all()
    assert {"patients", "inputs", "ids"} == set(table["check"])
    found = table[table["is_oracle"] & (table["check"] == "patients")]
    assert found["n_withheld"].iloc[0] == load_cohort(run / "oracle").split("train")["patient_id"].nunique()


def test_one_planted_patient_image_or_cohort_is_refused(run: Path) -> None:
    kept, gone = load_cohort(run / "cohort"), load_cohort(run / "oracle")
    one = pd.concat([kept.split("train")["patient_id"], gone.frame["patient_id"].tail(1)])
    plant(run, "train/real/seed_1000", patients=one, salt=kept.salt)
    with pytest.raises(TailfillError, match="seed_1000: has seen 1 withheld patients"):
        prove(run)


def test_a_prompt_that_copies_a_withheld_image_is_refused(run: Path) -> None:
    plant(run, "fill", label_source_id=load_cohort(run / "oracle").frame["image_id"].head(2))
    with pytest.raises(TailfillError, match="fill: has seen 2 withheld ids"):
        prove(run)


def test_the_reconstruction_of_a_withheld_image_is_refused(run: Path) -> None:
    plant(run, "arms/synthetic-harmonised", label_source_id=(
        RECONSTRUCTED + load_cohort(run / "oracle").frame["image_id"].head(1)))
    with pytest.raises(TailfillError, match="synthetic-harmonised: has seen 1 withheld ids"):
        prove(run)


def test_a_stage_made_of_the_whole_cohort_is_refused(run: Path) -> None:
    plant(run, "synthetic", cohort=run.parent / "parent")
    with pytest.raises(TailfillError, match="synthetic: has seen 1 withheld inputs"):
        prove(run)


def test_an_arm_beside_the_oracle_that_reads_the_withheld_cohort_is_refused(run: Path) -> None:
    plant(run, "train/synthetic/seed_0", oracle=True)
    with pytest.raises(TailfillError, match="synthetic/seed_0: has seen 1 withheld inputs"):
        prove(run)


def test_a_check_that_finds_nobody_where_they_must_be_is_no_check(run: Path) -> None:
    kept = load_cohort(run / "cohort")
    plant(run, "train/oracle/seed_0", patients=kept.split("train")["patient_id"], salt=kept.salt, oracle=True)
    with pytest.raises(TailfillError, match="the oracle has learnt from no withheld patient"):
        prove(run)
