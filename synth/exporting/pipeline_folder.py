"""The generator as a folder that ``DiffusionPipeline.from_pretrained`` loads: diffusers' layout and safetensors.

Nothing but the pipeline leaves: no checkpoint, no history, no list of patients, and no path of this machine.
"""

import json
import shutil
from pathlib import Path

from cohort.errors import TailfillError
from cohort.stage import verify, write_atomically
from synth.drawing.pipelines import check_folder
from synth.exporting.facts import Facts

LORA = "lora"


def forget_origin(folder: Path) -> None:
    """Take the path that a pipeline was loaded from out of its files: it is one of this machine."""
    for file in sorted(folder.rglob("*.json")):
        content = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(content, dict) and content.pop("_name_or_path", None) is not None:
            write_atomically(file, (json.dumps(content, indent=2) + "\n").encode())


def find_generator(facts: Facts) -> tuple[Path, Path | None]:
    """The run's pipeline, and its adapters alone where it has them; raises ``TailfillError`` when it has no own one."""
    if facts.generator.training is None:
        raise TailfillError(f"{facts.run}: its images were drawn with {facts.generator.base}, which is not the run's "
                            "own; wanted: a run that has fine-tuned its generator")
    stage = facts.run / "generator"
    pipeline = verify(stage, "finetune", "pipeline")
    check_folder(pipeline)
    has_lora = LORA in facts.generator.training["outputs"]
    return pipeline, verify(stage, "finetune", LORA) if has_lora else None


def write_pipeline_folder(pipeline: Path, lora: Path | None, folder: Path) -> None:
    """Copy a checked pipeline, and its adapters, to ``folder``, which does not exist yet."""
    shutil.copytree(pipeline, folder, ignore=shutil.ignore_patterns(".*", "README.md"))
    if lora is not None:
        shutil.copytree(lora, folder / LORA, ignore=shutil.ignore_patterns(".*"))
    forget_origin(folder)
