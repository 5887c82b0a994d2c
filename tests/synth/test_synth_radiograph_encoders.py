"""Encoders that have learnt from radiographs: networks of the same architecture with random weights, saved and loaded.

Their published weights cannot be had here, so what they say of a radiograph is not tested; what is fed to them, which
tensors go where, and what is refused, is.
"""

import json
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.models import DenseNet
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

from cohort.errors import TailfillError
from cohort.stage import hash_file
from synth.measuring import encoders, radiograph_encoders
from synth.measuring.encoders import check_encoder, make_encoder, make_encoders
from synth.measuring.radiograph_encoders import RAD_DINO, XRV_LOOK, read_look

MEAN, STD = 0.5307, 0.2583
SIDE = 28


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    torch.set_num_threads(1)
    return np.random.default_rng(0).integers(0, 256, (3, 40, 40), dtype=np.uint8)


def xrv_like() -> DenseNet:
    """torchxrayvision's DenseNet-121: torchvision's for one channel and 18 findings, with its operating points."""
    torch.manual_seed(0)
    model = DenseNet(num_classes=18)
    model.features.conv0 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    model.register_buffer("op_threshs", torch.rand(18))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model.eval()


@pytest.fixture(scope="module")
def xrv(tmp_path_factory: pytest.TempPathFactory) -> tuple[DenseNet, Path]:
    model, file = xrv_like(), tmp_path_factory.mktemp("xrv") / "weights.pt"
    torch.save(model.state_dict(), file)
    return model, file


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dinov2Model, Path]:
    """RAD-DINO's architecture in small: two layers, patches of 14, 28 pixels."""
    torch.manual_seed(0)
    model = Dinov2Model(Dinov2Config(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=SIDE,
                                     patch_size=14)).eval()
    folder = tmp_path_factory.mktemp("dino") / "small"
    model.save_pretrained(folder)
    processor().save_pretrained(folder)
    return model, folder


def processor() -> BitImageProcessor:
    """As the published one, but for the size."""
    return BitImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}, resample=3,
                             image_mean=[MEAN] * 3, image_std=[STD] * 3)


@torch.inference_mode()
def test_xrv_is_the_network_before_its_head(xrv: tuple[DenseNet, Path], images: np.ndarray) -> None:
    """The same layers in torchxrayvision's own words, on pixels scaled by its ``normalize``."""
    model, file = xrv
    encoder = make_encoder(f"xrv:{file}")
    found = encoder.read(images)
    scaled = torch.from_numpy((2 * (images.astype(np.float32) / 255) - 1.0) * 1024)[:, None]
    resized = nn.functional.interpolate(scaled, size=(224, 224), mode="bilinear", antialias=True)
    expected = nn.functional.adaptive_avg_pool2d(model.features(resized).relu(), 1).flatten(1).numpy()
    assert found.shape == (3, encoder.width) == (3, 1024)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3 * expected.std())
    assert (encoder.name, encoder.sha256) == ("xrv:weights.pt", hash_file(file))
    assert encoder.sha256 in encoder.key


def test_xrv_input_spans_its_range() -> None:
    ends = XRV_LOOK(torch.tensor([[[0, 0], [0, 0]], [[255, 255], [255, 255]]], dtype=torch.uint8))
    assert ends.shape == (2, 1, 224, 224)
    assert (float(ends.min()), float(ends.max())) == pytest.approx((-1024, 1024))


def test_xrv_from_safetensors_is_the_same(xrv: tuple[DenseNet, Path], images: np.ndarray, tmp_path: Path) -> None:
    model, file = xrv
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    one, other = make_encoder(f"xrv:{file}"), make_encoder(f"xrv:{tmp_path / 'weights.safetensors'}")
    np.testing.assert_array_equal(one.read(images[:1]), other.read(images[:1]))
    assert one.key != other.key


def test_other_xrv_files_are_refused(xrv: tuple[DenseNet, Path], tmp_path: Path) -> None:
    state, other = xrv[0].state_dict(), tmp_path / "other.pt"
    torch.save({key: value for key, value in state.items() if "denselayer3.conv2" not in key}, other)
    with pytest.raises(TailfillError, match=r"lacks 4 of .* first 'features.denseblock1.denselayer3.conv2.weight'"):
        make_encoder(f"xrv:{other}")
    torch.save(state | {"features.conv0.weight": torch.zeros(64, 3, 7, 7)}, other)
    with pytest.raises(TailfillError, match=r"lacks 1 of .* another shape, first 'features.conv0.weight'"):
        make_encoder(f"xrv:{other}")
    torch.save(nn.Linear(2, 2), other)  # a pickled module, as torchxrayvision's releases
    with pytest.raises(TailfillError, match=r"holds no state dict: .*state_dict\(\), \"xrv.pt\""):
        make_encoder(f"xrv:{other}")
    other.write_bytes(b"half a downl")
    with pytest.raises(TailfillError, match="holds no state dict"):
        make_encoder(f"xrv:{other}")


def test_xrv_by_name(xrv: tuple[DenseNet, Path], images: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its package, with it, and where it knows no such name."""
    model, file = xrv
    monkeypatch.setitem(sys.modules, "torchxrayvision.models", None)
    with pytest.raises(TailfillError, match="pip install torchxrayvision, or xrv:FILE"):
        make_encoder("xrv")

    def build(weights: str) -> DenseNet:
        if weights != "densenet121-res224-all":
            raise Exception(f"Weights not found. Valid options: {weights}")  # as the package does
        model.weights_filename_local = str(file)
        return model

    monkeypatch.setitem(sys.modules, "torchxrayvision", types.ModuleType("torchxrayvision"))
    monkeypatch.setitem(sys.modules, "torchxrayvision.models", types.SimpleNamespace(DenseNet=build))
    encoder = make_encoder("xrv")
    assert (encoder.name, encoder.sha256) == ("xrv:densenet121-res224-all", hash_file(file))
    np.testing.assert_array_equal(encoder.read(images[:1]), make_encoder(f"xrv:{file}").read(images[:1]))
    with pytest.raises(TailfillError, match="cannot load 'nih': Weights not found"):
        make_encoder("xrv:nih")


@torch.inference_mode()
def test_rad_dino_is_the_class_token(dino: tuple[Dinov2Model, Path], images: np.ndarray) -> None:
    """transformers' own processor and model, but for the processor's rounding to whole grey levels."""
    model, folder = dino
    encoder = make_encoder(f"rad-dino:{folder}")
    rgb = torch.from_numpy(images)[:, None].expand(-1, 3, -1, -1)
    pixels = processor()(images=list(rgb), return_tensors="pt")["pixel_values"]
    look = read_look(folder / "preprocessor_config.json")
    assert float((look(torch.from_numpy(images)) - pixels).abs().mean()) < 1 / 255 / STD
    expected = model(pixel_values=look(torch.from_numpy(images))).last_hidden_state[:, 0].numpy()
    found = encoder.read(images)
    assert found.shape == (3, encoder.width) == (3, 24)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(found - found.mean(axis=0)).max() > 1e-4
    assert (encoder.name, encoder.sha256) == ("rad-dino:small", hash_file(folder / "model.safetensors"))


def test_other_rad_dino_folders_are_refused(dino: tuple[Dinov2Model, Path], tmp_path: Path) -> None:
    _, folder = dino
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_text((folder / name).read_text())
    with pytest.raises(TailfillError, match=r"lacks model\.safetensors; wanted: a copy of microsoft/rad-dino"):
        make_encoder(f"rad-dino:{tmp_path}")
    state = load_file(folder / "model.safetensors")
    save_file(dict(list(state.items())[1:]), tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TailfillError, match=f"lacks 1 of {len(state)} tensors .*, first '{next(iter(state))}'"):
        make_encoder(f"rad-dino:{tmp_path}")
    save_file(state | {"layernorm.bias": torch.zeros(7)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TailfillError, match=r"first 'layernorm\.bias'"):
        make_encoder(f"rad-dino:{tmp_path}")
    (tmp_path / "model.safetensors").write_bytes(b"half a downl")
    with pytest.raises(TailfillError, match="does not load as a Dinov2Model"):
        make_encoder(f"rad-dino:{tmp_path}")


@pytest.mark.parametrize(("change", "message"), [
    ({"crop_size": {"height": 14, "width": 14}}, "resizes to 28 and crops to"),
    ({"resample": 0}, "is not understood: KeyError 0"),
    ({"image_mean": None}, "is not understood"),
])
def test_other_processors_are_refused(
    dino: tuple[Dinov2Model, Path], tmp_path: Path, change: dict[str, object], message: str
) -> None:
    told = json.loads((dino[1] / "preprocessor_config.json").read_text())
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(told | change))
    with pytest.raises(TailfillError, match=message):
        read_look(file)


def test_rad_dino_from_the_hub(
    dino: tuple[Dinov2Model, Path], images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the published id, fetching three files and no more."""
    asked: list[tuple[str, list[str]]] = []

    def fetch(name: str, *, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        return str(dino[1])

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert make_encoder("rad-dino").name == "rad-dino"
    assert asked == [(RAD_DINO, ["config.json", "preprocessor_config.json", "model.safetensors"])]
    assert make_encoder("rad-dino:someone/else").name == "rad-dino:someone/else"


def test_no_network_is_said_plainly() -> None:
    """Three times: the published id, another one, and a path that is no folder."""
    code = """
from synth.measuring.encoders import make_encoder
for spec in ("rad-dino", "rad-dino:no/such", "rad-dino:/no/such/folder/here"):
    try:
        make_encoder(spec)
    except Exception as error:
        print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=False,
                          env={"HF_HUB_OFFLINE": "1", "HF_HOME": "/nowhere", "PATH": ""})
    lines = done.stdout.splitlines()
    assert len(lines) == 3, done.stderr
    for line in lines:
        assert line.startswith("TailfillError filter.encoders: 'rad-dino:")
        assert "wanted: a network, or rad-dino:FOLDER with config.json" in line


@pytest.mark.parametrize(("spec", "message"), [
    ("rad-dno", "did you mean 'rad-dino'"), ("xrv:", "wanted: 'xrv' or xrv:where"),
    ("efficientnet_lite0:folder", "whose weights come with a package"), ("backbone:models/backbone", "no encoder"),
])
def test_wrong_specs_are_refused_before_anything_is_loaded(spec: str, message: str) -> None:
    with pytest.raises(TailfillError, match=message):
        check_encoder(spec)


def test_known_specs_load_nothing_when_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("fetch_xrv", "fetch_from_hub", "read_state"):
        monkeypatch.setattr(radiograph_encoders, name, None)
    for spec in ("efficientnet_lite0", "rad-dino", "rad-dino:/no/such", "xrv:densenet121-res224-all"):
        check_encoder(spec)


def test_two_of_one_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(encoders.ENCODERS, "toy", lambda where="", *, device: types.SimpleNamespace(name="toy"))
    with pytest.raises(TailfillError, match="two of toy, toy:b are named alike"):
        make_encoders(["toy", "toy:b"])
