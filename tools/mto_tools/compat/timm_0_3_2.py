"""The part of timm 0.3.2 that MAE is written against."""

from __future__ import annotations

import importlib
import inspect
import warnings
from typing import Any

import timm
import timm.models.vision_transformer
from torch import Tensor, nn

vit: Any = timm.models.vision_transformer


def version() -> bool:
    """Pass MAE's assertion: this module brings back what it needs of 0.3.2."""
    if timm.__version__ == "0.3.2":
        return False
    timm.__version__ = "0.3.2"
    return True


def add_weight_decay() -> bool:
    """Bring back `optim_factory.add_weight_decay`, renamed in 0.6.

    The group without decay comes first, as it did: a checkpoint of the optimizer counts on it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # this path is deprecated, and MAE's
        factory: Any = importlib.import_module("timm.optim.optim_factory")
    if hasattr(factory, "add_weight_decay"):
        return False

    def groups(
        model: nn.Module, weight_decay: float = 1e-5, skip_list: Any = ()
    ) -> list[dict[str, Any]]:
        kept: list[nn.Parameter] = []
        decayed: list[nn.Parameter] = []
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                free = parameter.ndim == 1 or name.endswith(".bias") or name in skip_list
                (kept if free else decayed).append(parameter)
        return [
            {"params": kept, "weight_decay": 0.0},
            {"params": decayed, "weight_decay": weight_decay},
        ]

    factory.add_weight_decay = groups
    return True


def block() -> bool:
    """Accept `Block(qk_scale=None)`: MAE names an argument that timm dropped.

    The default scale, one over the square root of the head's width, is what `None` meant. Any other
    value would be ignored today, so it is refused.
    """
    if "qk_scale" in inspect.signature(vit.Block.__init__).parameters:
        return False

    class Block(vit.Block):
        def __init__(self, *args: Any, qk_scale: float | None = None, **more: Any) -> None:
            if qk_scale is not None:
                raise ValueError(f"qk_scale={qk_scale}: only the default scale is supported")
            super().__init__(*args, **more)

    vit.Block = Block
    return True


def vision_transformer() -> bool:
    """Make `VisionTransformer.forward` the head of `forward_features`, with no pooling between.

    MAE's fine-tuning model pools by itself, and overrides `forward_features` only. The class token
    starts as it did, too; all else that is not loaded from a checkpoint is drawn as before.
    """
    known = vit.VisionTransformer
    if not hasattr(known, "forward_head") or hasattr(known, "pools_nothing"):
        return False

    class VisionTransformer(vit.VisionTransformer):
        pools_nothing = True

        def __init__(self, *args: Any, **more: Any) -> None:
            super().__init__(*args, **more)
            vit.trunc_normal_(self.cls_token, std=0.02)

        def forward(self, x: Tensor) -> Tensor:
            features: Tensor = self.head(self.forward_features(x))
            return features

    vit.VisionTransformer = VisionTransformer
    return True
