"""Which models are made one, and where their predictions stand: an arm's members, or folds of train and validation."""

from dataclasses import dataclass
from pathlib import Path

from classify.ensembling.folds import FOLD
from cohort.config import Run
from cohort.errors import TailfillError
from cohort.pipeline import FOLDS, fold_seeds, member_names

TABLE = "predictions.parquet"


@dataclass(frozen=True, kw_only=True)
class EnsembleConfig:
    """Out-of-fold predictions beside the arms' own; the members of the arms stand in ``members``."""

    folds: int = 0
    """Folds of the train and validation patients, for predictions of all their images by models that have not learnt
    from them: 2 to 20, or 0 for none. Each model trains ``train.base_steps``, like a critic."""

    def __post_init__(self) -> None:
        if self.folds and self.folds not in FOLDS:
            raise TailfillError(f"ensemble.folds is {self.folds}; wanted: 0 for none, or {FOLDS[0]} to {FOLDS[-1]}")


def model_folder(run: Run, name: str, seed: int) -> Path:
    """Where the predictions of one model stand; ``name`` is ARM or ARM@MEMBER."""
    return run.folder / "predictions" / name / f"seed_{seed}"


def ensemble_folder(run: Run, arm: str, seed: int) -> Path:
    """Where the predictions of an arm's ensemble stand."""
    return run.folder / "ensemble" / arm / f"seed_{seed}"


def models_of(run: Run, arm: str, seed: int) -> list[tuple[str, int]]:
    """Name and seed of each model that is made one; raises ``TailfillError`` where there is nothing to make one."""
    if arm == FOLD:
        if seed % 1000:
            raise TailfillError(f"arm 'fold': arm-seed is {seed}, a single fold; wanted: 1000 n for all of n folds")
        return [(FOLD, one) for one in fold_seeds(seed // 1000)]
    if not run.members:
        raise TailfillError("members: the configuration has none, so there is nothing to average; wanted: two or more "
                            "models, such as {r64: {image_size: 64}, r96: {image_size: 96}}, or arm 'fold'")
    return [(name, seed) for name in member_names(arm, run.members)]


def compared_folders(run: Run) -> dict[tuple[str, int], Path]:
    """Arm and seed to the predictions that are compared: the ensemble's where there are members."""
    folder = ensemble_folder if run.members else model_folder
    return {(arm, seed): folder(run, arm, seed) for arm in run.arms for seed in range(run.n_seeds)}


def single_folders(run: Run, n_folds: int) -> dict[tuple[str, int], Path]:
    """What a comparison reads beside what it compares: members by ARM@MEMBER, each fold, and the folds together."""
    names = [name for arm in run.arms if run.members for name in member_names(arm, run.members)]
    found = {(name, seed): model_folder(run, name, seed) for name in names for seed in range(run.n_seeds)}
    if n_folds:
        found |= {one: model_folder(run, *one) for one in models_of(run, FOLD, 1000 * n_folds)}
        found["folds", 1000 * n_folds] = ensemble_folder(run, FOLD, 1000 * n_folds)
    return found
