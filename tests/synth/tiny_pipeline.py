"""A Stable Diffusion pipeline of random weights, small enough to sample with in a test, in diffusers' standard layout.

Everything is made on the fly (the tokenizer's vocabulary too), so tests need no network and no file of weights.
250,000 parameters of U-Net, 32 px, latents of 4 channels at 8x8.
"""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

WORDS = ("chest", "radiograph", "frontal", "view", "with", "and", "no", "hernia", "effusion", "male", "female", "old")
LATENT_CHANNELS, LATENT_SIZE, IMAGE_SIZE = 4, 8, 32
PROMPT_TOKENS = 77


def byte_alphabet() -> list[str]:
    """The 256 printable stand-ins for bytes of byte-level BPE."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return [chr(byte) for byte in plain] + [chr(256 + i) for i in range(len(others))]


def tiny_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer that knows bytes and a dozen words."""
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        head = pieces[0]
        for piece in pieces[1:]:
            if (head, piece) not in merges:
                merges.append((head, piece))
            head += piece
    letters = byte_alphabet()
    tokens = letters + [f"{letter}</w>" for letter in letters] + [a + b for a, b in merges]
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=PROMPT_TOKENS)


def tiny_pipeline(seed: int = 0) -> StableDiffusionPipeline:
    """A complete pipeline with random weights, the same for the same seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokenizer = tiny_tokenizer()
        text = CLIPTextModel(CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=2, max_position_embeddings=PROMPT_TOKENS, projection_dim=16,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ))
        unet = UNet2DConditionModel(
            sample_size=LATENT_SIZE, in_channels=LATENT_CHANNELS, out_channels=LATENT_CHANNELS, layers_per_block=1,
            block_out_channels=(16, 32), cross_attention_dim=16, attention_head_dim=8, norm_num_groups=8,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        )
        vae = AutoencoderKL(
            in_channels=3, out_channels=3, latent_channels=LATENT_CHANNELS, sample_size=IMAGE_SIZE,
            block_out_channels=(8, 8, 16), layers_per_block=1, norm_num_groups=8,
            down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        )
    pipeline = StableDiffusionPipeline(
        vae=vae.eval(), text_encoder=text.eval(), tokenizer=tokenizer, unet=unet.eval(),
        scheduler=DDPMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def save_tiny_pipeline(folder: Path, seed: int = 0) -> Path:
    """Save a tiny pipeline in the standard layout and return its folder."""
    tiny_pipeline(seed).save_pretrained(folder, safe_serialization=True)
    return folder


def save_tiny_lora(folder: Path) -> Path:
    """Save LoRA weights that change what the tiny pipeline draws, and return their folder."""
    pipeline = tiny_pipeline()
    pipeline.unet.add_adapter(LoraConfig(r=2, lora_alpha=2, init_lora_weights="gaussian",
                                         target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    with torch.no_grad():
        for name, parameter in pipeline.unet.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(pipeline.unet))
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=layers, safe_serialization=True)
    return folder
