"""Loading a text-to-image pipeline of diffusers, by path or hub id, so that sampling can trust what it holds.

A pipeline comes from this run's fine-tuning, from a folder, or from the hub with an optional revision. Its folder is
checked part by part before any weight is read: weights are safetensors (a pickle is refused, since reading one can run
any code), and no code that ships with a checkpoint is ever run. The scheduler is exchanged by name and keeps what the
checkpoint was trained with (betas, prediction type, spacing). Only the denoiser runs in reduced precision: latents,
scheduler, text encoder and decoder stay float32, so that 25 steps do not add up 25 roundings.

Not promised: that a checkpoint's text or images are any good, and classes of pipelines that are not listed in
``texts.FAMILIES``. The safety checkers of Stable Diffusion are left out: they know photographs, not radiographs.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoPipelineForText2Image, DiffusionPipeline
from safetensors import safe_open

from cohort.errors import TailfillError, nearest
from cohort.pipeline import read_stamp
from cohort.stage import hash_bytes, hash_file, require, verify
from synth.drawing.attention import ATTENTION, set_attention
from synth.drawing.execution import PRECISIONS, compile_regions, decode_in_chunks, reduce_precision, remember_text
from synth.drawing.schedulers import SCHEDULERS, set_scheduler
from synth.drawing.texts import family_of
from synth.drawing.weights import LOAD_ERRORS, load_networks

log = logging.getLogger(__name__)

DECODE_BATCH = 4
"""Images decoded at a time; chosen because 16 at once take 1.3 to 1.6 times as long on a CPU (128 px, caches), and 4 of
512 px fill a GPU."""
LORA_MATRICES = (".down.weight", ".up.weight", "lora_down.weight", "lora_up.weight", "lora_A.weight", "lora_B.weight")
"""Endings of the names of LoRA's two matrices, in the formats of diffusers, kohya and peft."""
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


def check_names(*, scheduler: str, precision: str, attention: str) -> None:
    """Raise ``TailfillError`` with the nearest legal name for an unknown scheduler, precision or attention backend."""
    for key, value, legal in (("scheduler", scheduler, [*SCHEDULERS]), ("precision", precision, [*PRECISIONS]),
                              ("attention", attention, [*ATTENTION])):
        if value not in legal:
            raise TailfillError(f"generate.{key} is '{value}'{nearest(value, legal)}")


def resolve_pipeline(source: str, revision: str | None) -> Path:
    """The local folder of a pipeline: ``source`` itself if it is one, else the hub's files (safetensors only), fetched.

    Raises ``TailfillError`` when ``source`` is neither, and whatever ``check_folder`` raises.
    """
    folder = Path(source)
    if not folder.exists():
        if folder.is_absolute() or source.count("/") != 1:
            raise TailfillError(f"pipeline: {source} does not exist; wanted: a pipeline folder or a hub id")
        try:
            folder = Path(DiffusionPipeline.download(source, revision=revision, use_safetensors=True,
                                                     trust_remote_code=False))
        except LOAD_ERRORS as error:
            raise TailfillError(f"pipeline: '{source}' is no folder, and no pipeline with safetensors "
                                f"weights that the hub gives: {error}") from error
    check_folder(folder)
    return folder


def check_folder(folder: Path) -> None:
    """Raise ``TailfillError`` naming the first missing part, or pickled weights, of a pipeline folder."""
    index_file = folder / "model_index.json"
    if not index_file.is_file():
        raise TailfillError(f"{folder}: is no diffusers pipeline (no model_index.json)")
    try:
        index = json.loads(index_file.read_text(encoding="utf-8"))
        parts = {name: entry for name, entry in index.items() if isinstance(entry, list) and not name.startswith("_")}
    except (ValueError, AttributeError) as error:
        raise TailfillError(f"{index_file}: is no readable index of a pipeline: {error}") from error
    for name, entry in parts.items():
        if entry[1] is not None and name not in ("safety_checker", "feature_extractor"):
            _check_part(folder / name, f"{entry[0]}.{entry[1]}")


def _check_part(part: Path, kind: str) -> None:
    if not part.is_dir() or not any(part.iterdir()):
        raise TailfillError(f"{part.parent}: part '{part.name}' ({kind}) is missing")
    names = sorted(path.name for path in part.iterdir())
    if any(name.endswith(".safetensors") for name in names):
        return
    pickled = [name for name in names if name.endswith(PICKLES)]
    if pickled:
        raise TailfillError(f"{part / pickled[0]}: is a pickle, which can run any code when it is read; "
                            "wanted: safetensors")
    if "config.json" in names:  # models keep config.json; schedulers and tokenizers have files of other names
        raise TailfillError(f"{part}: holds no weights ({kind}); wanted: a .safetensors file")


def weights_hash(folder: Path) -> str:
    """sha256 over the names and bytes of all safetensors files of a pipeline or LoRA folder (or of that one file)."""
    files = sorted(folder.rglob("*.safetensors")) if folder.is_dir() else [folder]
    return hash_bytes("".join(f"{file.relative_to(folder)} {hash_file(file)}\n" for file in files).encode())


def owning_stage(path: Path) -> Path | None:
    """The folder of the stage that ``path`` is an output of (itself or one of two parents), None if there is none.

    What merely lies in a stage's folder is not its: nobody knows whose images it has seen.
    """
    for place in (path, *path.parents[:2]):
        stamp = read_stamp(place)
        if stamp is not None and (place == path or path.relative_to(place).parts[0] in stamp.get("outputs", {})):
            return place
    return None


def resolve_lora(source: str) -> Path:
    """The safetensors file of LoRA weights: a file, the only one of a folder, or a hub repository's.

    Raises ``TailfillError`` when there is none, or several.
    """
    place = Path(source)
    if not place.exists():
        if place.is_absolute() or source.count("/") != 1:
            raise TailfillError(f"generate.lora: {source} does not exist; wanted: a file, folder or hub id")
        from huggingface_hub import snapshot_download

        try:
            place = Path(snapshot_download(source, allow_patterns=["*.safetensors"]))
        except LOAD_ERRORS as error:
            raise TailfillError(f"generate.lora: '{source}' cannot be fetched: {error}") from error
    files = sorted(place.glob("*.safetensors")) if place.is_dir() else [place]
    if len(files) != 1 or files[0].suffix != ".safetensors":
        raise TailfillError(f"generate.lora: {place} holds {[file.name for file in files]}; "
                            "wanted: exactly one .safetensors file")
    return files[0]


@dataclass(frozen=True, kw_only=True)
class Weights:
    """What draws the images, found and hashed, and not loaded yet."""

    pipeline: Path
    lora: Path | None
    owners: Mapping[str, Path | None]
    """``generator``, and ``lora`` if there is one, to the stage's folder that it is an output of; None: of no stage."""
    hashes: Mapping[str, str]

    @property
    def inputs(self) -> dict[str, Path]:
        """The folders of stages that the weights come from, as a stage names its inputs."""
        return {name: owner for name, owner in self.owners.items() if owner}


def find_pipeline(run: Path, pipeline: str | None, revision: str | None) -> Path:
    """The folder of a configuration's pipeline; without one, of that which ``run`` has fine-tuned.

    Raises ``TailfillError`` for a run whose fine-tuning is not complete, and whatever ``resolve_pipeline`` raises.
    """
    if pipeline is None:
        require(run / "generator", "generator")
    return resolve_pipeline(pipeline or str(run / "generator" / "pipeline"), revision)


def find_weights(run: Path, *, pipeline: str | None, revision: str | None, lora: str | None) -> Weights:
    """The pipeline and LoRA weights of a configuration; raises what ``find_pipeline`` and ``resolve_lora`` raise."""
    folder, file = find_pipeline(run, pipeline, revision), resolve_lora(lora) if lora else None
    owner = owning_stage(folder)
    return Weights(
        pipeline=folder, lora=file, owners={"generator": owner, **({"lora": owning_stage(file)} if file else {})},
        hashes={"weights": hash_pipeline(folder, owner), **({"lora_weights": weights_hash(file)} if file else {})})


def hash_pipeline(folder: Path, owner: Path | None) -> str:
    """The hash of a pipeline's weights: its stage's, checked, where a stage wrote it, else that of its safetensors."""
    stamp = read_stamp(owner) if owner else None
    if owner is None or stamp is None or folder.name not in stamp["outputs"]:
        return weights_hash(folder)
    verify(owner, stamp["stage"], folder.name)
    return str(stamp["outputs"][folder.name])


def load_pipeline(
    folder: Path, *, lora: Path | None, scheduler: str, precision: str, attention: str, device: torch.device,
    channels_last: bool = False, compiled: bool = False, decode_batch: int = DECODE_BATCH,
) -> tuple[DiffusionPipeline, str]:
    """A pipeline on ``device``, ready to sample, and which attention was taken and why.

    LoRA weights are merged into the layers that they change. Raises ``TailfillError`` when a part does not load, or
    what was asked for does not work here.
    """
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    unchecked: dict[str, Any] = {"safety_checker": None, "requires_safety_checker": False}
    try:
        pipeline: Any = AutoPipelineForText2Image.from_pretrained(
            str(folder), use_safetensors=True, trust_remote_code=False, torch_dtype=torch.float32,
            local_files_only=True, **(unchecked if "safety_checker" in index else {}), **load_networks(folder),
        )
    except LOAD_ERRORS as error:
        raise TailfillError(f"{folder}: does not load as a text-to-image pipeline: {error}") from error
    family = family_of(type(pipeline).__name__)
    if lora is not None:
        _merge_lora(pipeline, lora)
    set_scheduler(pipeline, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    model, dtype = denoiser(pipeline), PRECISIONS[precision]
    pipeline.to(device)
    reduce_precision(model.eval(), dtype)
    taken = set_attention(model, attention, device=device, dtype=dtype, masked=family.masked)
    if not compiled and hasattr(pipeline, "unet"):
        remember_text(model)
    for network in (model, pipeline.vae):
        if channels_last:
            network.to(memory_format=torch.channels_last)
        if compiled:
            compile_regions(network, device)
    decode_in_chunks(pipeline.vae, decode_batch)
    return pipeline, taken


def denoiser(pipeline: Any) -> Any:
    """The U-Net or transformer of a pipeline."""
    model = getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None)
    if model is None:
        raise TailfillError(f"{type(pipeline).__name__}: has neither a unet nor a transformer")
    return model


def _merge_lora(pipeline: Any, lora: Path) -> None:
    """Merge LoRA weights; diffusers only warns of those that have no place, and draws without them."""
    if not hasattr(pipeline, "load_lora_weights"):
        raise TailfillError(f"generate.lora: {type(pipeline).__name__} takes no LoRA weights")
    try:
        with safe_open(lora, framework="pt") as weights:
            names: list[str] = weights.keys()
        wanted = sum(name.endswith(LORA_MATRICES) for name in names)
        pipeline.load_lora_weights(str(lora.parent), weight_name=lora.name, use_safetensors=True)
        networks = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
        found = sum("lora_A." in name or "lora_B." in name for part in networks for name, _ in part.named_parameters())
        if found < wanted:
            raise TailfillError(f"{lora}: {wanted - found} of its {wanted} matrices have no place in this "
                                f"{type(pipeline).__name__}; wanted: LoRA weights that were trained on such a one")
        pipeline.fuse_lora()
        pipeline.unload_lora_weights()
    except LOAD_ERRORS as error:
        raise TailfillError(f"{lora}: does not load as LoRA weights of this pipeline: {error}") from error
