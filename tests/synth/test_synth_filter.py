"""The filter as a command on a fabricated run: every image accounted for, thresholds obeyed, sources checked."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from classify.learning.models import Card, build_classifier, save_card, save_weights
from cohort.provenance import hash_patients, write_patients
from cohort.stage import Stage, hash_file
from cohort.tables import cohort_schema, images_schema, plan_schema, read_table, synthetic_schema, write_table
from synth import filter as command
from synth.judging.verdicts import decide
from synth.measuring import encoders

LABELS = ["Effusion", "Hernia"]
SIZE = 32
SALT = "pepper"
ORDER = ["blank", "saturated", "label_agreement"]
FLAT, SHOWN, HIDDEN = "flat", "shown", "hidden"


class Pixels:
    """An encoder for tests: 4 x 4 mean pixels."""

    name, sha256, resize, num_features, width, key = "pixels", "0" * 64, "4 px, mean", 16, 16, "1"

    def __init__(self, device: object = "cpu") -> None:
        self.device = device

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(images[:, None].float() / 255, 4).flatten(1)

    def read(self, images: np.ndarray) -> np.ndarray:
        return self.forward(torch.from_numpy(images)).numpy()


class Patch:
    """A critic for tests: Hernia's logit is the brightness of a corner over that of the rest."""

    key, width = "1", len(LABELS)

    def __init__(self, folder: Path, labels: list[str], *, name: str, device: object) -> None:
        self.name = name

    def read(self, images: np.ndarray) -> np.ndarray:
        contrast = images[:, :8, :8].mean(axis=(1, 2)) - images[:, 16:].mean(axis=(1, 2))
        return np.stack([np.zeros(len(images)), contrast / 10], axis=1).astype(np.float32)


def radiograph(rng: np.random.Generator, *, hernia: bool) -> np.ndarray:
    """Grey noise; a bright corner is the finding."""
    pixels = rng.normal(110, 25, (SIZE, SIZE))
    pixels[:8, :8] += 70 * hernia
    return np.clip(pixels, 1, 254).astype(np.uint8)


def write_cohort(folder: Path, rng: np.random.Generator) -> None:
    rows = []
    (folder / "pixels").mkdir(parents=True)
    for split, n in (("train", 80), ("val", 60), ("test", 4)):
        for i in range(n):
            hernia = i % 2 == 0
            Image.fromarray(radiograph(rng, hernia=hernia)).save(folder / "pixels" / f"{split}{i}.png")
            rows.append({"image_id": f"{split}{i}", "root": "r", "path": f"pixels/{split}{i}.png",
                         "patient_id": f"{split}-{i // 2}", "study_id": None, "view": "PA", "age": 50.0, "sex": "F",
                         "split": split, "Effusion": None if i == 5 else 0, "Hernia": int(hernia)})
    stage = Stage("prepare", folder, config={}, inputs={})
    stage.begin()
    write_table(pd.DataFrame(rows), folder / "cohort.parquet", cohort_schema(LABELS))
    stage.finish(outputs=["cohort.parquet"], counts={"kept": len(rows)}, extra={
        "labels": LABELS, "groups": {"Effusion": "head", "Hernia": "tail"}, "roots": {"r": str(folder)}, "salt": SALT})


def made(rng: np.random.Generator) -> list[tuple[str, str, np.ndarray | None]]:
    """What was asked, a name for the case, and the image that came."""
    flat = np.full((SIZE, SIZE), 100, np.uint8)
    return [
        *[("Hernia", SHOWN, radiograph(rng, hernia=True)) for _ in range(14)],
        *[("Hernia", HIDDEN, radiograph(rng, hernia=False)) for _ in range(6)],
        *[("negative", HIDDEN, radiograph(rng, hernia=False)) for _ in range(14)],
        *[("negative", SHOWN, radiograph(rng, hernia=True)) for _ in range(4)],
        *[("Hernia", FLAT, flat) for _ in range(2)],
        ("Hernia", "failed", None),
    ]


def write_plan_and_images(run: Path, rng: np.random.Generator) -> None:
    rows, files = [], []
    for i, (charged_to, case, pixels) in enumerate(made(rng)):
        sample_id = f"{i:02x}" + f"{i:014x}"
        rows.append({"sample_id": sample_id, "prompt": case, "negative_prompt": "", "Effusion": 0,
                     "Hernia": int(charged_to == "Hernia"), "view": "PA", "age": 60.0, "sex": "M",
                     "charged_to": charged_to, "label_source_id": "train0", "init_image_id": None, "strength": None,
                     "seed": i, "batch": 0, "round": 0})
        row = {"sample_id": sample_id, "status": "ok", "error": None, "path": f"images/{sample_id}.png", "sha256": None,
               "height": SIZE, "width": SIZE, "micro_batch": 8}
        if pixels is None:
            row |= {"status": "error", "error": "out of memory", "path": None, "height": None, "width": None}
        else:
            file = run / "images" / row["path"]
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file)
            row["sha256"] = hash_file(file)
        files.append(row)
    plan = Stage("plan", run / "plan", config={}, inputs={})
    plan.begin()
    write_table(pd.DataFrame(rows), run / "plan" / "plan.parquet", plan_schema(LABELS))
    plan.finish(outputs=["plan.parquet"], counts={"planned": len(rows)})
    images = Stage("generate", run / "images", config={}, inputs={"generator": run / "generator"})
    images.begin()
    order = rng.permutation(len(files))
    write_table(pd.DataFrame(files).iloc[order], run / "images" / "images.parquet", images_schema())
    images.finish(outputs=["images.parquet"], counts={"planned": len(files)}, extra={"provenance": "checked"})


def write_learnt(folder: Path, stage_name: str, patients: list[str], *, critic: bool = False) -> None:
    """A complete stage that has learnt from ``patients``; a critic gets random weights."""
    stage = Stage(stage_name, folder, config={}, inputs={})
    stage.begin()
    outputs = ["patients.parquet"]
    if critic:
        torch.manual_seed(len(str(folder)))
        save_weights(build_classifier("convnext_atto", len(LABELS)).state_dict(), folder / "ema.safetensors")
        save_card(Card(model="convnext_atto", labels=tuple(LABELS), image_size=SIZE, mean=0.5, std=0.25), folder)
        outputs += ["ema.safetensors", "card.json"]
    write_patients(folder, patients, salt=SALT)
    stage.finish(outputs=outputs, counts={})


def build_run(root: Path) -> Path:
    """A run with everything that the filter reads; returns its config."""
    rng, run = np.random.default_rng(0), root / "run"
    write_cohort(run / "cohort", rng)
    write_learnt(run / "generator", "finetune", ["train-0"])
    write_plan_and_images(run, rng)
    write_learnt(run / "train" / "real" / "seed_1000", "train", ["train-1", "train-2"], critic=True)
    config = root / "c.yaml"
    section = {"encoders": ["pixels"], "rules": dict.fromkeys(ORDER)}
    config.write_text(yaml.safe_dump({"run": "run", "threads": 1, "filter": section}, sort_keys=False))
    return config


@pytest.fixture(scope="module", autouse=True)
def _light_models() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(encoders.ENCODERS, "pixels", Pixels)
        patch.setattr(command, "Critic", Patch)
        yield


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config of a run that nobody changes."""
    return build_run(tmp_path_factory.mktemp("template"))


@pytest.fixture
def config(template: Path, tmp_path: Path) -> Path:
    """The config of a run of its own, to change."""
    shutil.copytree(template.parent, tmp_path / "own")
    return tmp_path / "own" / template.name


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, invoke: Callable) -> Path:
    """The config of a run that has been filtered; do not change it."""
    config = build_run(tmp_path_factory.mktemp("finished"))
    outcome = invoke("synth.filter", "--config", config)
    assert outcome.code == 0, outcome.stderr
    return config


@pytest.fixture(scope="module")
def filtered(finished: Path) -> Path:
    """Its folder."""
    return finished.parent / "run" / "synthetic"


def cases(folder: Path) -> pd.DataFrame:
    """The synthetic table with the fabricated case of each image."""
    plan = read_table(folder.parent / "plan" / "plan.parquet")[["sample_id", "prompt"]]
    return read_table(folder / "synthetic.parquet").merge(plan, on="sample_id")


def test_right_images_are_kept_and_wrong_ones_dropped_with_their_reason(filtered: Path) -> None:
    frame = cases(filtered)
    right = frame[((frame["charged_to"] == "Hernia") & (frame["prompt"] == SHOWN))
                  | ((frame["charged_to"] == "negative") & (frame["prompt"] == HIDDEN))]
    wrong = frame.drop(right.index)
    assert right["keep"].mean() > 0.8  # each threshold lets 5 % of right ones go
    assert not wrong["keep"].any()
    assert set(wrong[wrong["prompt"] == FLAT]["reason"]) == {"blank"}
    assert set(wrong[wrong["prompt"] != FLAT]["reason"]) == {"label_agreement"}
    assert frame.loc[frame["keep"], "reason"].isna().all()
    assert (frame.loc[frame["keep"], ["blank", "saturated", "label_agreement"]] >= 0).all(axis=None)


def test_every_image_is_accounted_for(filtered: Path) -> None:
    stamp = json.loads((filtered / "_stage.json").read_text())
    counts, extra = stamp["counts"], stamp["extra"]
    assert counts["planned"] == 41 == counts["made"] + counts["failed"]
    assert counts["made"] == counts["kept"] + counts["dropped"] == len(read_table(filtered / "synthetic.parquet"))
    assert counts["dropped"] == sum(n for key, n in counts.items() if key.startswith("dropped_"))
    assert extra["rules"] == ORDER
    assert extra["scarce"] == ["Hernia"]
    assert extra["provenance"] == "checked"


def test_rows_are_those_of_the_plan_and_open_as_images(filtered: Path) -> None:
    schema = synthetic_schema(LABELS, ["blank", "saturated", "label_agreement"])
    frame = read_table(filtered / "synthetic.parquet", schema)
    plan = read_table(filtered.parent / "plan" / "plan.parquet").set_index("sample_id").loc[frame["sample_id"]]
    for column in (*LABELS, "view", "age", "sex", "charged_to", "label_source_id"):
        assert frame[column].tolist() == plan[column].tolist()
    roots = json.loads((filtered / "_stage.json").read_text())["extra"]["roots"]
    assert all((Path(roots[root]) / path).is_file() for root, path in zip(frame["root"], frame["path"], strict=True))
    assert set(frame["split"]) == {"train"}
    assert (frame["patient_id"] == frame["image_id"]).all()
    assert (frame["image_id"] == "synthetic:" + frame["sample_id"]).all()


def test_scores_and_thresholds_explain_the_decisions(filtered: Path) -> None:
    """Recomputed from scores.parquet alone: keep = nothing failed."""
    scores, frame = read_table(filtered / "scores.parquet"), read_table(filtered / "synthetic.parquet")
    failed = set(scores.loc[scores["passed"].eq(False).fillna(False), "sample_id"])
    assert failed == set(frame.loc[~frame["keep"], "sample_id"])
    high = scores["direction"] == "at least"
    passed = np.where(high, scores["score"] >= scores["threshold"], scores["score"] <= scores["threshold"])
    assert (passed == scores["passed"]).all()
    thresholds = read_table(filtered / "thresholds.parquet")
    assert list(thresholds["rule"]) == ["blank", "saturated", "label_agreement", "label_agreement"]
    assert thresholds["source"].str.len().min() > 20
    assert (thresholds.loc[thresholds["label"] == "Hernia", "n_positive"] == 30).all()


def test_fidelity_table(filtered: Path) -> None:
    frame = read_table(filtered / "fidelity.parquet")
    assert set(frame["name"]) == {"all", "tail", "Hernia", "negative"}
    assert not frame.duplicated(["name", "set", "metric"]).any()
    assert (frame["value"].isna() == frame["reason"].notna()).all()
    assert set(frame["encoder"]) == {"pixels"}
    kid = frame[frame["metric"] == "KID"].set_index(["name", "set"])["value"]
    assert kid["Hernia", "made"] > kid["Hernia", "kept"]  # the dropped ones lacked the finding


def test_patients_of_thresholds_critic_and_generator_are_passed_on(filtered: Path) -> None:
    known = set(read_table(filtered / "patients.parquet")["patient"])
    learnt = [f"train-{i}" for i in range(40)] + [f"val-{i}" for i in range(30)]
    assert known == hash_patients(learnt, salt=SALT)


def test_again_does_nothing_and_other_settings_are_refused(filtered: Path, finished: Path, invoke: Callable) -> None:
    stamp = (filtered / "_stage.json").read_bytes()
    assert "nothing to do" in invoke("synth.filter", "--config", finished).stderr
    outcome = invoke("synth.filter", "--config", finished, "--filter.kid_subset", "7")
    assert outcome.code == 2
    assert "kid_subset was 100, now 7" in outcome.stderr
    assert (filtered / "_stage.json").read_bytes() == stamp


def test_explain(filtered: Path, finished: Path, invoke: Callable) -> None:
    frame = cases(filtered)
    dropped = frame[frame["reason"] == "label_agreement"].iloc[0]
    text = invoke("synth.filter", "--config", finished, "--explain", dropped["sample_id"]).stdout
    assert "dropped by label_agreement" in text
    assert "FAILS" in text
    assert "validation" in text
    outcome = invoke("synth.filter", "--config", finished, "--explain", "nosuchimage")
    assert (outcome.code, outcome.stderr.count("\n")) == (2, 1)
    assert "nosuchimage" in outcome.stderr


def test_same_seed_same_tables(filtered: Path, config: Path, invoke: Callable) -> None:
    """From the same files in another folder come the same bytes."""
    assert invoke("synth.filter", "--config", config).code == 0
    again = config.parent / "run" / "synthetic"
    first, second = (json.loads((folder / "_stage.json").read_text())["outputs"] for folder in (filtered, again))
    assert first == second


def test_rules_can_be_left_out(config: Path, invoke: Callable) -> None:
    """Without a rule that needs it, no critic is read; the one rule left is the only column."""
    text = yaml.safe_load(config.read_text())
    text["filter"]["rules"] = {"blank": {"quantile": 0.01}}
    config.write_text(yaml.safe_dump(text))
    shutil.rmtree(config.parent / "run" / "train")
    outcome = invoke("synth.filter", "--config", config)
    assert outcome.code == 0, outcome.stderr
    frame = read_table(config.parent / "run" / "synthetic" / "synthetic.parquet", synthetic_schema(LABELS, ["blank"]))
    assert set(frame["reason"].dropna()) == {"blank"}


def test_dry_run_writes_nothing(config: Path, invoke: Callable) -> None:
    outcome = invoke("synth.filter", "--config", config, "--dry-run")
    assert json.loads(outcome.stdout)["rows"] == 40
    assert not (config.parent / "run" / "synthetic").exists()


@pytest.mark.parametrize(("section", "message"), [
    ({"rules": {"blnk": None}}, "unknown rule 'blnk'; did you mean 'blank'"),
    ({"rules": {"blank": {"quantil": 0.1}}}, "did you mean 'quantile'"),
    ({"encoders": ["inception"]}, "no encoder 'inception'"),
    ({"critic_seeds": [0]}, "critic_seeds is [0]; wanted: one or more, each 1000 or more"),
    ({"critic_seeds": []}, "critic_seeds is []; wanted"),
    ({"critic_seeds": [1001]}, "seed_1001: no complete 'critic' stage"),
    ({"fidelity_n": 0}, "fidelity_n is 0"),
    ({"kid_subsets": 9}, "did you mean 'kid_subset'"),
])
def test_mistakes_in_the_config(config: Path, invoke: Callable, section: dict[str, object], message: str) -> None:
    config.write_text(yaml.safe_dump({"run": "run", "filter": {"encoders": ["pixels"], **section}}))
    outcome = invoke("synth.filter", "--config", config)
    assert (outcome.code, outcome.stderr.count("\n")) == (2, 1), outcome.stderr
    assert message in outcome.stderr
    assert not (config.parent / "run" / "synthetic").exists()


def test_a_critic_that_saw_test_patients_is_refused(config: Path, invoke: Callable) -> None:
    critic = config.parent / "run" / "train" / "real" / "seed_1000"
    shutil.rmtree(critic)
    write_learnt(critic, "train", ["train-1", "test-0"])
    outcome = invoke("synth.filter", "--config", config)
    assert outcome.code == 2
    assert "has learnt from 1 patients of the splits test" in outcome.stderr
    assert not (config.parent / "run" / "synthetic").exists()


def test_a_changed_image_is_refused(config: Path, invoke: Callable) -> None:
    file = sorted((config.parent / "run" / "images" / "images").glob("*.png"))[3]
    Image.fromarray(np.zeros((SIZE, SIZE), np.uint8)).save(file)
    outcome = invoke("synth.filter", "--config", config)
    assert outcome.code == 2
    assert file.name in outcome.stderr
    assert "was changed" in outcome.stderr
    assert not (config.parent / "run" / "synthetic" / "synthetic.parquet").exists()


def test_an_image_drawn_from_a_real_one_belongs_to_its_patient(config: Path) -> None:
    cohort = command.load_cohort(config.parent / "run" / "cohort")
    plan = read_table(config.parent / "run" / "plan" / "plan.parquet").head(2).assign(path="p.png")
    plan["init_image_id"] = pd.Series(["train3", None], dtype="str")
    assert decide(plan, cohort, {})["patient_id"].tolist() == ["train-1", "synthetic:" + plan["sample_id"][1]]
