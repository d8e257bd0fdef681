"""timm as it was in 2020 and 2021: version 0.3.2 for MAE, 0.4.12 for the others."""

from __future__ import annotations

import functools
import importlib
import sys
import warnings
from types import ModuleType
from typing import Any

import timm
import timm.data.transforms
import timm.models.vision_transformer
import timm.scheduler.cosine_lr
from torch import Tensor, nn

vit: Any = timm.models.vision_transformer


def _deprecated(name: str) -> Any:
    """A module under the path that the recipes import it from, without timm's warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return importlib.import_module(name)


def version() -> None:
    """Pass MAE's assertion: this module brings back what it needs of 0.3.2."""
    timm.__version__ = "0.3.2"


def add_weight_decay() -> None:
    """Bring back `optim_factory.add_weight_decay`, renamed in 0.6.

    The group without decay comes first, as it did: a checkpoint of the optimizer counts on it.
    """

    def groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
        free: list[nn.Parameter] = []
        decayed: list[nn.Parameter] = []
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                spared = parameter.ndim == 1 or name.endswith(".bias")
                (free if spared else decayed).append(parameter)
        return [
            {"params": free, "weight_decay": 0.0},
            {"params": decayed, "weight_decay": weight_decay},
        ]

    _deprecated("timm.optim.optim_factory").add_weight_decay = groups


def block() -> None:
    """Accept `Block(qk_scale=None)`: MAE names an argument that timm dropped."""
    vit.Block = Block


class Block(vit.Block):
    """The default scale, one over the square root of the head's width, is what `None` meant."""

    def __init__(self, *args: Any, qk_scale: float | None = None, **more: Any) -> None:
        """Any other value would be ignored today, so it is refused."""
        if qk_scale is not None:
            raise ValueError(f"qk_scale={qk_scale}: only the default scale is supported")
        super().__init__(*args, **more)


def vision_transformer() -> None:
    """Make `VisionTransformer.forward` the head of `forward_features`, with no pooling between."""
    vit.VisionTransformer = VisionTransformer


class VisionTransformer(vit.VisionTransformer):
    """MAE's fine-tuning model pools by itself, and overrides `forward_features` only.

    The class token starts as it did, too; all else that is not loaded from a checkpoint is drawn as
    before.
    """

    def __init__(self, *args: Any, **more: Any) -> None:
        """As timm's own."""
        super().__init__(*args, **more)
        vit.trunc_normal_(self.cls_token, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Images to logits."""
        features: Tensor = self.head(self.forward_features(x))
        return features


def pil_interp() -> None:
    """Bring back `_pil_interp`, renamed in 0.6: PIL's filter by name.

    SimMIM's fine-tuning data imports it, and its pre-training imports that file.
    """
    transforms: Any = timm.data.transforms
    transforms._pil_interp = transforms.str_to_pil_interp


def renamed_optimizers() -> None:
    """Bring back `Nadam` and `RAdam`, which are `NAdamLegacy` and `RAdamLegacy` since 1.0.

    BootMAE and ConMIM import them at the top of `optim_factory`, though their recipes use AdamW.
    """
    for old, new in {"Nadam": "NAdamLegacy", "RAdam": "RAdamLegacy"}.items():
        module = importlib.import_module(f"timm.optim.{old.lower()}")
        if not hasattr(module, old):
            setattr(module, old, getattr(module, new))


def novograd() -> None:
    """Let ConMIM import `NovoGrad`; to ask for it is an error, for no timm of today computes it."""

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError(
            "--opt novograd: timm no longer has this optimizer; use --opt nvnovograd, NVIDIA's "
            "version of it, or --opt adamw, the recipe's own"
        )

    module = ModuleType("timm.optim.novograd", "The place of an optimizer that timm dropped.")
    vars(module)["NovoGrad"] = refuse
    sys.modules[module.__name__] = module


def register_model() -> None:
    """Drop what `create_model` passes since 0.6 and 1.0 before it reaches an upstream's model.

    Only the deprecated path that the recipes import from is changed; timm's models are not.
    """
    registry = _deprecated("timm.models.registry")
    original = registry.register_model

    def register(function: Any) -> Any:
        @functools.wraps(function)
        def build(*args: Any, **more: Any) -> Any:
            for name in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
                more.pop(name, None)
            return function(*args, **more)

        return original(build)

    registry.register_model = register


def t_mul() -> None:
    """Accept `CosineLRScheduler(t_mul=...)`, called `cycle_mul` since 0.5."""
    cosine: Any = timm.scheduler.cosine_lr.CosineLRScheduler
    init = cosine.__init__

    @functools.wraps(init)
    def renamed(self: Any, *args: Any, **more: Any) -> None:
        if "t_mul" in more:
            more["cycle_mul"] = more.pop("t_mul")
        init(self, *args, **more)

    cosine.__init__ = renamed


def lr_scale_once() -> None:
    """Set each group's value as the schedule computed it, without another factor `lr_scale`.

    SimMIM's fine-tuning puts the layer decay into each group's `lr`, from which the schedule
    starts, and notes the factor in the group as `lr_scale`. Since 0.6 timm multiplies by that note
    again. Nothing fails: the lower layers merely learn at the square of the decay.
    """

    def update_groups(self: Any, values: Any) -> None:
        groups = self.optimizer.param_groups
        each = values if isinstance(values, (list, tuple)) else [values] * len(groups)
        for group, value in zip(groups, each, strict=True):
            group[self.param_group_field] = value

    scheduler: Any = timm.scheduler.scheduler.Scheduler
    scheduler.update_groups = update_groups
