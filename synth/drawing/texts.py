"""From the plan's texts to embeddings: each distinct text encoded once, alone, and the encoders then freed.

One table, ``FAMILIES``, says what a class of pipelines wants to be told in place of words: which embeddings, attention
masks and pooled vectors, and where its ``encode_prompt`` returns them. Adding a family is one entry in it. A text never
shares a batch with another one: the last bits of its embedding would depend on its neighbours, hence on the rank.

Not promised: cleaning of captions (PixArt's and Sana's own call drops symbols where two more packages are installed);
the words are encoded as the plan has them.
"""

import inspect
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from cohort.errors import TailfillError

Embedding = dict[str, torch.Tensor]
"""What stands for one text, each with a leading axis of 1, by the names that a pipeline's ``__call__`` takes."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """How one class of pipelines is told what to draw."""

    embeddings: Mapping[str, int]
    """Argument of ``__call__`` (with ``negative_`` before it for negatives) to its place in what ``encode_prompt``
    returns."""
    call: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of ``__call__``."""
    for_all: tuple[str, ...] = ()
    """Arguments of ``encode_prompt`` to which ``__call__`` gives a default of its own, for every text."""
    for_prompts: tuple[str, ...] = ()
    """The same, for prompts and not for negatives."""

    @property
    def masked(self) -> bool:
        """Whether its denoiser attends to the text through a mask."""
        return any("mask" in name for name in self.embeddings)


_STABLE_DIFFUSION = Family(embeddings={"prompt_embeds": 0})
_MASKED = {"prompt_embeds": 0, "prompt_attention_mask": 1}
_AS_ASKED = {"use_resolution_binning": False}
"""Keeps the size that was asked for, instead of the nearest one of a list of sizes from training."""

FAMILIES: dict[str, Family] = {
    "StableDiffusionPipeline": _STABLE_DIFFUSION,
    "StableDiffusionXLPipeline": Family(embeddings={"prompt_embeds": 0, "pooled_prompt_embeds": 2}),
    "PixArtAlphaPipeline": Family(embeddings=_MASKED, call=_AS_ASKED, for_all=("max_sequence_length",)),
    "PixArtSigmaPipeline": Family(embeddings=_MASKED, call=_AS_ASKED, for_all=("max_sequence_length",)),
    "SanaPipeline": Family(embeddings=_MASKED, call=_AS_ASKED, for_all=("max_sequence_length",),
                           for_prompts=("complex_human_instruction",)),
}
"""The class of a pipeline to its family. Stable Diffusion 1 and 2 share a class."""


def family_of(name: str) -> Family:
    """The family of a class of pipelines; raises ``TailfillError`` naming those that can be sampled."""
    if name not in FAMILIES:
        raise TailfillError(f"pipeline: sampling from the embeddings of a {name} is not supported; wanted: one of "
                            f"{', '.join(FAMILIES)}")
    return FAMILIES[name]


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """The embeddings of every distinct text, on the CPU; a text that is both prompt and negative may share one."""

    prompts: dict[str, Embedding]
    negatives: dict[str, Embedding]


def check_texts(folder: Path, texts: Mapping[str, str]) -> None:
    """Raise ``TailfillError`` for a text that a pipeline's text encoders would cut, before any weights are loaded.

    Args:
        folder: the pipeline's.
        texts: each distinct text, to the ``sample_id`` that the message names.
    """
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    family = family_of(str(index.get("_class_name")))
    longest = _defaults(getattr(diffusers, index["_class_name"]), family.for_all).get("max_sequence_length")
    places = [path for path in sorted(folder.glob("tokenizer*")) if path.is_dir()]
    try:
        tokenizers = [transformers.AutoTokenizer.from_pretrained(str(path), local_files_only=True) for path in places]
    except (OSError, ValueError) as error:
        raise TailfillError(f"{folder}: its tokenizer does not load: {error}") from error
    for tokenizer in tokenizers:
        _check_lengths(tokenizer, texts, longest=min(longest or tokenizer.model_max_length,
                                                     tokenizer.model_max_length))


def _check_lengths(tokenizer: Any, texts: Mapping[str, str], *, longest: int) -> None:
    # all families encode lower case: CLIP's tokenizer by itself, the others in the pipeline's preprocessing
    lower = [text.lower().strip() for text in texts]
    for (text, sample_id), ids in zip(texts.items(), tokenizer(lower, truncation=False).input_ids, strict=True):
        if len(ids) > longest:
            raise TailfillError(f"plan, sample_id {sample_id}: its text has {len(ids)} tokens, the text encoder "
                                f"takes {longest}: '{text[:80]}...'")


@torch.no_grad()
def encode_texts(pipeline: Any, *, prompts: Iterable[str], negatives: Iterable[str]) -> Encoded:
    """Embeddings of each distinct text, as the pipeline's own call would make them. Frees the text encoders.

    An empty negative text of a pipeline that was trained with zeros in its place (SDXL) is all zeros, as in its own
    call without a negative prompt. Raises ``TailfillError`` for a pipeline that is not in ``FAMILIES``.
    """
    family = family_of(type(pipeline).__name__)
    for_all = _defaults(type(pipeline), family.for_all)
    for_prompts = for_all | _defaults(type(pipeline), family.for_prompts)
    zeros = bool(getattr(pipeline.config, "force_zeros_for_empty_prompt", False))
    positive = {text: _encode(pipeline, family, text, for_prompts) for text in dict.fromkeys(prompts)}
    shared = positive if for_prompts == for_all else {}
    negative = {}
    for text in dict.fromkeys(negatives):
        embedding = shared.get(text) or _encode(pipeline, family, text, for_all)
        blank = zeros and not text
        negative[text] = {name: torch.zeros_like(value) for name, value in embedding.items()} if blank else embedding
    for name in ("text_encoder", "text_encoder_2"):
        if getattr(pipeline, name, None) is not None:
            setattr(pipeline, name, None)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return Encoded(prompts=positive, negatives=negative)


def stack(embeddings: Sequence[Embedding], device: torch.device) -> Embedding:
    """The embeddings of a batch on ``device``: each name's tensors joined along their first axis."""
    return {name: torch.cat([part[name] for part in embeddings]).to(device) for name in embeddings[0]}


def _encode(pipeline: Any, family: Family, text: str, options: Mapping[str, Any]) -> Embedding:
    encoded = pipeline.encode_prompt(prompt=text, device=pipeline.device, num_images_per_prompt=1,
                                     do_classifier_free_guidance=False, **options)
    return {name: encoded[place].cpu() for name, place in family.embeddings.items()}


def _defaults(kind: Any, names: Iterable[str]) -> dict[str, Any]:
    """The defaults that the ``__call__`` of a class of pipelines gives to some of its arguments."""
    return {name: inspect.signature(kind.__call__).parameters[name].default for name in names}
