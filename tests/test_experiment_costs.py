"""What a dry run says of costs: sums that can be checked by hand, sources, and nothing where nothing is known."""

import copy
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
import yaml
from experiment import as_jobs, list_steps, show_plan
from experiment_config import Experiment, read_experiment
from experiment_costs import GIB, Job, check_disk, cost_rows, hours_of, images_through
from experiment_counts import Counts, add, count_images, times
from experiment_disk import (
    HUB_PARAMETERS,
    classifier_parameters,
    image_px,
    list_items,
    pipeline_parameters,
    shared_items,
)
from safetensors.torch import save_file

from cohort.errors import TailfillError

COUNTS = Counts(train=1000, val=200, test=300, labels=40, planned=500, source="here", planned_source="here")


@pytest.fixture(scope="module")
def founding(repository: Path) -> Experiment:
    """The experiment at full scale, whose images are not here."""
    return read_experiment([str(repository / "configs" / "cxr_lt_2024.yaml"), "--dry-run", "--processes", "8"], doc="")


def job(kind: str, arm: str | None = None) -> Job:
    return Job(kind=kind, stage=kind, folder=Path("nowhere"), arm=arm, done=False)


def with_rates(experiment: Experiment, **rates: float) -> dict[str, Any]:
    config = copy.deepcopy(experiment.config)
    config["expected_seconds"] = {name.replace("__", "/"): seconds for name, seconds in rates.items()}
    return config


def test_the_founding_task_is_costed_to_the_last_stage(
    founding: Experiment, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=10**13))
    steps = list(list_steps(founding.config))
    show_plan(founding, steps, ["prepare.root: it is no folder"])
    shown = capsys.readouterr().out
    for kind in {step.kind for step in steps}:
        assert f"\n{kind} " in shown
    assert "train 258,871, validation 39,293, test 78,946" in shown
    assert "not there yet: prepare.root" in shown
    total = next(line for line in shown.splitlines() if line.startswith("total: "))
    assert "unknown and not in it" in total
    rows = cost_rows(as_jobs(founding, steps), founding.config, count_images(founding.config), processes=8)
    assert f"{sum(row.bytes for row in rows) / GIB:.1f} GiB" in total


def test_hours_are_the_images_that_pass_times_the_rate(founding: Experiment) -> None:
    config = with_rates(founding, train__image=0.01, generate__image=2.0, finetune__image=0.5, predict__image=0.1)
    train = config["train"]
    assert hours_of(job("train", "real@r384"), config, COUNTS, took=[], processes=8)[0] == pytest.approx(
        train["steps"] * train["batch_size"] * 0.01 / 3600)
    assert hours_of(job("train", "real@r224"), config, COUNTS, took=[], processes=1)[0] == pytest.approx(
        train["steps"] * train["batch_size"] * 0.01 * (224 / 384) ** 2 / 3600)
    assert hours_of(job("train", "real@r512"), config, COUNTS, took=[], processes=1)[0] == pytest.approx(
        train["steps"] * 32 * 0.01 * (512 / 384) ** 2 / 3600)  # its batch is 32
    assert hours_of(job("generate"), config, COUNTS, took=[], processes=8)[0] == pytest.approx(500 * 2 / 3600)
    assert hours_of(job("predict", "real@r384"), config, COUNTS, took=[], processes=8)[0] == pytest.approx(50 / 3600)
    finetune = config["finetune"]
    assert finetune["prior_weight"] > 0  # so that as many images again pass
    assert images_through(job("finetune"), config, COUNTS)[0] == 2 * finetune["steps"] * finetune["batch_size"]


def test_what_was_measured_here_wins_over_a_stage_over_a_rate(founding: Experiment) -> None:
    config = with_rates(founding, generate=7200.0, generate__image=2.0)
    assert hours_of(job("generate"), config, COUNTS, took=[3600.0, 1800.0], processes=4)[0] == pytest.approx(3.0)
    assert hours_of(job("generate"), config, COUNTS, took=[], processes=4)[0] == pytest.approx(8.0)
    assert hours_of(job("arm"), with_rates(founding, arm=3600.0), COUNTS, took=[], processes=4)[0] == pytest.approx(1.0)


@pytest.mark.parametrize(("kind", "rates", "counts"), [
    ("filter", {}, COUNTS), ("generate", {"generate__image": 1.0}, Counts()), ("compare", {}, COUNTS),
    ("predict", {"predict__image": 1.0}, Counts(val=3)),
])
def test_what_is_not_known_is_unknown_and_not_guessed(
    founding: Experiment, kind: str, rates: dict[str, float], counts: Counts
) -> None:
    hours, words = hours_of(job(kind), with_rates(founding, **rates), counts, took=[], processes=1)
    assert hours is None
    assert words.startswith("unknown")


def test_unknown_numbers_stay_unknown_in_sums_and_products() -> None:
    assert add(1, None, 2) is times(3, None) is None
    assert (add(1, 2), times(3, 0.5)) == (3, 2)


def test_weights_are_counted_as_torch_counts_them(tmp_path: Path) -> None:
    built = timm.create_model("convnext_atto", in_chans=1, num_classes=40)
    assert classifier_parameters("convnext_atto", 40) == sum(p.numel() for p in built.parameters())
    for part, shape in (("unet", (3, 5)), ("vae", (7,))):
        (tmp_path / part).mkdir()
        save_file({"weight": torch.zeros(shape)}, tmp_path / part / "model.safetensors")
    assert pipeline_parameters(str(tmp_path)) == 22
    assert pipeline_parameters("nobody/knows-this") is None
    assert pipeline_parameters("stabilityai/stable-diffusion-2-1-base") == sum((865_910_724, 340_387_840, 83_653_863))
    assert len(HUB_PARAMETERS) == 1


def test_disk_is_pixels_and_parameters(founding: Experiment) -> None:
    config = founding.config
    images = {item.what: item.bytes for item in shared_items(config, COUNTS)}
    assert images["decoded images at 224 px"] == 2000 * 224**2  # 1,500 real ones and 500 made
    assert images["decoded images at 512 px for generator and filter"] == 2 * 1200 * 512**2
    latents = {item.what: item.bytes for item in list_items("finetune", config["train"], config, COUNTS)}
    assert latents["latents, while it learns"] == 1200 * 2 * 4 * 64 * 64 * 2
    assert latents["pipeline"] == 4 * HUB_PARAMETERS["stabilityai/stable-diffusion-2-1-base"]
    (weights,) = list_items("train", config["train"], config, COUNTS)
    assert weights.bytes == 2 * 4 * classifier_parameters(config["train"]["model"], 40)


def test_a_fold_predicts_what_it_has_left_out(founding: Experiment) -> None:
    config = founding.config | {"ensemble": founding.config["ensemble"] | {"folds": 5}}
    assert images_through(job("predict", "fold"), config, COUNTS)[0] == (1000 + 200) / 5 + 300
    assert images_through(job("predict", "real"), config, COUNTS)[0] == 200 + 300


def test_every_stage_that_writes_images_or_weights_is_in_the_account(repository: Path, tmp_path: Path) -> None:
    words = [str(repository / "configs" / "nih128.yaml"), "--run", str(tmp_path / "run")]
    config = read_experiment(words, doc="").config

    def sizes(kind: str, settings: dict[str, Any]) -> dict[str, int | None]:
        return {item.what: item.bytes for item in list_items(kind, config["train"], settings, COUNTS)}

    assert sizes("autoencoder", config) == {"autoencoder": None}
    images = sizes("generate", config)
    assert images == {"images": int(-(-500 * 128**2 * 0.52 // 1))}
    assert sizes("fill", config) == images | {"images of further rounds": None}
    again = config | {"reconstruct": {"image_size": 64, "oracle": True}, "oracle": None}
    assert sizes("reconstruct", again) == {"images": int(-(-1000 * 64**2 * 0.52 // 1))}
    without = again | {"reconstruct": {"image_size": 64, "oracle": False}, "oracle": {"source": "csv"}}
    assert sizes("reconstruct", without) == sizes("reconstruct", again)


def test_a_disk_that_lacks_the_space_is_refused_and_what_is_done_needs_none(
    founding: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = as_jobs(founding, list(list_steps(founding.config)))
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=GIB))
    with pytest.raises(TailfillError, match=r"has 1\.0 GiB free; wanted: [0-9.]+ GiB"):
        check_disk(jobs, founding.config, processes=8)
    check_disk([Job(**{**vars(one), "done": True}) for one in jobs], founding.config, processes=8)


def test_a_phantom_s_counts_follow_from_its_settings(repository: Path, tmp_path: Path) -> None:
    words = [str(repository / "configs" / "demo.yaml"), "--run", str(tmp_path / "run"), "--dry-run"]
    counts = count_images(read_experiment(words, doc="").config)
    assert (counts.train, counts.val, counts.test, counts.labels) == (4200, 600, 1200, 13)
    assert counts.planned == 600 * 1.5


def test_rates_have_names_of_stages_that_images_pass(repository: Path, tmp_path: Path) -> None:
    demo = [str(repository / "configs" / "demo.yaml"), "--run", str(tmp_path / "run")]
    good = read_experiment([*demo, "--expected_seconds", json.dumps({"train/image": 0.1})], doc="")
    assert good.config["expected_seconds"] == {"train/image": 0.1}
    for name in ("report/image", "trian/image", "train/images"):
        with pytest.raises(TailfillError, match=f"expected_seconds.{name}: is no stage"):
            read_experiment([*demo, "--expected_seconds", json.dumps({name: 0.1})], doc="")


def test_a_section_that_makes_a_cohort_makes_the_one_that_is_named(repository: Path, tmp_path: Path) -> None:
    file = repository / "configs" / "demo.yaml"
    given = read_experiment([str(file), "--run", str(tmp_path), "--cohort", str(tmp_path / "there")], doc="").config
    assert next(list_steps(given)).folder == tmp_path / "there"
    named = tmp_path / "named.yaml"
    named.write_text(yaml.safe_dump(given), encoding="utf-8")
    assert read_experiment([str(named)], doc="").config["prepare"] == given["prepare"]
    named.write_text(yaml.safe_dump({key: value for key, value in given.items() if key != "prepare"}), encoding="utf-8")
    assert "prepare" not in read_experiment([str(named)], doc="").config


def test_a_generator_that_is_given_is_not_fine_tuned(repository: Path, tmp_path: Path) -> None:
    """Its folder tells the size of the images; with neither, nothing says what generates."""
    config = yaml.safe_load((repository / "configs" / "demo.yaml").read_text())
    del config["finetune"]
    config["train"]["backbone"] = str(repository / "models" / "backbone")
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(TailfillError, match=r"no generate\.pipeline without a section finetune"):
        read_experiment([str(tmp_path / "c.yaml")], doc="")
    config["generate"] |= {"pipeline": str(repository / "models" / "generator"), "height": None}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    given = read_experiment([str(tmp_path / "c.yaml")], doc="").config
    assert "finetune" not in {step.stage for step in list_steps(given)}
    assert image_px(given) == 128
    overridden = ["--generate.pipeline", "null"], ["--generate.pipeline", str(repository / "models" / "generator")]
    with pytest.raises(TailfillError, match=r"no generate\.pipeline without a section finetune"):
        read_experiment([str(tmp_path / "c.yaml"), *overridden[0]], doc="")
    del config["generate"]["pipeline"]
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    assert read_experiment([str(tmp_path / "c.yaml"), *overridden[1]], doc="").config == given
    config |= {"reconstruct": {}, "arms": [*config["arms"], "duplicate-reconstructed", "oracle-reconstructed"]}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(TailfillError, match=r"reconstruct\.pipeline is null"):
        read_experiment([str(tmp_path / "c.yaml"), *overridden[1]], doc="")
