"""A rehearsal: thin plentiful findings to the rarity of the tail, run the whole pipeline, compare with what was taken.

For every set of findings, level and seed of the ``rehearsal`` section there is an ordinary run below
``RUN/rehearsal`` (``set_0/level_20/seed_0``): a thinned cohort, a plan, a generator, a filter and the arms, the
withheld images being the arm ``oracle``. It is made by ``scripts/experiment.py``'s own machinery, so whatever is
complete is not done again, and a kill costs one stage. Each run is proved to be free of withheld patients before
anything is read from it. At the end ``RUN/rehearsal/results`` holds the recovered shares, a prediction for the actual
tail, and a page.

``--dry-run`` shows the runs and tells the time that they take, from a measurement of this machine on the spot.

Not promised: that the tail behaves as the thinned findings do; the page says how much findings differ.

::

    python scripts/rehearse.py configs/rehearse_phantom.yaml [--rehearsal.seeds 2] [--dry-run] [--processes 2]
"""

import logging
import sys
from pathlib import Path

import yaml
from experiment import run_all
from experiment_config import Experiment, fix, fix_endpoint, read_experiment
from experiment_processes import run_forked, run_interruptible, sole_owner
from rehearsal_runs import Rehearsal, base_config, child_config, findings_of, open_rehearsal, steps_of
from rehearsal_time import tell_time

from classify.rehearsal.choices import Cell, list_cells
from classify.rehearsal.results import write_results
from cohort.provenance import FILE, check_not_learnt
from cohort.stage import require
from cohort.tables import load_cohort, write_table
from cohort.withholding.cohorts import Thinning, write_thinned
from cohort.withholding.proof import prove_apart
from synth.drawing.pipelines import owning_stage

log = logging.getLogger(__name__)


def prepare_cohorts(rehearsal: Rehearsal) -> None:
    """The experiment's own cohort, and its oracle where it has one, unless they are complete."""
    file = rehearsal.folder / "config.yaml"
    fix(file, yaml.safe_dump(rehearsal.config, sort_keys=False).encode())
    for role in [name for name in ("prepare", "oracle") if name in rehearsal.config]:
        log.info("%s ...", role)
        words = ["cohort.prepare", "--config", str(file), *(["--role", role] if role != "prepare" else [])]
        out = rehearsal.folder / f"{role}.log"
        code = run_forked(words, out)
        if code:
            said = out.read_text(encoding="utf-8").strip().splitlines() or ["no output"]
            sys.stderr.write(f"{said[-1]} (see {out})\n")
            raise SystemExit(code)


def run_base(rehearsal: Rehearsal, cells: list[Cell]) -> None:
    """What all runs start from, learnt without a single patient who has one of the findings."""
    if not rehearsal.needs_base:
        return
    folder = rehearsal.base
    write_thinned(rehearsal.cohort_folder, Thinning(findings=findings_of(cells), level=0, seed=0),
                  thinned=folder / "cohort", withheld=folder / "oracle")
    config = base_config(rehearsal)
    fix(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False).encode())
    log.info("what all runs share, without the patients of %s:", ", ".join(findings_of(cells)))
    run_all(Experiment(config=config, endpoint={}, processes=rehearsal.processes, dry_run=False),
            steps_of(config, rehearsal, base=True))


def run_cell(rehearsal: Rehearsal, cell: Cell) -> Path:
    """One run: thin, experiment, proof; returns its folder."""
    folder = rehearsal.folder / cell.name
    write_thinned(
        rehearsal.cohort_folder, Thinning(findings=cell.findings, level=cell.level, seed=rehearsal.seed_of(cell)),
        thinned=folder / "cohort", withheld=folder / "oracle", truth=rehearsal.truth)
    check_given(rehearsal, folder)
    file = folder / "experiment.yaml"
    fix(file, yaml.safe_dump(child_config(rehearsal, cell), sort_keys=False).encode())
    experiment = read_experiment([str(file), "--processes", str(rehearsal.processes)], doc=__doc__)
    with sole_owner(folder):
        fix_endpoint(experiment)
        run_all(experiment, steps_of(experiment.config, rehearsal))
    return folder


def check_given(rehearsal: Rehearsal, folder: Path) -> None:
    """Raise ``TailfillError`` where weights that the run is to start from have learnt from a patient it withholds.

    What the proof would find after hours, found before them; weights that do not say whom they know are left to it.
    """
    withheld = load_cohort(folder / "oracle").frame["patient_id"]
    for section, key in (("finetune", "pipeline"), ("train", "backbone")):
        given = rehearsal.config[section][key]
        owner = owning_stage(Path(given)) if given else None
        if owner and (owner / FILE).is_file():
            check_not_learnt(owner, withheld, load_cohort(folder / "cohort"),
                             what=f"whom {folder.relative_to(rehearsal.folder)} withholds ({section}.{key})")


def prove(rehearsal: Rehearsal, folder: Path) -> None:
    """No withheld patient may have reached what the run, or what it builds on, has learnt from: ``overlap.parquet``."""
    proof = prove_apart(
        [folder, *([rehearsal.base] if rehearsal.needs_base else [])], thinned=load_cohort(folder / "cohort"),
        withheld=load_cohort(folder / "oracle"), thinned_hash=require(folder / "cohort", "cohort")["output_hash"])
    write_table(proof, folder / "overlap.parquet")
    log.info("%s: %d stages hold no withheld patient; the oracle does", folder.relative_to(rehearsal.folder),
             proof.loc[~proof["is_oracle"], "stage"].nunique())


def main() -> None:
    """Prepare, thin, run, prove, tell."""
    rehearsal = open_rehearsal(read_experiment(sys.argv[1:], doc=__doc__))
    if rehearsal.experiment.dry_run:
        sys.stdout.write(tell_time(rehearsal))
        return
    with sole_owner(rehearsal.folder):
        prepare_cohorts(rehearsal)
        cells = list_cells(load_cohort(rehearsal.cohort_folder), rehearsal.section)
        run_base(rehearsal, cells)
        folders = {}
        for number, cell in enumerate(cells, start=1):
            log.info("run %d of %d: %s at %d positives, seed %d", number, len(cells), ", ".join(cell.findings),
                     cell.level, cell.seed)
            folders[cell] = run_cell(rehearsal, cell)
            prove(rehearsal, folders[cell])
        write_results(rehearsal.run, rehearsal.section, rehearsal.compare, folders,
                      has_truth=rehearsal.truth is not None)
    sys.stdout.write("\n" + (rehearsal.folder / "results" / "summary.txt").read_text(encoding="utf-8"))


if __name__ == "__main__":
    run_interruptible(main)
