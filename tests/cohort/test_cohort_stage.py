"""A stage's folder: complete only with its stamp, refused when it is something else, and never deleted."""

import json
from pathlib import Path

import pytest

from cohort.errors import TailfillError
from cohort.lock import let_go
from cohort.stage import BEGUN, STAMP, Stage, hash_file, hash_folder, read_stamp, require, verify, write_atomically


def stage_of(folder: Path, *, name: str = "plan", inputs: dict[str, Path] | None = None, **config: object) -> Stage:
    return Stage(name, folder, config={"total": 10, "rule": {"kind": "flat"}} | config, inputs=inputs or {})


def finish(stage: Stage, content: bytes = b"table") -> Stage:
    stage.begin()
    write_atomically(stage.folder / "table.bin", content)
    stage.finish(outputs=["table.bin"], counts={"planned": 3}, extra={"salt": "s"})
    return stage


def test_complete_only_after_finish(tmp_path: Path) -> None:
    stage = stage_of(tmp_path / "plan")
    assert not stage.is_complete()
    stage.begin()
    assert not stage.is_complete()
    finish(stage)
    assert stage.is_complete()
    assert sorted(file.name for file in stage.folder.iterdir()) == [STAMP, "table.bin"]
    stamp = require(stage.folder, "plan")
    assert stamp["counts"] == {"planned": 3}
    assert stamp["outputs"]["table.bin"] == hash_file(stage.folder / "table.bin")
    assert {"versions", "git_commit", "device", "seconds", "config", "inputs"} <= set(stamp)


@pytest.mark.parametrize(("change", "told"), [
    ({"total": 20}, "total was 10, now 20"),
    ({"rule": {"kind": "floor"}}, "rule.kind was 'flat', now 'floor'"),
    ({"new": 1}, "new was None, now 1"),
    ({"name": "train"}, "stage 'plan', wanted 'train'"),
])
@pytest.mark.parametrize("complete", [True, False])
def test_other_settings_are_refused_and_named(tmp_path: Path, change: dict, told: str, complete: bool) -> None:
    first = stage_of(tmp_path / "plan")
    finish(first) if complete else first.begin()
    write_atomically(first.folder / "half_of_the_work.bin", b"1")
    before = hash_folder(first.folder)
    with pytest.raises(TailfillError, match=told):
        stage_of(tmp_path / "plan", **change).is_complete()
    assert hash_folder(first.folder) == before


def test_settings_that_made_nothing_yet_are_no_reason_to_refuse_others(tmp_path: Path) -> None:
    stage_of(tmp_path / "plan", total=-1).begin()
    stage = stage_of(tmp_path / "plan")
    assert not stage.is_complete()
    assert finish(stage).is_complete()


def test_what_another_process_made_since_the_check_is_not_taken_over(tmp_path: Path) -> None:
    late, first = stage_of(tmp_path / "plan"), stage_of(tmp_path / "plan", total=20)
    assert not late.is_complete()
    first.begin()
    write_atomically(first.folder / "half_of_the_work.bin", b"1")
    let_go(first.folder)  # what a kill does
    with pytest.raises(TailfillError, match="total was 20, now 10"):
        late.begin()
    first.begin()  # the lock was given back


def test_a_changed_input_is_named(tmp_path: Path) -> None:
    source = tmp_path / "labels.csv"
    source.write_text("a")
    finish(stage_of(tmp_path / "plan", inputs={"labels": source}))
    source.write_text("b")
    with pytest.raises(TailfillError, match="input labels has changed"):
        stage_of(tmp_path / "plan", inputs={"labels": source}).is_complete()


def test_a_changed_input_stage_is_named(tmp_path: Path) -> None:
    finish(stage_of(tmp_path / "cohort", name="prepare"))
    finish(stage_of(tmp_path / "plan", inputs={"cohort": tmp_path / "cohort"}))
    assert stage_of(tmp_path / "plan", inputs={"cohort": tmp_path / "cohort"}).is_complete()
    finish(stage_of(tmp_path / "cohort", name="prepare"), content=b"other")
    with pytest.raises(TailfillError, match="input cohort has changed"):
        stage_of(tmp_path / "plan", inputs={"cohort": tmp_path / "cohort"}).is_complete()


def test_a_foreign_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(TailfillError, match="is not empty and holds no stamp of stage 'plan'"):
        stage_of(tmp_path).is_complete()
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_an_empty_folder_is_welcome(tmp_path: Path) -> None:
    assert not stage_of(tmp_path).is_complete()


def test_a_missing_input_names_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(TailfillError, match=r"no complete 'cohort' stage here; run: python -m cohort.prepare"):
        stage_of(tmp_path / "plan", inputs={"cohort": tmp_path / "cohort"})


def test_changed_output_bytes_are_found(tmp_path: Path) -> None:
    stage = finish(stage_of(tmp_path / "plan"))
    assert verify(stage.folder, "plan", "table.bin").read_bytes() == b"table"
    (stage.folder / "table.bin").write_bytes(b"tabel")
    with pytest.raises(TailfillError, match="was changed after its stamp"):
        verify(stage.folder, "plan", "table.bin")
    (stage.folder / "table.bin").unlink()
    with pytest.raises(TailfillError, match="missing"):
        verify(stage.folder, "plan", "table.bin")
    with pytest.raises(TailfillError, match="names no output 'other'"):
        verify(stage.folder, "plan", "other")


@pytest.mark.parametrize("content", ["", "{", "[]", "3", '"x"', '{"stage": "plan"}'])
@pytest.mark.parametrize("name", [STAMP, BEGUN])
def test_a_broken_stamp_is_named(tmp_path: Path, content: str, name: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(TailfillError, match=name):
        stage_of(tmp_path).is_complete()


def test_another_schema_version_is_refused(tmp_path: Path) -> None:
    stage = finish(stage_of(tmp_path / "plan"))
    stamp = read_stamp(stage.folder) or {}
    (stage.folder / STAMP).write_text(json.dumps(stamp | {"schema": 0, "fingerprint": "x"}))
    for check in (lambda: require(stage.folder, "plan"), stage.is_complete):
        with pytest.raises(TailfillError, match="schema version 0, wanted 1"):
            check()


def test_the_fingerprint_depends_on_config_and_inputs_and_not_on_their_order(tmp_path: Path) -> None:
    first = Stage("plan", tmp_path, config={"a": 1, "b": (1, 2)}, inputs={})
    again = Stage("plan", tmp_path / "elsewhere", config={"b": [1, 2], "a": 1}, inputs={})
    assert first.fingerprint == again.fingerprint
    assert first.fingerprint != Stage("plan", tmp_path, config={"a": 1, "b": [2, 1]}, inputs={}).fingerprint


def test_a_folder_as_output_is_hashed_by_names_and_contents(tmp_path: Path) -> None:
    for name in ("a", "b/c"):
        write_atomically(tmp_path / name, b"1")
    before = hash_folder(tmp_path)
    (tmp_path / "a").rename(tmp_path / "d")
    renamed = hash_folder(tmp_path)
    (tmp_path / "d").write_bytes(b"2")
    assert len({before, renamed, hash_folder(tmp_path)}) == 3


def test_what_a_kill_left_half_written_is_no_content(tmp_path: Path) -> None:
    write_atomically(tmp_path / "images" / "a.png", b"a")
    whole = hash_folder(tmp_path)
    (tmp_path / "images" / ".b.png.123.partial").write_bytes(b"half")
    assert hash_folder(tmp_path) == whole


def test_writing_leaves_the_old_file_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "x"
    write_atomically(file, b"old")

    def full_disk(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Path, "replace", full_disk)
    with pytest.raises(TailfillError, match="x: cannot be written: no space left"):
        write_atomically(file, b"new")
    assert file.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


def test_describe_tells_state_inputs_and_rows(tmp_path: Path) -> None:
    source = tmp_path / "labels.csv"
    source.write_text("a")
    shown = json.loads(stage_of(tmp_path / "plan", inputs={"labels": source}).describe(rows=7))
    assert (shown["state"], shown["rows"], shown["config"]["total"]) == ("to do", 7, 10)
    assert str(source) in shown["inputs"]["labels"]
