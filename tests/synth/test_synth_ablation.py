"""Rules switched off: what is linked from a run is whole or not there, and a run filled in rounds is refused."""

import os
from pathlib import Path

import pytest
from ablate_rules import link_run, list_settings, parse

from cohort.errors import TailfillError
from cohort.stage import Stage


def finished(run: Path, *stages: str) -> Path:
    for name in stages:
        stage = Stage(name, run / name, config={}, inputs={})
        stage.begin()
        stage.finish(outputs=[], counts={})
    return run


def test_a_kill_leaves_no_half_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, target, link = finished(tmp_path / "run", "comparison", "plan", "cohort"), tmp_path / "out" / "all", os.link

    def killed(source: str, place: str) -> None:
        if "plan" in source:
            raise KeyboardInterrupt
        link(source, place)

    monkeypatch.setattr(os, "link", killed)
    with pytest.raises(KeyboardInterrupt):
        link_run(run, target)
    monkeypatch.undo()
    assert not target.exists()
    link_run(run, target)
    assert sorted(path.name for path in target.iterdir() if path.is_dir()) == ["cohort", "plan"]
    assert [path.name for path in target.parent.iterdir()] == ["all"]


def test_a_run_filled_in_rounds_is_refused(tmp_path: Path) -> None:
    run = finished(tmp_path / "run", "comparison", "fill")
    with pytest.raises(TailfillError, match="filled in rounds"):
        link_run(run, tmp_path / "out" / "all")
    assert not (tmp_path / "out").exists()


def test_a_line_of_the_table_has_a_rule_less_or_another_selection() -> None:
    rules = {"view": None, "label_agreement": {"folds": 2}}
    assert list_settings(rules, ["view"], ["band"]) == {
        "all rules": rules, "without view": {"label_agreement": {"folds": 2}}, "no rule at all": {},
        "select band": {"view": None, "label_agreement": {"folds": 2, "select": "band"}}}
    with pytest.raises(SystemExit):
        parse(["c.yaml", "--run", "r", "--out", "o", "--select", "bands"])
