"""Levers: legal settings, stages made anew where a lever touches them, and gains that are planted."""

from pathlib import Path
from types import SimpleNamespace

import levers
import numpy as np
import pandas as pd
import pytest
from calibration_pools import PoolSizes, make_pools
from experiment_config import read_experiment
from levers import BASE, LEVERS, Drawn, list_heads, parse, recipe_of, score, settings_of, tabulate
from quick_studio import quick_studio

from classify.arms.layout import ArmConfig
from cohort.errors import TailfillError
from cohort.phantom.prevalence import FINDINGS
from cohort.stage import Stage
from cohort.tables import write_table

SIZES = PoolSizes(cohorts=1, cohort_images=700, new_images=240, copies=1, test_images=500)


@pytest.fixture
def base(repository: Path, tmp_path: Path) -> dict:
    words = ["--run", str(tmp_path / "levers" / "base"), "--train.steps", "60", "--train.batch_size", "32"]
    return read_experiment([str(repository / "configs" / "phantom_levers.yaml"), *words], doc=None).config


@pytest.mark.parametrize("name", LEVERS)
def test_a_lever_is_a_legal_configuration_that_makes_anew_what_it_touches_only(
    name: str, base: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []
    monkeypatch.setattr(levers, "run_stage", lambda module, file, *words: ran.append(" ".join([module, *words])))
    run = levers.draw(base, name)
    settings = settings_of(base, name)
    changed = {section for section in LEVERS[name] if settings[section] != base[section]}
    assert changed == set(LEVERS[name])
    if name == BASE:
        assert ran == ["cohort.prepare", "cohort.prepare --role oracle", "prompts.plan", "synth.finetune",
                       "synth.generate"]
    elif changed == {"arm"}:
        assert (ran, run) == ([], Path(base["run"]))
    else:
        assert ran[-1] == "synth.generate"
        links = {place.name for place in run.iterdir() if place.is_symlink()}
        assert links == {"cohort", "plan", "generator"} - {
            {"prompts.plan": "plan", "synth.finetune": "generator"}.get(module, "") for module in ran}
        assert read_experiment([str(run / "config.yaml")], doc=None).config["generate"] == settings["generate"]


def test_links_survive_a_move_and_broken_ones_are_made_anew(base: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(levers, "run_stage", lambda module, file, *words: None)
    (Path(base["run"]) / "cohort").mkdir(parents=True)
    run = Path(base["run"]).with_name("finetuning_2x")
    run.mkdir()
    (run / "cohort").symlink_to("/nowhere/cohort")
    levers.draw(base, "finetuning_2x")
    assert (run / "cohort").samefile(Path(base["run"]) / "cohort")
    moved = run.parent.rename(run.parent.with_name("moved")) / run.name
    assert (moved / "cohort").is_dir()


def test_the_phantom_draws_the_plan_of_the_base_and_of_levers_that_change_it(
    base: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = pd.DataFrame({"image_id": ["a"], "row": [0]})
    cohort = SimpleNamespace(split=lambda name: frame, labels=[])
    for name in ("load_cohort", "load_further"):
        monkeypatch.setattr(levers, name, lambda *rest: cohort)
    monkeypatch.setattr(levers, "draw", lambda base, name: Path(name))
    monkeypatch.setattr(levers, "open_studio", lambda *rest, **keys: SimpleNamespace(blocks=[np.zeros((1, 2))]))
    monkeypatch.setattr(levers, "looked_at", lambda frame, *rest: frame)
    monkeypatch.setattr(levers, "charge_to_rarest", lambda frame, cohort: frame)
    monkeypatch.setattr(levers, "replace", lambda one, **keys: SimpleNamespace(**{**vars(one), **keys}))
    monkeypatch.setattr(levers, "images_of", lambda run, studio: frame.assign(run=str(run)))
    monkeypatch.setattr(levers, "perfect_images", lambda run, *rest: frame.assign(run=f"{run} perfect"))
    names = [BASE, "own_company", "guidance_4"]
    _, drawn = levers.open_world(base, names, perfect=True)
    assert [one.name for one in drawn] == [*names, "base_perfect", "own_company_perfect"]
    assert [one.images["run"].item() for one in drawn[3:]] == ["base perfect", "own_company perfect"]
    assert [one.name for one in levers.open_world(base, names, perfect=False)[1]] == names


def test_perfect_images_show_what_the_plan_asks_for(base: dict, tmp_path: Path) -> None:
    labels = ["Cardiomegaly", "Kyphosis"]
    cohort = SimpleNamespace(labels=labels)
    plan = pd.DataFrame({"sample_id": [f"s{i}" for i in range(200)], "seed": range(200), "view": "PA", "sex": "M",
                         "age": 60.0, "Cardiomegaly": 0, "Kyphosis": [i % 2 for i in range(200)]})
    stage = Stage("plan", tmp_path / "plan", config={}, inputs={})
    stage.begin()
    write_table(plan, stage.folder / "plan.parquet")
    stage.finish(outputs=["plan.parquet"], counts={})
    studio = quick_studio(tmp_path, tmp_path, processes=1)
    made = levers.perfect_images(tmp_path, base, cohort, studio)
    assert made["image_id"].tolist() == plan["sample_id"].tolist()
    assert made["keep"].all()
    features = np.concatenate(studio.blocks)[made["row"]]
    shown = features[1::2].mean(axis=0) - features[::2].mean(axis=0)
    direction = np.random.default_rng(0).normal(size=(len(FINDINGS), 24))[list(FINDINGS).index("Kyphosis")]
    assert np.corrcoef(shown, direction)[0, 1] > 0.9


def test_only_a_phantom_can_be_drawn_as_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: dict) -> None:
    other = {**base, "prepare": {"source": "nih"}}
    monkeypatch.setattr(levers, "read_experiment", lambda words, doc: SimpleNamespace(config=other))
    monkeypatch.setattr(levers, "parse", lambda: parse(["some.yaml", "--levers", "own_company", "--perfect"]))
    with pytest.raises(TailfillError, match=r"--perfect: some.yaml has prepare.source nih; wanted: phantom"):
        levers.main()


def test_levers_of_own_and_of_borrowed_company_have_oracles_of_their_own(base: dict) -> None:
    pools = make_pools(quick_studio(Path(), Path(), processes=1), SIZES, seed=0)
    config = ArmConfig(slots_per_class=10, synthetic_loss_weight=1.0, negatives=0.0)
    borrowed = pools.new.assign(label_source_id=None, keep=True)
    own = borrowed.assign(label_source_id=pools.cohorts[0].split("train")["image_id"].iloc[0])
    drawn = [Drawn(name=BASE, images=borrowed, config=config), Drawn(name="own_company", images=own, config=config)]
    source = score(pools, list_heads(pools, drawn, 2), recipe_of(base), 20)
    assert len(source.arms) == 6
    table = tabulate(source, drawn).set_index(["lever", "label"])
    assert table.loc[(BASE, "tail"), "oracle"] != table.loc[("own_company", "tail"), "oracle"]
    assert np.isfinite(table.loc[("own_company", "tail"), "against_base"])


def test_the_pipeline_as_it_was_given_stands_in_for_the_fine_tuned_one(base: dict) -> None:
    assert settings_of(base, "no_finetuning")["generate"]["pipeline"] == base["finetune"]["pipeline"]
    assert base["generate"]["pipeline"] is None


def test_new_people_with_the_sign_gain_what_the_oracle_gains_and_without_it_less(base: dict) -> None:
    pools = make_pools(quick_studio(Path(), Path(), processes=1), SIZES, seed=0)
    made = pools.new.assign(label_source_id=None, keep=True)
    config = ArmConfig(slots_per_class=10, synthetic_loss_weight=1.0, negatives=0.0)
    drawn = [Drawn(name=BASE, images=made, config=config),
             Drawn(name="bare", images=made.assign(row=pools.new["row_without"]), config=config),
             Drawn(name="more", images=made, config=ArmConfig(slots_per_class=20, synthetic_loss_weight=1.0))]
    source = score(pools, list_heads(pools, drawn, 3), recipe_of(base), 40)
    table = tabulate(source, drawn)
    assert len(source.arms) == 4 + 3  # a layout has its own duplicates and oracle
    tail = table[table["label"] == "tail"].set_index("lever")
    assert tail.loc[BASE, "gain"] > 0.02
    assert tail.loc[BASE, "gain"] == pytest.approx(tail.loc[BASE, "oracle"], rel=0.4)
    assert tail.loc["bare", "gain"] < tail.loc[BASE, "gain"] / 2
    assert tail.loc["bare", "against_base"] == pytest.approx(tail.loc["bare", "gain"] - tail.loc[BASE, "gain"])
    assert np.isnan(tail.loc["more", "against_base"])
    assert tail.loc[BASE, "against_base"] == 0
    assert set(table["label"]) == {"tail", "control", *pools.cohorts[0].in_group("tail"),
                                   *pools.cohorts[0].in_group("control")}
    assert table["gain"].notna().all()


def test_a_run_without_a_plan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TailfillError, match="plan"):
        levers.images_of(tmp_path, quick_studio(tmp_path, tmp_path, processes=1))


def test_a_lever_that_nobody_knows_is_refused() -> None:
    with pytest.raises(TailfillError, match="unknown lever 'guidance_5'"):
        parse(["c.yaml", "--levers", "guidance_5"])
    with pytest.raises(TailfillError, match="--n-seeds is 1"):
        parse(["c.yaml", "--n-seeds", "1"])
