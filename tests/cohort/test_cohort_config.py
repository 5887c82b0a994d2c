"""One YAML, strict: unknown keys name the nearest, wrong types are one line and code 2, paths follow the config."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cohort.config import (
    Options,
    check_keys,
    hub_or_path,
    load_yaml,
    parse,
    path,
    resolve_members,
    resolve_paths,
)
from cohort.errors import TailfillError


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A nested section."""

    kind: str = "flat"
    """Name of the rule."""
    weights: str | None = path(None)
    """A file."""


@dataclass(frozen=True, kw_only=True)
class PlanSection:
    """The ``plan:`` section of these tests."""

    total: int = 100
    """Images to ask for, 1 or more."""
    ratio: float = 0.5
    """Share, 0 to 1."""
    model: str = hub_or_path("org/model")
    """A folder or a hub id."""
    table: str | None = path(None)
    """A file."""
    folders: tuple[str, ...] = path(())
    """Folders."""
    rule: Rule = field(default_factory=Rule)
    """The rule."""


def parsed(*argv: object) -> Options:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["plan", *map(str, argv)])
        return parse("plan", PlanSection, doc="A test.", extra={"arm": (str, "real")})


def config_of(folder: Path, text: str) -> Path:
    file = folder / "c.yaml"
    file.write_text(text)
    return file


def told(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """The single line on stderr of a command line that is refused with code 2."""
    with pytest.raises(SystemExit) as left:
        parsed(*argv)
    assert left.value.code == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert not captured.out
    return captured.err


def test_values_come_from_the_file_and_flags_win(tmp_path: Path) -> None:
    file = config_of(tmp_path, "run: r\nseed: 3\nplan:\n  total: 7\n  rule: {kind: floor}\ntrain: {steps: 9}\n")
    options = parsed("--config", file, "--plan.ratio", "0.25", "--arm", "synthetic")
    assert (options.run.seed, options.section.total, options.section.ratio) == (3, 7, 0.25)
    assert (options.section.rule.kind, options.extra, options.dry_run) == ("floor", {"arm": "synthetic"}, False)
    assert parsed(f"--config={file}", "--plan.total=8", "--seed=4", "--dry-run").section.total == 8
    assert parsed("--config", file, "--dry-run").dry_run


def test_paths_resolve_against_the_configs_folder(tmp_path: Path) -> None:
    (tmp_path / "local").mkdir()
    file = config_of(tmp_path, "run: ../runs/x\nplan: {table: a/b.csv, model: local, rule: {weights: w.pt}}\n")
    options = parsed("--config", file)
    assert options.run.run == str(tmp_path.parent / "runs" / "x")
    assert options.run.cohort_folder == tmp_path.parent / "runs" / "x" / "cohort"
    assert options.section.table == str(tmp_path / "a" / "b.csv")
    assert options.section.model == str(tmp_path / "local")
    assert options.section.rule.weights == str(tmp_path / "w.pt")


def test_each_path_of_a_list_resolves_against_the_configs_folder(tmp_path: Path) -> None:
    file = config_of(tmp_path, "run: r\nplan: {folders: [a/b, ../c, /d]}\n")
    assert parsed("--config", file).section.folders == (
        str(tmp_path / "a" / "b"), str(tmp_path.parent / "c"), "/d")


def test_a_hub_id_stays_a_hub_id(tmp_path: Path) -> None:
    assert parsed("--config", config_of(tmp_path, "run: r\nplan: {model: org/other}\n")).section.model == "org/other"


@pytest.mark.parametrize(("text", "culprit"), [
    ("run: r\nplann: {}\n", "unknown key 'plann'; did you mean 'plan'"),
    ("run: r\nplan: {totl: 3}\n", "plan: unknown key 'totl'; did you mean 'total'"),
    ("run: r\nplan: {rule: {kid: x}}\n", "plan.rule: unknown key 'kid'; did you mean 'kind'"),
    ("run: r\nplan: {zzz: 1}\n", "unknown key 'zzz'; legal: total, ratio, model, table, folders, rule"),
    ("run: r\nplan: {total: many}\n", "total"),
    ("run: r\nplan: {total: 1.5}\n", "total"),
    ("run: r\nplan: {ratio: [1]}\n", "ratio"),
    ("run: r\nseed: x\n", "seed"),
    ("run: r\nthreads: 0\n", "threads is 0; wanted: 1 or more"),
    ("run: r\nplan: [1]\n", "plan: is [1]; wanted: a mapping"),
    ("run: r\nplan: {rule: flat}\n", "plan.rule: is 'flat'; wanted: a mapping"),
    ("plan: {total: 3}\n", "run"),
    ("- a\n", "holds list; wanted: a mapping of sections"),
    ("", "holds NoneType"),
    ("run: [\n", "cannot be read"),
])
def test_mistakes_in_the_file_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, culprit: str
) -> None:
    assert culprit in told(capsys, "--config", config_of(tmp_path, text))


@pytest.mark.parametrize(("argv", "culprit"), [
    (("--config",), "--config: no file given"),
    (("--config", "nowhere.yaml"), "nowhere.yaml: cannot be read"),
    (("--run", "r", "--plan.totl", "3"), "--plan.totl"),
    (("--run", "r", "--plan.total", "x"), "total"),
    (("--run", "r", "stray"), "stray"),
])
def test_mistakes_on_the_command_line_are_one_line(
    capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], culprit: str
) -> None:
    assert culprit in told(capsys, *argv)


def test_help_names_each_key_with_its_text_and_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        parsed("--help")
    assert left.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for word in ("--plan.total", "Images to ask for, 1 or more.", "default: 100", "--plan.rule.kind", "--seed"):
        assert word in shown


def test_the_pieces_raise_for_a_stage_to_report(tmp_path: Path) -> None:
    with pytest.raises(TailfillError, match="unknown key 'x'"):
        check_keys({"x": 1}, PlanSection, where="here")
    with pytest.raises(TailfillError, match="cannot be read"):
        load_yaml(tmp_path / "none.yaml")
    assert resolve_paths({"table": "/abs/t.csv"}, PlanSection, tmp_path)["table"] == "/abs/t.csv"


def test_members_are_checked_and_resolved_like_the_section_that_they_change(tmp_path: Path) -> None:
    content = {"run": "r", "members": {"a": {"table": "t.csv"}, "b": {}}}
    found = resolve_members(content, {"train": PlanSection}, tmp_path, where="config x")
    assert found == {"run": "r", "members": {"a": {"table": str(tmp_path / "t.csv")}, "b": {}}}
    assert resolve_members(content, {"plan": PlanSection}, tmp_path, where="config x") == content
    with pytest.raises(TailfillError, match=r"config x: members\.a: unknown key 'totl'; did you mean 'total'"):
        resolve_members({"members": {"a": {"totl": 3}}}, {"train": PlanSection}, tmp_path, where="config x")
    with pytest.raises(TailfillError, match=r"members\.a: is None; wanted: a mapping"):
        resolve_members({"members": {"a": None}}, {"train": PlanSection}, tmp_path, where="config x")
