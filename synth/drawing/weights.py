"""The networks of a pipeline, loaded one by one so that none is quietly completed with random numbers.

Where a checkpoint lacks a tensor, diffusers and transformers draw it at random and warn; the images are then noise that
took days to make. Both can say what they did not find, after their own renaming of old keys and their own list of what
may be missing (tied tensors, buffers), so nothing of that is repeated here. A tensor too many is harmless: old text
encoders have one. Not promised: that LoRA weights name every layer that they were trained on.
"""

import importlib
import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError

from cohort.errors import TailfillError

LIBRARIES = ("diffusers", "transformers")
LOAD_ERRORS = (OSError, ValueError, RuntimeError, ImportError, AttributeError, KeyError, TypeError, SafetensorError)


def load_networks(folder: Path) -> dict[str, torch.nn.Module]:
    """Every network that ``model_index.json`` names, in float32 on the CPU, by its name in the pipeline.

    Raises ``TailfillError`` when one does not load, or when its weights lack a tensor or hold one of another shape.
    """
    transformers.utils.logging.disable_progress_bar()
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    parts = {name: entry for name, entry in index.items() if isinstance(entry, list) and entry[0] in LIBRARIES}
    networks = {}
    for name, (library, kind) in parts.items():
        network_class = getattr(importlib.import_module(library), kind, None)
        if isinstance(network_class, type) and issubclass(network_class, torch.nn.Module):
            networks[name] = load_network(network_class, folder / name)
    return networks


def load_network(kind: Any, folder: Path) -> torch.nn.Module:
    """One network of class ``kind``; raises ``TailfillError`` as ``load_networks`` does."""
    try:
        network, found = kind.from_pretrained(str(folder), use_safetensors=True, local_files_only=True,
                                              output_loading_info=True)
    except LOAD_ERRORS as error:
        raise TailfillError(f"{folder.parent}: does not load as a text-to-image pipeline: {folder.name}: "
                            f"{' '.join(str(error).split())[:300]}") from error
    lacking = sorted([*found["missing_keys"], *(entry[0] for entry in found["mismatched_keys"])])
    if lacking:
        raise TailfillError(f"{folder}: its weights lack {len(lacking)} of {len(network.state_dict())} tensors or have "
                            f"them in another shape, first '{lacking[0]}'; they would be drawn at random")
    loaded: torch.nn.Module = network.float().eval()
    return loaded
