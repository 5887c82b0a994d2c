"""What may not leave a run, for which reason; and the hub, which gets nothing that it was not asked to get."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from export_world import Hub, build, export, write_filtered
from huggingface_hub import DatasetCard

from classify.exporting.licences import licence_header
from cohort.preparing.registry import SOURCES
from cohort.stage import hash_file
from cohort.tables import read_table
from synth.exporting.rights import RIGHTS


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Do not write into it."""
    return build(tmp_path_factory.mktemp("export"))


def spoil_stamp(run: Path, folder: str, **changes: object) -> None:
    file = run / folder / "_stage.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def lose_filter(run: Path) -> None:
    (run / "synthetic" / "_stage.json").rename(run / "synthetic" / "_begun.json")


def change_image(run: Path) -> None:
    kept = read_table(run / "synthetic" / "synthetic.parquet").query("keep")["path"].iloc[0]
    (run / "images" / kept).write_bytes(b"another")


def remove_image(run: Path) -> None:
    kept = read_table(run / "synthetic" / "synthetic.parquet").query("keep")["path"].iloc[0]
    (run / "images" / kept).unlink()


def ask_for_fill(run: Path) -> None:
    (run / "config.yaml").write_text(yaml.safe_dump({"fill": {}}))


def spoil_config(run: Path) -> None:
    (run / "config.yaml").write_text("finetune: [1,\n")


def start_elsewhere(run: Path) -> None:
    (run / "config.yaml").write_text(yaml.safe_dump({"finetune": {"pipeline": "somebody/their-pipeline"}}))


def keep_none(run: Path) -> None:
    for file in (run / "synthetic").iterdir():
        file.unlink()
    write_filtered(run, keep_every=10**6)
    table = read_table(run / "synthetic" / "synthetic.parquet").assign(keep=False, reason="blank")
    table.to_parquet(run / "synthetic" / "synthetic.parquet")
    stamp = json.loads((run / "synthetic" / "_stage.json").read_text())
    stamp["outputs"]["synthetic.parquet"] = hash_file(run / "synthetic" / "synthetic.parquet")
    spoil_stamp(run, "synthetic", outputs=stamp["outputs"])


SPOILT: dict[str, tuple[Callable[[Path], None], str]] = {
    "no filter": (lose_filter, "no complete 'filter' stage"),
    "a stale filter": (lambda run: spoil_stamp(run, "images", output_hash="0"),
                       "an input of stage 'filter' has changed"),
    "a configuration that is torn": (spoil_config, "config.yaml: cannot be read"),
    "an unfinished fill": (ask_for_fill, "no complete 'fill' stage"),
    "an image that was changed": (change_image, "was changed after it was drawn"),
    "an image that is gone": (remove_image, "cannot be read"),
    "nothing accepted": (keep_none, "none of 40 images was accepted; nothing can leave"),
    "a base whose licence nobody knows": (start_elsewhere, "started from somebody/their-pipeline"),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_what_is_not_fit_to_leave_is_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    run = build(tmp_path)
    spoil, told = SPOILT[kind]
    spoil(run)
    assert export(run, tmp_path / "out") == 2
    assert told in re.sub(r"\s+", " ", capsys.readouterr().err)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out.exporting"))


@pytest.mark.parametrize("source", sorted(set(RIGHTS) - {"phantom"}))
def test_a_licence_has_to_be_stated_wherever_it_cannot_be_known(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str
) -> None:
    stamp = run / "cohort" / "_stage.json"
    before = stamp.read_text()
    try:
        stamp.write_text(json.dumps(json.loads(before) | {"config": {"source": source}}))
        assert export(run, tmp_path / "out") == 2
        assert "wanted: --licence" in capsys.readouterr().err
        assert export(run, tmp_path / "out", "--licence", "Our own terms 2.0") == 0
    finally:
        stamp.write_text(before)
    card = DatasetCard.load(tmp_path / "out" / "README.md")
    assert (card.data.license, card.data.license_name) == ("other", "our-own-terms-2-0")
    assert ("may fall under the same agreement" in card.text) == RIGHTS[source].agreement
    assert "Our own terms 2.0, as the one who exported it states" in card.text


def test_the_terms_are_those_in_the_sources_own_headers() -> None:
    assert set(RIGHTS) == set(SOURCES) - {"merge"}
    for name, right in RIGHTS.items():
        header = " ".join((SOURCES[name].module.__doc__ or "").split())
        if right.passed_on is not None and name != "phantom":
            assert right.licence.split(",")[0].removesuffix(" 1.5.0") in header
            assert right.citation.split(",")[0].split(" 2")[0] in header


def test_a_licence_of_the_hub_is_named_as_the_hub_does() -> None:
    assert licence_header("CC-BY-NC-4.0") == {"license": "cc-by-nc-4.0"}
    assert licence_header("PhysioNet 1.5.0") == {"license": "other", "license_name": "physionet-1-5-0"}


def test_a_folder_that_no_file_system_takes_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(run, tmp_path / ("n" * 300)) == 2
    assert "cannot be written: File name too long" in capsys.readouterr().err


def test_nothing_is_pushed_unless_asked_for_and_then_by_the_library(run: Path, tmp_path: Path) -> None:
    api = Hub(private=True)
    assert export(run, tmp_path / "images", api=api) == 0
    assert api.calls == []
    assert export(run, tmp_path / "images", "--push", "owner/name", "--private", api=api) == 0
    (_, made), (_, sent) = api.calls
    assert made == {"repo_id": "owner/name", "repo_type": "dataset", "private": True, "exist_ok": True}
    assert (sent["repo_id"], sent["repo_type"], sent["folder_path"]) == ("owner/name", "dataset",
                                                                        str(tmp_path / "images"))


@pytest.mark.parametrize(("words", "api", "told"), [
    (["--push", "owner/name", "--private"], Hub(private=False), "exists and is public"),
    (["--push", "owner/name"], Hub(error=OSError("no route to host")), "no route to host; the export is complete"),
    (["--push", "no name"], Hub(), "wanted: OWNER/NAME"),
    (["--push", "name"], Hub(), "wanted: OWNER/NAME"),
    (["--private"], Hub(), "--private is given without --push"),
    (["--base-licence", "mit"], Hub(), "trained from nothing; wanted: none"),
    (["--licence", "two\nlines"], Hub(), "on one line"),
])
def test_a_push_that_cannot_be_right_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], api: Hub, told: str
) -> None:
    assert export(run, tmp_path / "images", *words, api=api) == 2
    assert told in capsys.readouterr().err
    assert not [name for name, _ in api.calls if name == "upload"]


def test_nothing_is_pushed_without_its_card(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    api = Hub()
    assert export(run, tmp_path / "images") == 0
    for content in ("", "no header", "---\nlicense: mit\n---\n", "---\ntags: []\n---\nwords"):
        (tmp_path / "images" / "README.md").write_text(content)
        assert export(run, tmp_path / "images", "--push", "owner/name", api=api) == 2
        assert "nothing is pushed without one" in capsys.readouterr().err
    assert api.calls == []
