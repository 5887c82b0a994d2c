"""Several models' predictions as one: the members of an arm's ensemble, or the folds of a cross-validation.

Where a configuration has ``members``, each arm and seed is trained and predicts once per member, and this command
averages their probabilities; ``compare`` reads the average where it would read a single model. Where ``ensemble.folds``
is n, n runs of arm ``fold`` each leave out one fold of the train and validation patients; this command, for arm
``fold`` and seed 1000 n, puts together what each says of the images that it has left out, and averages what they say
of test. The table is that of ``predict``: logits, raw and ema.

Not promised: that the ensemble beats its best member. The report shows every member's score beside the ensemble's.

    python -m classify.ensemble --config C --arm real --arm-seed 0
    python -m classify.ensemble --config C --arm fold --arm-seed 5000
"""

import logging
import sys

from classify.arm import check_arm
from classify.ensembling.averaging import average_tables
from classify.ensembling.folds import FOLD, join_folds
from classify.ensembling.models import TABLE, EnsembleConfig, ensemble_folder, model_folder, models_of
from classify.train import train_folder
from cohort.config import Run, parse
from cohort.errors import run_command
from cohort.stage import Stage, verify
from cohort.tables import load_cohort, predictions_schema, read_table, write_table

log = logging.getLogger(__name__)


def ensemble_stage(run: Run, *, arm: str, seed: int) -> Stage:
    """The stage of one arm and seed; raises ``TailfillError`` with the command to type when a model is missing."""
    inputs = {"cohort": run.cohort_folder}
    for name, one in models_of(run, arm, seed):
        inputs[f"predict {name} seed {one}"] = model_folder(run, name, one)
    return Stage("ensemble", ensemble_folder(run, arm, seed), config={"arm": arm, "arm_seed": seed}, inputs=inputs)


def ensemble(run: Run, *, arm: str, seed: int) -> None:
    """Write the predictions of an arm's ensemble, unless they are complete."""
    stage = ensemble_stage(run, arm=arm, seed=seed)
    if stage.is_complete():
        log.info("ensemble %s, seed %d: complete, nothing to do", arm, seed)
        return
    cohort, models = load_cohort(run.cohort_folder), models_of(run, arm, seed)
    schema = predictions_schema(cohort.labels)
    tables = [read_table(verify(model_folder(run, name, one), "predict", TABLE), schema)
              for name, one in models]
    joined = (join_folds(tables, cohort, seed=seed, folders=[train_folder(run, *model) for model in models])
              if arm == FOLD else average_tables(tables).assign(arm=arm))
    stage.begin()
    write_table(joined[list(schema.columns)], stage.folder / TABLE, schema)
    stage.finish(outputs=[TABLE], counts={"models": len(models), "rows": len(joined)})
    log.info("ensemble %s, seed %d: %d models", arm, seed, len(models))


def main() -> None:
    """One arm, one seed."""
    options = parse("ensemble", EnsembleConfig, doc=__doc__, extra={"arm": (str, ...), "arm-seed": (int, ...)})
    run, arm, seed = options.run, options.extra["arm"], options.extra["arm-seed"]
    check_arm(run, arm, seed)
    if options.dry_run:
        models = [f"{name} seed {one}" for name, one in models_of(run, arm, seed)]
        sys.stdout.write(ensemble_stage(run, arm=arm, seed=seed).describe(models=models) + "\n")
        return
    ensemble(run, arm=arm, seed=seed)


if __name__ == "__main__":
    run_command(main)
