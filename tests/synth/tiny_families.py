"""Pipelines of random weights, one of each family that can be sampled, made on the fly with their tokenizers."""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tiny_pipeline import PROMPT_TOKENS, WORDS, tiny_pipeline, tiny_tokenizer
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,-:'_*<>\n"
PATCH_WIDTH = 24
"""Channels of a tiny transformer."""


def stable_diffusion() -> DiffusionPipeline:
    """Stable Diffusion 1: predicts noise."""
    return tiny_pipeline()


def stable_diffusion_2() -> DiffusionPipeline:
    """Stable Diffusion 2: predicts velocity."""
    pipeline = tiny_pipeline()
    pipeline.scheduler = DDPMScheduler.from_config(pipeline.scheduler.config, prediction_type="v_prediction")
    return pipeline


def stable_diffusion_xl() -> DiffusionPipeline:
    """SDXL: two text encoders, a pooled text embedding, the image's size."""
    tokenizer = tiny_tokenizer()
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=PROMPT_TOKENS, projection_dim=16, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(16, 32),
        cross_attention_dim=32, attention_head_dim=8, norm_num_groups=8, use_linear_projection=True,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + 16,
    )
    return StableDiffusionXLPipeline(
        vae=_autoencoder(), text_encoder=CLIPTextModel(text), text_encoder_2=CLIPTextModelWithProjection(text),
        tokenizer=tokenizer, tokenizer_2=tokenizer, unet=unet, add_watermarker=False,
        scheduler=DDPMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1),
    )


def pixart_alpha() -> DiffusionPipeline:
    """PixArt-alpha for 1024 px, whose transformer is also told the image's size."""
    return PixArtAlphaPipeline(**_pixart(sample_size=128))


def pixart_sigma() -> DiffusionPipeline:
    """PixArt-sigma."""
    return PixArtSigmaPipeline(**_pixart(sample_size=8))


def sana() -> DiffusionPipeline:
    """Sana: a Gemma that is given instructions before the prompt, linear attention, a flow."""
    vae = AutoencoderDC(
        in_channels=3, latent_channels=4, attention_head_dim=2, encoder_block_types=("ResBlock",) * 2,
        decoder_block_types=("ResBlock",) * 2, encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1), encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()), scaling_factor=0.41407,
    )
    transformer = SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_layers=2, num_attention_heads=3, attention_head_dim=8, sample_size=32,
        num_cross_attention_heads=3, cross_attention_head_dim=8, cross_attention_dim=PATCH_WIDTH, caption_channels=16,
        patch_size=1,
    )
    alphabet = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *LETTERS, *LETTERS[:26].upper()]
    tokenizer = GemmaTokenizer(vocab={token: place for place, token in enumerate(alphabet)}, merges=[])
    text = Gemma2Config(vocab_size=len(alphabet), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
                        num_attention_heads=2, num_key_value_heads=2, head_dim=8)
    return SanaPipeline(
        vae=vae, transformer=transformer, tokenizer=tokenizer, text_encoder=Gemma2Model(text),
        scheduler=DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0),
    )


FAMILIES: dict[str, Callable[[], DiffusionPipeline]] = {
    "sd1": stable_diffusion, "sd2": stable_diffusion_2, "sdxl": stable_diffusion_xl, "pixart-alpha": pixart_alpha,
    "pixart-sigma": pixart_sigma, "sana": sana,
}


def build(name: str) -> Any:
    """A pipeline of a family, the same weights each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipeline = FAMILIES[name]()
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _autoencoder() -> AutoencoderKL:
    return AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, sample_size=32, block_out_channels=(8, 8, 16),
        layers_per_block=1, norm_num_groups=8, down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
    )


def _pixart(*, sample_size: int) -> dict[str, Any]:
    pieces = ["<pad>", "</s>", "<unk>", "▁", *(f"▁{word}" for word in WORDS), *LETTERS]
    tokenizer = T5Tokenizer(vocab=[(piece, -float(place)) for place, piece in enumerate(pieces)], extra_ids=0)
    transformer = PixArtTransformer2DModel(
        sample_size=sample_size, in_channels=4, out_channels=8, num_layers=2, patch_size=2, num_attention_heads=3,
        attention_head_dim=8, cross_attention_dim=PATCH_WIDTH, caption_channels=16,
    )
    text = T5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    return {
        "vae": _autoencoder(), "tokenizer": tokenizer, "text_encoder": T5EncoderModel(text),
        "transformer": transformer, "scheduler": DDPMScheduler(beta_schedule="linear", clip_sample=False),
    }
