"""The kinds of bad input: each spoils one thing in a world that works, and names the command that meets it.

``CASES`` holds for each what the error's one line must name.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import yaml

LABEL_FILE = "Data_Entry_2017_v2020.csv"
Words = list[object]


@dataclass(frozen=True)
class World:
    """A run with a cohort and a plan, its configuration, and a dataset of forty images that nothing has read yet."""

    folder: Path

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def config(self) -> Path:
        return self.folder / "config.yaml"

    def write_config(self, **sections: object) -> Words:
        """The flags that name a configuration with these sections."""
        self.config.write_text(yaml.safe_dump({"run": str(self.run), **sections}), encoding="utf-8")
        return ["--config", self.config]

    def prepare(self) -> Words:
        """The command line that reads ``data``."""
        return ["cohort.prepare", "nih", "--root", self.data, "--out", self.folder / "new"]

    def edit_labels(self, old: str, new: str) -> None:
        """Replace text in the label file of ``data``; it must be there."""
        file = self.data / LABEL_FILE
        text = file.read_text(encoding="utf-8")
        assert old in text
        file.write_text(text.replace(old, new), encoding="utf-8")

    def first_image(self) -> Path:
        """The first image of ``data``."""
        return min((self.data / "images").iterdir())

    def files(self) -> dict[str, bytes]:
        """Every file that a command could have written or changed."""
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in sorted(self.folder.rglob("*"))
                if path.is_file() and "data" not in path.relative_to(self.folder).parts}


def wrong_key(world: World) -> Words:
    return ["prompts.plan", *world.write_config(plan={"totl": 8})]


def wrong_type(world: World) -> Words:
    return ["prompts.plan", *world.write_config(plan={"total": "many"})]


def unknown_section(world: World) -> Words:
    return ["prompts.plan", *world.write_config(plann={"total": 8})]


def not_yaml(world: World) -> Words:
    world.config.write_text("run: [unclosed", encoding="utf-8")
    return ["prompts.plan", "--config", world.config]


def a_list(world: World) -> Words:
    world.config.write_text("- run\n- plan\n", encoding="utf-8")
    return ["prompts.plan", "--config", world.config]


def no_config(world: World) -> Words:
    return ["prompts.plan", "--config", world.folder / "nowhere.yaml"]


def unknown_override(world: World) -> Words:
    return ["prompts.plan", *world.write_config(), "--plan.totl", 9]


def no_run(world: World) -> Words:
    world.config.write_text("seed: 1\n", encoding="utf-8")
    return ["prompts.plan", "--config", world.config]


def negative_threads(world: World) -> Words:
    return ["prompts.plan", *world.write_config(threads=-1)]


def unknown_budget_rule(world: World) -> Words:
    return ["prompts.plan", *world.write_config(plan={"rule": "flatt"})]


def unknown_label_in_budget(world: World) -> Words:
    shutil.rmtree(world.run / "plan")
    return ["prompts.plan", *world.write_config(plan={"total": 8, "per_class": {"Hernai": 4}})]


def budget_that_cannot_be_met(world: World) -> Words:
    shutil.rmtree(world.run / "plan")
    return ["prompts.plan", *world.write_config(plan={"total": 8, "per_class": {"Hernia": 50}})]


def other_settings(world: World) -> Words:
    return ["prompts.plan", *world.write_config(plan={"total": 9, "max_ratio": None})]


def folder_not_empty(world: World) -> Words:
    shutil.rmtree(world.run / "plan")
    (world.run / "plan").mkdir()
    (world.run / "plan" / "notes.txt").write_text("mine")
    return ["prompts.plan", *world.write_config(plan={"total": 8})]


def changed_table(world: World) -> Words:
    table = world.run / "cohort" / "cohort.parquet"
    frame = pd.read_parquet(table)
    frame["age"] = frame["age"] + 1
    frame.to_parquet(table, index=False)
    return ["prompts.plan", *world.write_config(plan={"total": 8}), "--run", world.run]


def broken_stamp(world: World) -> Words:
    (world.run / "cohort" / "_stage.json").write_text('{"stage": "pre')
    return ["prompts.plan", *world.write_config(plan={"total": 8})]


def no_cohort(world: World) -> Words:
    shutil.rmtree(world.run / "cohort")
    return ["prompts.plan", *world.write_config(plan={"total": 8})]


def missing_column(world: World) -> Words:
    world.edit_labels("Patient ID", "Person")
    return world.prepare()


def empty_label_file(world: World) -> Words:
    (world.data / LABEL_FILE).write_bytes(b"")
    return world.prepare()


def corrupt_png(world: World) -> Words:
    world.first_image().write_bytes(world.first_image().read_bytes()[:100])
    return world.prepare()


def missing_image(world: World) -> Words:
    world.first_image().unlink()
    return world.prepare()


def label_not_in_the_space(world: World) -> Words:
    world.edit_labels("Effusion", "Efusion")
    return world.prepare()


def duplicate_row(world: World) -> Words:
    file = world.data / LABEL_FILE
    file.write_text(file.read_text() + file.read_text().splitlines()[1] + "\n")
    return world.prepare()


def patient_in_two_splits(world: World) -> Words:
    train, test = world.data / "train_val_list.txt", world.data / "test_list.txt"
    names = train.read_text().split()
    torn = next(name for name in names if name.endswith("_001.png"))  # whose first image stays where it is
    train.write_text("\n".join(name for name in names if name != torn) + "\n")
    test.write_text(test.read_text() + torn + "\n")
    return world.prepare()


def no_such_root(world: World) -> Words:
    return ["cohort.prepare", "nih", "--root", world.folder / "nowhere", "--out", world.folder / "new"]


def unknown_arm(world: World) -> Words:
    return ["classify.arm", *world.write_config(), "--arm", "duplicat", "--arm-seed", 0]


def seed_beyond_the_experiment(world: World) -> Words:
    return ["classify.arm", *world.write_config(n_seeds=3), "--arm", "duplicate", "--arm-seed", 7]


def arm_without_its_images(world: World) -> Words:
    return ["classify.arm", *world.write_config(), "--arm", "synthetic", "--arm-seed", 0]


def unknown_model(world: World) -> Words:
    return ["classify.train", *world.write_config(train={"model": "convnext_atom"}), "--arm", "real", "--arm-seed", 0]


def training_without_its_start(world: World) -> Words:
    return ["classify.train", *world.write_config(), "--arm", "real", "--arm-seed", 0]


def unknown_scheduler(world: World) -> Words:
    return ["synth.generate", *world.write_config(generate={"scheduler": "dpm"})]


def generating_without_a_pipeline(world: World) -> Words:
    return ["synth.generate", *world.write_config()]


def other_schema_version(world: World) -> Words:
    stamp = json.loads((world.run / "plan" / "_stage.json").read_text())
    (world.run / "plan" / "_stage.json").write_text(json.dumps(stamp | {"schema": 99}))
    return ["synth.generate", *world.write_config()]


def unknown_filter_rule(world: World) -> Words:
    return ["synth.filter", *world.write_config(filter={"rules": {"blanc": None}})]


def autoencoder_size_that_does_not_fit(world: World) -> Words:
    return ["synth.autoencoder", *world.write_config(autoencoder={"image_size": 63})]


def comparing_without_predictions(world: World) -> Words:
    return ["classify.compare", *world.write_config()]


def arm_against_itself(world: World) -> Words:
    return ["classify.compare", *world.write_config(compare={"endpoint": {"arm": "real", "rival": "real"}})]


def report_without_a_comparison(world: World) -> Words:
    return ["classify.report", *world.write_config()]


def endpoint_without_its_arm(world: World) -> Words:
    return ["experiment", *world.write_config(arms=["real", "duplicate"], prepare={"root": "data"})[1:]]


def arm_without_its_section(world: World) -> Words:
    arms = ["duplicate", "synthetic", "oracle"]
    return ["experiment", *world.write_config(arms=arms, prepare={"root": "data"})[1:]]


def section_without_its_arm(world: World) -> Words:
    return ["experiment", *world.write_config(prepare={"root": "data"}, external={"root": "data"})[1:]]


def phase_that_no_step_reaches(world: World) -> Words:
    return ["classify.train", *world.write_config(), "--arm", "duplicate-then-real", "--arm-seed", 0]


def experiment_without_data(world: World) -> Words:
    return ["experiment", *world.write_config(prepare={"root": "nowhere"}, autoencoder={"steps": 1})[1:]]


def experiment_without_a_generator(world: World) -> Words:
    return ["experiment", *world.write_config(prepare={"root": "data"})[1:]]


CASES: dict[Callable[[World], Words], tuple[str, ...]] = {
    wrong_key: ("config.yaml", "plan", "'totl'", "did you mean 'total'"),
    wrong_type: ("plan.total", "many"),
    unknown_section: ("config.yaml", "'plann'", "did you mean 'plan'"),
    not_yaml: ("config.yaml", "cannot be read"),
    a_list: ("config.yaml", "list", "mapping"),
    no_config: ("nowhere.yaml", "cannot be read"),
    unknown_override: ("plan.totl",),
    no_run: ("run",),
    negative_threads: ("threads", "-1"),
    unknown_budget_rule: ("plan.rule", "'flatt'", "'flat'"),
    unknown_label_in_budget: ("plan.per_class", "Hernai", "Hernia"),
    budget_that_cannot_be_met: ("plan.per_class", "50", "8"),
    other_settings: ("other settings", "total", "8", "9"),
    folder_not_empty: ("plan", "not empty"),
    changed_table: ("cohort.parquet", "was changed"),
    broken_stamp: ("_stage.json", "stamp"),
    no_cohort: ("cohort", "run: python -m cohort.prepare"),
    missing_column: (LABEL_FILE, "Patient ID"),
    empty_label_file: (LABEL_FILE,),
    corrupt_png: (LABEL_FILE, "00000001_000.png"),
    missing_image: (LABEL_FILE, "00000001_000.png"),
    label_not_in_the_space: (LABEL_FILE, "Efusion"),
    duplicate_row: (LABEL_FILE, "already in row"),
    patient_in_two_splits: ("patient", "test and train"),
    no_such_root: ("nowhere",),
    unknown_arm: ("'duplicat'", "did you mean 'duplicate'"),
    seed_beyond_the_experiment: ("arm-seed", "7", "0 to 2"),
    arm_without_its_images: ("synthetic", "filter"),
    unknown_model: ("model", "convnext_atom", "convnext_atto"),
    training_without_its_start: ("seed_2000", "init_seed"),
    unknown_scheduler: ("generate.scheduler", "'dpm'", "did you mean"),
    generating_without_a_pipeline: ("generator", "synth/finetune.py"),
    other_schema_version: ("plan", "schema version 99", "wanted 1"),
    unknown_filter_rule: ("rule", "blanc", "blank"),
    autoencoder_size_that_does_not_fit: ("autoencoder.image_size", "63", "multiple of 8"),
    comparing_without_predictions: ("predictions", "classify/predict.py"),
    arm_against_itself: ("compare.endpoint.rival", "real"),
    report_without_a_comparison: ("no complete", "run: "),
    endpoint_without_its_arm: ("compare.endpoint.arm", "synthetic", "real, duplicate"),
    arm_without_its_section: ("arms", "'oracle'", "section oracle"),
    section_without_its_arm: ("external", "no arm needs"),
    phase_that_no_step_reaches: ("train.phase_2_share", "0", "duplicate-then-real"),
    experiment_without_data: ("prepare.root", "nowhere", "make_debug_data.py"),
    experiment_without_a_generator: ("autoencoder", "finetune.pipeline"),
}
