"""A text-to-image pipeline built from nothing, in diffusers' standard layout: Stable Diffusion in miniature.

A CLIP tokenizer whose vocabulary is learnt from the captions, a small CLIP text encoder, a ``UNet2DConditionModel`` and
the autoencoder of the ``autoencoder`` stage. It loads with ``StableDiffusionPipeline.from_pretrained`` like any other.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from cohort.config import require_values

MAX_TOKENS = 77
"""CLIP's context length (Radford et al. 2021)."""


@dataclass(frozen=True, kw_only=True)
class FreshConfig:
    """Sizes of a generator that is trained from nothing."""

    block_out_channels: tuple[int, ...] = (64, 128, 192)
    """Channels of the U-Net's levels, multiples of 32; each level after the first halves the latent's resolution.
    Cross-attention at every level but the first."""
    layers_per_block: int = 1
    """Residual blocks per level."""
    text_width: int = 128
    """Width of the text encoder, a multiple of 32."""
    text_layers: int = 2
    """Layers of the text encoder."""
    vocabulary: int = 800
    """Tokens of the byte-pair vocabulary: 514 for bytes and ends, the rest learnt from the captions; 600 or more."""

    def __post_init__(self) -> None:
        """Raise ``TailfillError`` for the first value out of range."""
        levels, wide = list(self.block_out_channels), self.text_width
        require_values(
            "finetune.fresh", vocabulary=(self.vocabulary, self.vocabulary >= 600, "600 or more"),
            block_out_channels=(levels, len(levels) > 0 and all(n > 0 and n % 32 == 0 for n in levels),
                                "one or more multiples of 32"),
            text_width=(wide, wide > 0 and wide % 32 == 0, "a multiple of 32"),
            text_layers=(self.text_layers, self.text_layers >= 1, "1 or more"),
            layers_per_block=(self.layers_per_block, self.layers_per_block >= 1, "1 or more"),
        )


def train_tokenizer(captions: Iterable[str], *, vocabulary: int) -> CLIPTokenizer:
    """A CLIP tokenizer with a byte-pair vocabulary of the captions' words; any other text still has its bytes."""
    specials = ["<|startoftext|>", "<|endoftext|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    blank = CLIPTokenizer().backend_tokenizer
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=specials[1]))
    learner.normalizer, learner.pre_tokenizer = blank.normalizer, blank.pre_tokenizer
    learner.decoder = decoders.ByteLevel()
    # important: a byte at the end of a word is another token. All of them are given beforehand: an unseen word would
    # else have no ids, and equal counts would be settled in the order of a hash map, anew in each process.
    endings = [f"{byte}</w>" for byte in alphabet]
    trainer = trainers.BpeTrainer(vocab_size=vocabulary - len(specials), initial_alphabet=alphabet,
                                  special_tokens=endings, end_of_word_suffix="</w>", show_progress=False)
    learner.train_from_iterator(captions, trainer)
    merges: Any = [tuple(merge) for merge in json.loads(learner.to_str())["model"]["merges"]]
    tokens = specials + alphabet + endings + ["".join(merge) for merge in merges]
    return CLIPTokenizer(vocab={token: index for index, token in enumerate(dict.fromkeys(tokens))}, merges=merges,
                         model_max_length=MAX_TOKENS)


def build_pipeline(config: FreshConfig, vae: AutoencoderKL, captions: Iterable[str]) -> StableDiffusionPipeline:
    """An untrained pipeline around a trained autoencoder; weights come from torch's global generator.

    v-prediction (Salimans and Ho 2022) with Stable Diffusion's noise schedule (Rombach et al. 2022).
    """
    tokenizer = train_tokenizer(captions, vocabulary=config.vocabulary)
    text_encoder = CLIPTextModel(CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=config.text_width, intermediate_size=4 * config.text_width,
        projection_dim=config.text_width, num_hidden_layers=config.text_layers,
        num_attention_heads=config.text_width // 32, max_position_embeddings=MAX_TOKENS,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    ))
    deeper = len(config.block_out_channels) - 1
    unet = UNet2DConditionModel(
        sample_size=vae.config.sample_size // 2 ** (len(vae.config.block_out_channels) - 1),
        in_channels=vae.config.latent_channels, out_channels=vae.config.latent_channels, norm_num_groups=16,
        block_out_channels=config.block_out_channels, layers_per_block=config.layers_per_block,
        cross_attention_dim=config.text_width, attention_head_dim=32,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * deeper,
        up_block_types=("CrossAttnUpBlock2D",) * deeper + ("UpBlock2D",),
    )
    scheduler = DPMSolverMultistepScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction",
        algorithm_type="dpmsolver++", solver_order=2, steps_offset=1,
    )
    return StableDiffusionPipeline(
        vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )
