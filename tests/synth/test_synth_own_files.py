"""What is the user's own, rules and encoders: known by its content, and found beside the configuration."""

from pathlib import Path

import pytest

from cohort.config import resolve_paths
from cohort.stage import Stage
from synth.filter import FilterConfig
from synth.measuring.radiograph_encoders import RAD_DINO_FILES

RULE = "from synth.judging.sanity import blank\n\ndef too_sharp(evidence):\n    return blank(evidence)\n"


def fingerprint(config: FilterConfig, folder: Path) -> str:
    return Stage("filter", folder / "synthetic", config={}, inputs=config.own_files).fingerprint


def test_a_rule_of_ones_own_is_known_by_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "rules_of_mine.py"
    file.write_text(RULE)
    config = FilterConfig(rules={"blank": None, "rules_of_mine:too_sharp": None})
    assert config.own_files == {"rule rules_of_mine:too_sharp": file}
    before = fingerprint(config, tmp_path)
    assert fingerprint(config, tmp_path) == before
    file.write_text(RULE + "# another threshold\n")
    assert fingerprint(config, tmp_path) != before


@pytest.mark.parametrize("changed", range(len(RAD_DINO_FILES)))
def test_an_encoder_of_ones_own_is_known_by_its_files(changed: int, tmp_path: Path) -> None:
    """Weights, and what tells how images come to them; the ones that come with a package need no file."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for name in RAD_DINO_FILES:
        (folder / name).write_text("one")
    (tmp_path / "xrv.pt").write_text("one")
    config = FilterConfig(encoders=("efficientnet_lite0", "rad-dino", f"rad-dino:{folder}", f"xrv:{tmp_path}/xrv.pt"))
    assert sorted(config.own_files.values()) == sorted([*(folder / name for name in RAD_DINO_FILES),
                                                        tmp_path / "xrv.pt"])
    before = fingerprint(config, tmp_path)
    (folder / RAD_DINO_FILES[changed]).write_text("two")
    assert fingerprint(config, tmp_path) != before


def test_paths_of_encoders_resolve_against_the_configs_folder(tmp_path: Path) -> None:
    """Names stay names, a path that lies there becomes one that holds from anywhere."""
    (tmp_path / "copies" / "mine").mkdir(parents=True)
    given = ["efficientnet_lite0", "rad-dino:mine", "rad-dino:microsoft/rad-dino", f"xrv:{tmp_path / 'x.pt'}"]
    resolved = resolve_paths({"encoders": given}, FilterConfig, tmp_path / "copies")["encoders"]
    assert resolved == [given[0], f"rad-dino:{tmp_path / 'copies' / 'mine'}", *given[2:]]
