"""Encoders that have learnt from radiographs: torchxrayvision's DenseNet and RAD-DINO, by name or from a local copy.

- ``xrv`` (Cohen 2022): DenseNet-121 trained to tell 18 findings. The network here is torchvision's with one
  input channel, which has the same layers under the same names; pixels are scaled to [-1024, 1024] and resized to
  224 px, features are averaged after a ReLU, as in torchxrayvision 1.5.7 (``features2``). A name is fetched by the
  package torchxrayvision (``pip install tailfill[xrv]``); a file is a state dict.
- ``rad-dino`` (Perez-Garcia 2024): a ViT-B/14 that learnt from radiographs without labels; the class token after the
  last norm, 768 features, at the size, mean and standard deviation that its ``preprocessor_config.json`` tells. Its
  1,370 tokens an image cost hundreds of times the operations of EfficientNet-Lite0. Its licence allows research only.

Neither comes with this project. Not promised: that they were not trained on the cohort at hand (``xrv`` has seen NIH,
CheXpert, MIMIC and PadChest), which makes its training images look more alike than they are.
"""

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import densenet121

from cohort.errors import TailfillError
from cohort.stage import hash_file
from synth.measuring.networks import Look, NetworkEncoder

XRV_WEIGHTS = "densenet121-res224-all"
"""The weights trained on all of torchxrayvision's data sets."""
XRV_LOOK = Look(side=224, mean=(0.5,), std=(1 / 2048,))
"""Pixels 0 to 255 to -1024 to 1024: ``normalize`` of torchxrayvision."""
XRV_SAVE = ('import torch, torchxrayvision as xrv; '
            f'torch.save(xrv.models.DenseNet(weights="{XRV_WEIGHTS}").state_dict(), "xrv.pt")')
"""What makes a file that ``xrv:FILE`` takes."""
RAD_DINO = "microsoft/rad-dino"
RAD_DINO_FILES = ("config.json", "preprocessor_config.json", "model.safetensors")
RESAMPLING = {2: "bilinear", 3: "bicubic"}
"""Pillow's numbers, which preprocessor_config.json uses."""
UNFIT = (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError, pickle.UnpicklingError)


class XrvDenseNet(NetworkEncoder):
    """torchxrayvision's DenseNet-121; 1,024 features.

    Args:
        where: name of weights that torchxrayvision knows, or a file with their state dict.
        device: where it computes.

    Raises ``TailfillError`` when the weights cannot be had, or lack a tensor.
    """

    def __init__(self, where: str = XRV_WEIGHTS, *, device: torch.device | str = "cpu") -> None:
        local = Path(where).is_file()
        file, state = (Path(where), read_state(Path(where))) if local else fetch_xrv(where)
        super().__init__(
            f"xrv:{file.name if local else where}", network=xrv_network(state, where=file), look=XRV_LOOK, width=1024,
            sha256=hash_file(file), device=device,
        )


class RadDino(NetworkEncoder):
    """RAD-DINO; the class token, 768 features in the published weights.

    Args:
        where: id on the model hub, or a folder with ``RAD_DINO_FILES``.
        device: where it computes.

    Raises ``TailfillError`` when the files cannot be had, lack a tensor, or ask for what is not done here.
    """

    def __init__(self, where: str = RAD_DINO, *, device: torch.device | str = "cpu") -> None:
        local = Path(where).is_dir()
        folder = Path(where) if local else fetch_from_hub(where)
        lacking = [name for name in RAD_DINO_FILES if not (folder / name).is_file()]
        if lacking:
            raise TailfillError(f"filter.encoders: {folder} lacks {', '.join(lacking)}; wanted: a copy of {RAD_DINO}")
        network = ClassToken(load_dinov2(folder))
        name = "rad-dino" if where == RAD_DINO else f"rad-dino:{folder.name if local else where}"
        super().__init__(name, network=network, look=read_look(folder / RAD_DINO_FILES[1]), width=network.width,
                         sha256=hash_file(folder / RAD_DINO_FILES[2]), device=device)


class ClassToken(nn.Module):
    """A Dinov2Model's class token after its last norm: float (n, 3, s, s) to (n, width)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.width = int(model.config.hidden_size)

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        token: Tensor = self.model(pixel_values=images).pooler_output
        return token


def xrv_network(state: dict[str, Tensor], *, where: Path) -> nn.Module:
    """torchvision's DenseNet-121 for one channel with torchxrayvision's tensors, without its head.

    Raises ``TailfillError`` naming the first tensor that is missing or of another shape. The head and the operating
    points, which the state dict also holds, are left out.
    """
    network = densenet121(weights=None)
    network.features.conv0 = nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
    network.classifier = nn.Identity()
    wanted = {key: value for key, value in network.state_dict().items() if not key.endswith("num_batches_tracked")}
    unfit = [key for key, value in wanted.items() if key not in state or state[key].shape != value.shape]
    if unfit:
        raise TailfillError(f"filter.encoders: {where} lacks {len(unfit)} of {len(wanted)} tensors or has them in "
                            f"another shape, first '{unfit[0]}'; wanted: the DenseNet-121 of torchxrayvision")
    network.load_state_dict({key: state[key] for key in wanted}, strict=False)
    return network


def read_state(file: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file or of a saved state dict; no code of a pickle is ever run.

    Raises ``TailfillError`` for anything else, as the pickled modules that torchxrayvision's releases are.
    """
    try:
        state = load_file(file) if file.suffix == ".safetensors" else torch.load(
            file, map_location="cpu", weights_only=True)
    except UNFIT as error:
        raise TailfillError(f"filter.encoders: {file} holds no state dict: {_short(error)}; wanted: what "
                            f"python -c '{XRV_SAVE}' writes") from error
    if not isinstance(state, dict):
        raise TailfillError(f"filter.encoders: {file} holds a {type(state).__name__}; wanted: a state dict")
    return state


def fetch_xrv(name: str) -> tuple[Path, dict[str, Tensor]]:
    """Weights by name, fetched once by torchxrayvision into its own folder; their file and their tensors.

    Raises ``TailfillError`` when the package is missing, does not know the name or cannot reach its server.
    """
    try:
        from torchxrayvision.models import DenseNet
    except ImportError as error:
        raise TailfillError(f"filter.encoders: 'xrv:{name}' is no file, and the package torchxrayvision, which fetches "
                            "weights by name, is not installed; wanted: pip install torchxrayvision, or xrv:FILE with "
                            f"what python -c '{XRV_SAVE}' writes where there is a network") from error
    try:
        model = DenseNet(weights=name)
    except Exception as error:  # it raises the bare class
        raise TailfillError(f"filter.encoders: torchxrayvision cannot load '{name}': {_short(error)}; wanted: a name "
                            f"that it knows, such as {XRV_WEIGHTS}, and a network, or xrv:FILE") from error
    return Path(model.weights_filename_local), model.state_dict()


def fetch_from_hub(name: str) -> Path:
    """A folder with the three files of a model, from the hub or its cache; raises ``TailfillError`` if it fails."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(RAD_DINO_FILES)))
    except UNFIT as error:
        raise TailfillError(f"filter.encoders: 'rad-dino:{name}' is no folder and cannot be fetched from the model "
                            f"hub: {_short(error)}; wanted: a network, or rad-dino:FOLDER with "
                            f"{', '.join(RAD_DINO_FILES)}") from error


def load_dinov2(folder: Path) -> nn.Module:
    """transformers' Dinov2Model; raises ``TailfillError`` if it does not load or a tensor would be drawn at random."""
    from transformers import Dinov2Model
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    try:
        loaded: Any = Dinov2Model.from_pretrained(str(folder), use_safetensors=True, local_files_only=True,
                                                  output_loading_info=True, ignore_mismatched_sizes=True)
    except UNFIT as error:
        raise TailfillError(f"filter.encoders: {folder} does not load as a Dinov2Model: {_short(error)}") from error
    model, found = loaded
    lacking = sorted([*found["missing_keys"], *(entry[0] for entry in found["mismatched_keys"])])
    if lacking:
        raise TailfillError(f"filter.encoders: {folder} lacks {len(lacking)} of {len(model.state_dict())} tensors or "
                            f"has them in another shape, first '{lacking[0]}'; wanted: a copy of {RAD_DINO}")
    network: nn.Module = model.float()
    return network


def read_look(file: Path) -> Look:
    """The size, mean and standard deviation in a ``preprocessor_config.json``.

    Raises ``TailfillError`` for one that is unreadable, or that crops a square image or resamples in another way.
    """
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        size, crop = told["size"].get("shortest_edge") or told["size"]["height"], told["crop_size"]["height"]
        look = Look(side=int(crop), mode=RESAMPLING[told["resample"]], mean=tuple(map(float, told["image_mean"])),
                    std=tuple(map(float, told["image_std"])))
    except (*UNFIT, AttributeError) as error:
        raise TailfillError(f"filter.encoders: {file} is not understood: {type(error).__name__} {_short(error)}; "
                            "wanted: size, crop_size, image_mean, image_std and resample 2 or 3") from error
    if size != crop or told["crop_size"]["width"] != crop:
        raise TailfillError(f"filter.encoders: {file} resizes to {size} and crops to {told['crop_size']}; wanted: a "
                            "square of one size, for a crop would hide the rim of a radiograph")
    return look


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
