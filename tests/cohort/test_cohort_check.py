"""What the check finds is what was planted, and in a clean cohort it finds nothing."""

import io
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from cohort.checking import twins
from cohort.checking.reading import detail_of, hash_pixels, read_images
from cohort.pixels import open_grey
from cohort.stage import Stage
from cohort.tables import cohort_schema, plan_schema, write_table
from cohort.vocabulary.labels import CXR_LT_2024_UNSEEN, UNSEEN

LABELS = ["Effusion", "Mass"]
SIZE = 96


def picture(seed: int) -> np.ndarray:
    """A smooth random picture with detail at several scales, uint8 (96, 96); no two seeds resemble one another."""
    rng = np.random.default_rng(seed)
    grey = sum(gaussian_filter(rng.normal(size=(SIZE, SIZE)), width, mode="reflect") * width for width in (1.5, 3, 8))
    return np.uint8(np.clip(128 + 55 * grey / np.std(grey), 0, 255))


def window(image: np.ndarray) -> np.ndarray:
    return np.uint8(np.clip(255 * (image / 255) ** 1.4 * 0.9 + 10, 0, 255))


def crop(image: np.ndarray, *, left: float, top: float, width: float, height: float) -> np.ndarray:
    side = len(image)
    box = (left * side, top * side, (left + width) * side, (top + height) * side)
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC, box=box))


def jpeg(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=60)
    return stream.getvalue()


@dataclass
class World:
    """A cohort of 60 patients with one image each that can be spoilt before it is written."""

    folder: Path
    rows: list[dict] = field(default_factory=list)
    labels: list[str] = field(default_factory=lambda: list(LABELS))
    extra: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        (self.folder / "pixels").mkdir(parents=True)
        splits = ["train"] * 40 + ["val"] * 10 + ["test"] * 10
        for at, split in enumerate(splits):
            self.add(picture(at), split=split, sex="FM"[at % 2], age=30.0 + at % 40, Effusion=at % 2, Mass=at % 3 // 2)

    def add(self, pixels: np.ndarray | bytes, *, split: str, suffix: str = ".png", **columns: object) -> str:
        name = f"i{len(self.rows)}"
        file = self.folder / "pixels" / f"{name}{suffix}"
        if isinstance(pixels, bytes):
            file.write_bytes(pixels)
        else:
            Image.fromarray(pixels).save(file)
        row = {"image_id": name, "root": "own", "path": file.name, "patient_id": f"p{len(self.rows)}",
               "study_id": None, "view": "PA", "age": np.nan, "sex": None, "split": split}
        self.rows.append(row | dict.fromkeys(self.labels, 0) | columns)
        return name

    def write(self, role: str = "cohort") -> Path:
        frame = pd.DataFrame(self.rows).astype(dict.fromkeys(self.labels, "Int8"))
        stage = Stage("prepare", self.folder / role, config={"rows": len(frame)}, inputs={})
        stage.begin()
        write_table(frame, stage.folder / "cohort.parquet", cohort_schema(self.labels))
        stage.finish(outputs=["cohort.parquet"], counts={}, extra={
            "labels": self.labels, "groups": dict.fromkeys(self.labels, "head"), "salt": "s", "patient_ids": "given",
            "roots": {"own": str(self.folder / "pixels")}, "label_space": "own", **self.extra})
        return self.folder


def found(invoke, folder, *argv, code):
    done = invoke("cohort.check", "--run", folder, "--threads", "1", *argv)
    assert done.code == code, done.stderr + done.stdout
    return pd.read_parquet(folder / "check" / "checks.parquet"), done


def test_a_clean_cohort_has_no_finding(tmp_path, invoke):
    table, done = found(invoke, World(tmp_path).write(), code=0)
    assert table.empty
    assert "no leak found" in done.stdout
    assert not (tmp_path / "check" / "readings.partial").exists()
    _, again = found(invoke, tmp_path, code=0)
    assert again.stdout == done.stdout


def test_planted_copies_are_found_and_nothing_else(tmp_path, invoke):
    world, person = World(tmp_path), {"sex": "F", "age": 30.0}
    world.rows[0] |= person
    planted = {
        world.add(picture(0), split="test", **person): ("i0", "exact_duplicate"),
        world.add(picture(1).astype(np.uint16) * 257, split="val"): ("i1", "exact_duplicate"),
        world.add(jpeg(picture(2)), split="test", suffix=".jpg"): ("i2", "near_duplicate"),
        world.add(window(picture(3)), split="test"): ("i3", "near_duplicate"),
        world.add(crop(picture(4), left=0.02, top=0.0, width=0.94, height=0.97), split="test"): (
            "i4", "near_duplicate"),
        world.add(picture(5)[:, ::-1], split="test"): ("i5", "near_duplicate"),
        world.add(picture(6), split="train"): ("i6", "exact_duplicate"),
        world.add(picture(7), split="train", patient_id="p7"): ("i7", "exact_duplicate"),
    }
    table, done = found(invoke, world.write(), code=1)
    pairs = table[table["check"].isin(["exact_duplicate", "near_duplicate"])]
    assert {row.other_image_id: (row.image_id, row.check) for row in pairs.itertuples()} == planted
    severity = dict(zip(pairs["image_id"], pairs["severity"], strict=True))
    assert severity == dict.fromkeys(("i0", "i1", "i2", "i3", "i4", "i5"), "leak") | {"i6": "warning", "i7": "note"}
    ids = table[table["check"] == "patient_under_two_ids"].set_index("patient_id")
    assert set(ids.index) == {f"p{at}" for at in range(7)}  # unknown sex and age tell nobody apart
    assert ids.loc["p0", "severity"] == "leak"
    assert "the pixels of 'i60', train and test" in done.stdout


def test_another_sex_or_age_is_another_patient(tmp_path, invoke):
    world = World(tmp_path)
    person = {"sex": "F", "age": 30.0}
    world.rows[0] |= person
    for change in ({"sex": "M"}, {"age": 77.0}, {"age": 31.0}):
        world.add(picture(0), split="train", **(person | change))
    table, _ = found(invoke, world.write(), code=0)
    assert (table["check"] == "exact_duplicate").sum() == 3
    named = table[table["check"] == "patient_under_two_ids"][["patient_id", "other_patient_id"]]
    assert named.to_numpy().tolist() == [["p0", "p62"]]


def test_what_cannot_be_read_and_what_is_blank(tmp_path, invoke):
    world = World(tmp_path)
    torn = world.add(b"no image", split="train")
    blank = [world.add(np.full((32, 32), 7, np.uint8), split=split) for split in ("train", "test")]
    table, _ = found(invoke, world.write(), code=0)  # two blank images are no copies of one another
    assert table.set_index("image_id")["check"].to_dict() == {
        torn: "unreadable_image", **dict.fromkeys(blank, "blank_image")}
    images = pd.read_parquet(tmp_path / "check" / "images.parquet").set_index("image_id")
    assert images.loc[torn, "error"] == table.loc[0, "words"].partition(": ")[2]
    assert images["sha256"].isna().sum() == 1


def test_patients_labels_and_ids(tmp_path, invoke):
    world = World(tmp_path)
    world.extra["patient_ids"] = "image"
    world.rows[-1]["patient_id"] = "p0"
    for row in world.rows[50:]:
        row["Mass"] = 1
    table, done = found(invoke, world.write(), "--no-images", code=1)
    assert dict(zip(table["check"], table["severity"], strict=True)) == {
        "patient_in_two_splits": "leak", "constant_label": "warning", "no_patient_ids": "warning"}
    assert "'Mass' is present in all 10 images of test" in done.stdout
    assert not (tmp_path / "check" / "images.parquet").exists()


def unseen_world(folder):
    """A cohort of task 3: the unseen labels are known in val and test only, as the release has them."""
    world = World(folder, labels=list(CXR_LT_2024_UNSEEN.labels[:3]) + list(UNSEEN))
    world.extra["label_space"] = CXR_LT_2024_UNSEEN.name
    for at, row in enumerate(world.rows):
        row.pop("Effusion"), row.pop("Mass")
        row |= {label: (at + k) % 2 for k, label in enumerate(world.labels)}
        if row["split"] == "train":
            row |= dict.fromkeys(UNSEEN, pd.NA)
    return world


def test_unseen_classes_may_not_be_known_in_training(tmp_path, invoke):
    clean, _ = found(invoke, unseen_world(tmp_path / "clean").write(), "--no-images", code=0)
    assert set(clean.loc[clean["check"] == "unseen_label", "split"]) == {"val"}  # as the challenge's own files have it
    assert set(clean["severity"]) == {"warning"}
    world = unseen_world(tmp_path / "leaky")
    world.rows[3]["Scoliosis"] = 1
    table, _ = found(invoke, world.write(), "--no-images", code=1)
    leak = table[table["severity"] == "leak"]
    assert leak[["check", "label", "image_id", "split"]].to_numpy().tolist() == [
        ["unseen_label", "Scoliosis", "i3", "train"]]


def test_texts_of_training_may_not_name_unseen_classes(tmp_path, invoke):
    world = unseen_world(tmp_path)
    folder, labels = world.write(), world.labels
    plan = pd.DataFrame([{"sample_id": f"s{at}", "prompt": prompt, "negative_prompt": "", **dict.fromkeys(labels, 0),
                          "view": "PA", "age": 50.0, "sex": "F", "charged_to": labels[0], "label_source_id": None,
                          "init_image_id": None, "strength": None, "seed": at, "batch": 0, "round": 0}
                         for at, prompt in enumerate(("effusion", "severe SCOLIOSIS", "scoliosises"))])
    stage = Stage("plan", folder / "plan", config={}, inputs={})
    stage.begin()
    write_table(plan, stage.folder / "plan.parquet", plan_schema(labels))
    stage.finish(outputs=["plan.parquet"], counts={})
    reports = folder / "reports.csv"
    reports.write_text("image_id,report\ni1,No bulla. Clear.\ni59,Osteopenia.\ni2,Clear lungs.\ni41,Hilum enlarged.\n")
    table, _ = found(invoke, folder, "--no-images", "--reports", reports, code=1)
    texts = table[table["check"] == "unseen_text"]
    assert texts[["label", "image_id", "cohort"]].to_numpy().tolist() == [
        ["Scoliosis", "s1", "plan"], ["Bulla", "i1", "cohort"], ["Hilum", "i41", "cohort"]]  # i59 is a test image
    assert texts["severity"].tolist() == ["leak", "leak", "warning"]


def test_an_external_cohort_is_compared_with_the_test_split(tmp_path, invoke):
    World(tmp_path).write()
    other = World(tmp_path / "other")
    other.rows = [row | {"image_id": f"x{at}", "patient_id": f"x{at}", "split": "train"} for at, row in
                  enumerate(other.rows[50:])]
    (other.write()).joinpath("cohort").rename(tmp_path / "external")
    table, _ = found(invoke, tmp_path, code=1)
    leaks = table[(table["check"] == "exact_duplicate") & (table["severity"] == "leak")]
    assert set(leaks["other_cohort"]) == {"external"}
    assert len(leaks) == 10


def test_bad_input_is_refused(tmp_path, invoke):
    folder = World(tmp_path).write()
    (tmp_path / "reports.csv").write_text("name,report\na,b\n")
    (tmp_path / "strange.csv").write_text("image_id,report\nnobody,b\n")
    for name, content in (("torn", b"plan: [1,\n"), ("list", b"- plan\n"), ("binary", b"\xff\xfe")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_bytes(content)
    for argv, words in (
        (["--run", tmp_path / "nowhere"], "is no folder"), (["--run", tmp_path / "pixels"], "no complete 'cohort'"),
        (["--run", tmp_path / "torn"], "config.yaml: cannot be read"),
        (["--run", tmp_path / "binary"], "config.yaml: cannot be read"),
        (["--run", tmp_path / "list"], "config.yaml: holds list"),
        (["--run", folder, "--least-ncc", "2"], "--least-ncc is 2.0"),
        (["--run", folder, "--threads", "0"], "--threads is 0"),
        (["--run", folder, "--unseen", "Scoliosi"], "--unseen names 'Scoliosi'"),
        (["--run", folder, "--reports", tmp_path / "none.csv"], "no such file"),
        (["--run", folder, "--reports", tmp_path / "reports.csv"], "wanted: image_id or study_id"),
        (["--run", folder, "--reports", tmp_path / "strange.csv"], "no image_id of it is one of"),
    ):
        done = invoke("cohort.check", *argv)
        assert (done.code, words in done.stderr) == (2, True), (argv, done.stderr)
    assert not (tmp_path / "check").exists()


def test_images_that_are_gone_are_no_clean_cohort(tmp_path, invoke):
    folder = World(tmp_path).write()
    (tmp_path / "pixels").rename(tmp_path / "moved")
    done = invoke("cohort.check", "--run", folder)
    assert (done.code, "none of its 60 images can be compared" in done.stderr) == (2, True)
    assert not (tmp_path / "check" / "checks.parquet").exists()
    (tmp_path / "moved").rename(tmp_path / "pixels")
    assert invoke("cohort.check", "--run", folder).code == 0
    (tmp_path / "pixels" / "i3.png").write_bytes((tmp_path / "pixels" / "i59.png").read_bytes())
    done = invoke("cohort.check", "--run", folder)
    assert (done.code, "was made from other settings: images" in done.stderr) == (2, True)


def test_what_was_read_is_read_once(tmp_path):
    paths = []
    for at in range(3):
        paths.append(tmp_path / f"{at}.png")
        Image.fromarray(picture(at)).save(paths[-1])
    first = read_images(paths, threads=1, blocks=tmp_path / "blocks")
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "blocks").iterdir()}
    again = read_images(paths, threads=2, blocks=tmp_path / "blocks")
    np.testing.assert_array_equal(first.details, again.details)
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "blocks").iterdir()} == times
    paths[0].write_bytes(paths[1].read_bytes())
    changed = read_images(paths, threads=1, blocks=tmp_path / "blocks")
    assert changed.sha256[0] == changed.sha256[1] == first.sha256[1]


def test_the_hash_is_of_what_is_seen(tmp_path):
    grey = picture(0)
    for name, pixels in (("a", grey), ("b", grey.astype(np.uint16) * 257), ("c", np.stack([grey] * 3, -1))):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    assert len({hash_pixels(open_grey(tmp_path / f"{name}.png")) for name in "abc"}) == 1
    assert hash_pixels(Image.fromarray(grey.T.copy())) != hash_pixels(Image.fromarray(grey))


@pytest.mark.parametrize("chunk", [7, 512])
def test_pairs_do_not_depend_on_order_or_chunks(monkeypatch, chunk):
    monkeypatch.setattr(twins, "CHUNK", chunk)
    images = [picture(at) for at in range(30)] + [window(picture(2)), picture(3)[:, ::-1]]
    details = np.stack([detail_of(Image.fromarray(np.ascontiguousarray(image))) for image in images])
    order = np.random.default_rng(0).permutation(len(details))
    groups, usable = np.arange(len(details)), np.ones(len(details), bool)
    plain = twins.find_near(details, usable=usable, groups=groups, least=0.9)
    mixed = twins.find_near(details[order], usable=usable, groups=groups, least=0.9)
    pairs = [{frozenset((int(a), int(b))) for a, b in zip(first, second, strict=True)} for first, second in (
        (plain.first, plain.second), (order[mixed.first], order[mixed.second]))]
    assert pairs[0] == pairs[1] == {frozenset((2, 30)), frozenset((3, 31))}
    assert not twins.find_near(details, usable=usable, groups=np.zeros_like(groups), least=0.9).first.size
