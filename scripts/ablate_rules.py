"""What each rule of the filter is worth: a finished run judged and learnt from anew, with one rule at a time off.

Or with another choice among what passes (``--select``): the band where the critic is uncertain, or the highest entropy.

Images, critics and every arm that the filter does not touch are taken over from the run by hard links; of the run
itself only its cache may grow. Filter, the arms that hold synthetic images, and the comparison are done again for each
setting. One line per setting: images kept, and the endpoint's difference with its interval. The differences share test
patients and seeds, so they are closer to one another than their intervals say; a rule whose line does not move has
shown nothing here.

::

    python scripts/ablate_rules.py configs/demo.yaml --run runs/demo --out runs/ablation [--rules view] [--select band]
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import yaml

from classify.arms.rivals import ARMS
from cohort.errors import TailfillError, run_command
from cohort.stage import PARTIAL, read_stamp
from synth.judging.agreement import Select, label_agreement
from synth.judging.rules import RULES

DONE_AGAIN = ("synthetic", "comparison", "report", "config.yaml", "endpoint.json", "lock", "logs", "looks.parquet")
"""Of the run's folder, what each setting makes for itself."""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="the experiment's YAML")
    parser.add_argument("--run", type=Path, required=True, help="its finished run")
    parser.add_argument("--out", type=Path, required=True, help="folder of a run per setting; safe to run again")
    parser.add_argument("--rules", nargs="*", help="rules to switch off, one at a time; all that are on where left out")
    parser.add_argument("--select", nargs="*", default=[], choices=get_args(Select),
                        help="other choices among what the critic lets pass, by the rule label_agreement")
    return parser.parse_args(arguments)


def link_run(run: Path, target: Path) -> None:
    """Hard links to all that no filter can change, in one step, so that a kill leaves no half run.

    Raises ``TailfillError`` where ``run`` is not finished, or where its filter has decided what was generated.
    """
    if not read_stamp(run / "comparison"):
        raise TailfillError(f"{run}: its comparison is not complete; wanted: a finished run")
    if read_stamp(run / "fill"):
        raise TailfillError(f"{run}: was filled in rounds, and another filter asks for other images; wanted: a run "
                            "without a section fill")
    def left_out(folder: str, names: list[str]) -> list[str]:
        inside = Path(folder)
        if inside == run:
            return [name for name in names if name in DONE_AGAIN]
        return [name for name in names if inside.parent == run and inside.name in ("arms", "train", "predictions")
                and name in ARMS and "filter" in ARMS[name].needs]

    half = target.with_name(f".{target.name}{PARTIAL}")
    shutil.rmtree(half, ignore_errors=True)
    shutil.copytree(run, half, copy_function=os.link, ignore=left_out)
    half.rename(target)


def list_settings(rules: dict[str, Any], off: Sequence[str], selections: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Name of a line of the table to its rules, as in ``filter.rules``."""
    agreement = label_agreement.__name__
    return {"all rules": rules, **{f"without {name}": {k: v for k, v in rules.items() if k != name} for name in off},
            "no rule at all": {},
            **{f"select {name}": rules | {agreement: (rules[agreement] or {}) | {"select": name}}
               for name in selections}}


def judge_anew(config: Path, target: Path, rules: dict[str, Any]) -> None:
    """The experiment with these rules in its own folder; raises ``TailfillError`` with its error."""
    experiment = Path(__file__).parent / "experiment.py"
    command = [sys.executable, str(experiment), str(config), "--run", str(target.resolve())]
    done = subprocess.run([*command, "--filter.rules", json.dumps(rules)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise TailfillError(f"{target}: {(done.stderr.strip() or 'no word').splitlines()[-1]}")


def tell(name: str, folder: Path) -> str:
    """One line of the table: images kept, and the endpoint's group between its arms."""
    counts = (read_stamp(folder / "synthetic") or {})["counts"]
    endpoint = json.loads((folder / "endpoint.json").read_text(encoding="utf-8"))["endpoint"]
    table = pd.read_parquet(folder / "comparison" / "comparison.parquet")
    found = table[(table["metric"] == endpoint["metric"]) & (table["label"] == endpoint["group"])]
    cells = []
    for arm, rival in ((endpoint["arm"], endpoint["rival"]), (endpoint["arm"], "unfiltered")):
        row = found[(found["arm"] == arm) & (found["rival"] == rival)]
        cells.append("" if row.empty else f"{row['delta'].iloc[0]:+.3f} ({row['ci_low'].iloc[0]:+.3f} to "
                                          f"{row['ci_high'].iloc[0]:+.3f})")
    return f"{name:24} {counts['kept']:6,} of {counts['made']:6,}   {cells[0]:28} {cells[1]}\n"


def main() -> None:
    """A run per setting, then the table."""
    options = parse()
    section = (yaml.safe_load(options.config.read_text(encoding="utf-8")).get("filter") or {}).get("rules")
    rules: dict[str, Any] = section or dict.fromkeys(RULES)
    off = options.rules if options.rules is not None else list(rules)
    if unknown := set(off) - set(rules):
        raise TailfillError(f"--rules: '{min(unknown)}' is not on; wanted: some of {', '.join(rules)}")
    if options.select and label_agreement.__name__ not in rules:
        raise TailfillError("--select: the rule label_agreement, which selects, is not on")
    sys.stdout.write(f"{'':24} {'kept':>16}   {'arm - rival':28} arm - unfiltered\n")
    for name, chosen in list_settings(rules, off, options.select).items():
        target = options.out / name.replace(" ", "_")
        if not target.exists():
            link_run(options.run, target)
        judge_anew(options.config, target, chosen)
        sys.stdout.write(tell(name, target))
        sys.stdout.flush()


if __name__ == "__main__":
    run_command(main)
