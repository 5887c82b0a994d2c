"""The ``train`` section: how every arm is trained, refused before anything is read when it makes no sense."""

from dataclasses import dataclass
from pathlib import Path

from classify.learning.heads import HEADS
from classify.learning.losses import LOSSES
from classify.learning.models import require_model
from classify.learning.start import check_backbone
from classify.learning.training import check_precision
from cohort.config import path
from cohort.errors import TailfillError, nearest

FIRST_EXTRA_SEED = 1000
"""From here on no rivals: the filter's critics, and the start that all arms share."""


def check_pretrained(pretrained: bool | str, *, model: str, key: str) -> None:
    """Raise ``TailfillError`` for a path that is no file."""
    if isinstance(pretrained, str) and not Path(pretrained).is_file():
        raise TailfillError(f"{key} is {pretrained}, which is no file; wanted: weights for timm's {model}, true or "
                            "false")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How every arm is trained; the same for all."""

    model: str = "convnext_femto"
    """Any timm model's name."""
    pretrained: bool | str = path(False)
    """Start from weights for timm's ``model``, where training starts from nothing otherwise: true for those on the
    model hub (``model`` may name them: convnext_tiny.fb_in22k), or a file of them (safetensors or torch)."""
    head: str = "linear"
    """linear or ml_decoder; see classify/learning/heads.py."""
    backbone: str | None = path(None)
    """Folder of trained weights (``ema.safetensors``, ``card.json``; any labels) of this ``model`` and ``image_size``.

    What would start from nothing starts from all of them but the head, at their grey mean and standard deviation."""
    head_only: bool = False
    """Train the head alone on features of undistorted images; needs ``init_seed``, ``backbone`` or ``pretrained``.

    Seconds where all weights take minutes. A learning rate of .01 and 300 to 600 steps converge; ``drop_path``,
    ``precision`` and ``compile`` have no effect. What starts from nothing trains all weights nevertheless."""
    drop_path: float = 0.0
    """Stochastic depth, 0 to below 1."""
    image_size: int = 128
    """Height and width of the input, px, 32 or more."""
    steps: int = 500
    """Optimiser steps of a seed below 1000, the same in every arm; 1 or more."""
    base_steps: int = 2000
    """Optimiser steps of a seed from 1000 on (critics, shared start); 1 or more."""
    init_seed: int | None = 2000
    """Seed (1000 or more) of the run of arm `real` that seeds below 1000 start from (its EMA); null: from nothing."""
    batch_size: int = 32
    """Slots per optimiser step, over all processes and accumulated passes together; 1 or more."""
    gradient_accumulation: int = 1
    """Forward passes per process and optimiser step, 1 or more: saves memory. Changes no more than rounding, but for
    drop path, which falls otherwise, and batch norms, which see a pass's slots, as on another number of processes."""
    min_real_share: float = 0.5
    """Least share of each batch, 0 to 1, of the slots that hold each real image once, beside those added for the tail;
    where the arm's table has fewer, they are drawn more often than once an epoch. A second phase without any is free.
    """
    lr: float = 3e-4
    """AdamW's highest learning rate for seeds below 1000, above 0."""
    base_lr: float = 1e-3
    """The same for seeds from 1000 on."""
    weight_decay: float = 0.05
    """AdamW's weight decay, not applied to biases and norms; 0 or more."""
    warmup_share: float = 0.05
    """Share of the steps in which the learning rate rises from 0; a cosine to 0 follows. 0 to below 1."""
    ema_decay: float = 0.995
    """Decay of the moving average of the weights per step, reached gradually; 0 to below 1."""
    loss: str = "weighted_asl"
    """weighted_asl, asl or bce; see classify/learning/losses.py."""
    grad_clip: float = 1.0
    """Largest norm of the gradient, above 0."""
    precision: str = "no"
    """no (float32) or bf16 (autocast; halves the time on many CPUs and all recent GPUs)."""
    compile: bool = False
    """Whether the model is compiled (torch.compile) for training: minutes at first, faster steps on GPUs; changes
    rounding, and how drop path falls. Needs a C++ compiler (CPU) or Triton (CUDA)."""
    phase_2_share: float = 0.0
    """Share of the steps, at the end, in which an arm that has a second phase draws from its slots; 0 to 1."""
    crt_lr: float = 1e-2
    """Highest learning rate of arm `crt`'s second phase, which trains a new head alone, above 0."""
    checkpoint_every: int = 200
    """Steps between checkpoints; does not change the result. 1 or more."""

    def __post_init__(self) -> None:
        check_precision(self.precision, key="train.precision")
        if self.loss not in LOSSES:
            raise TailfillError(f"train.loss is '{self.loss}'{nearest(self.loss, list(LOSSES))}")
        if self.head not in HEADS:
            raise TailfillError(f"train.head is '{self.head}'{nearest(self.head, list(HEADS))}")
        legal = {key: getattr(self, key) >= 1 for key in ("steps", "base_steps", "batch_size", "gradient_accumulation",
                                                        "checkpoint_every")}
        legal |= {key: getattr(self, key) > 0 for key in ("lr", "base_lr", "grad_clip", "crt_lr")}
        legal |= {key: 0 <= getattr(self, key) < 1 for key in ("drop_path", "warmup_share", "ema_decay")}
        legal |= {"image_size": self.image_size >= 32, "weight_decay": self.weight_decay >= 0,
                  "phase_2_share": 0 <= self.phase_2_share <= 1, "min_real_share": 0 <= self.min_real_share <= 1,
                  "init_seed": self.init_seed is None or self.init_seed >= FIRST_EXTRA_SEED}
        for key, is_legal in legal.items():
            if not is_legal:
                raise TailfillError(f"train.{key} is {getattr(self, key)}; outside its range, see --help")
        require_model(self.model)
        if self.backbone is not None:
            if self.pretrained:
                raise TailfillError(f"train.pretrained is {str(self.pretrained).lower()} and train.backbone is given; "
                                    "wanted: one start")
            check_backbone(Path(self.backbone), model=self.model, image_size=self.image_size, key="train.backbone")
        check_pretrained(self.pretrained, model=self.model, key="train.pretrained")
        if self.head_only and self.backbone is None and self.init_seed is None and not self.pretrained:
            raise TailfillError("train.head_only is true without train.backbone, train.init_seed or train.pretrained; "
                                "wanted: one of them, for a head of random features learns nothing")
