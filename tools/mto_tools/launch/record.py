"""Write down every loss and gradient of a run, bit for bit: `worker --before` runs this file.

`MTO_RECORD` names the file; ranks other than 0 append `.RANK`. One JSON object per line:
`{"loss": hexadecimal float, "rng": checksum of all generators}` for each backward pass,
`{"grads": checksum, "mask_token": checksums}` for each optimizer step. Parameters are known by the
name they were registered under.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from mto_tools.recipe.measure import checksum

_rank = int(os.environ.get("RANK", "0"))
_file = Path(os.environ["MTO_RECORD"] + (f".{_rank}" if _rank else ""))
_mask_tokens: list[nn.Parameter] = []
_backward = Tensor.backward


def _write(record: dict[str, Any]) -> None:
    with _file.open("a") as file:
        file.write(json.dumps(record) + "\n")


def _checksum(tensor: Tensor) -> str:
    return hashlib.sha1(tensor.detach().float().cpu().numpy().tobytes()).hexdigest()[:16]


def _recorded_backward(self: Tensor, *args: Any, **more: Any) -> None:
    _write({"loss": float.hex(self.item()), "rng": checksum()})
    _backward(self, *args, **more)


def _before_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    grads = [p.grad for group in optimizer.param_groups for p in group["params"]]
    norms = torch.stack([g.detach().double().pow(2).sum().cpu() for g in grads if g is not None])
    tokens = [p.grad for p in _mask_tokens if p.grad is not None]
    _write({"grads": _checksum(norms), "mask_token": "".join(map(_checksum, tokens))})


def _registered(module: nn.Module, name: str, parameter: Any) -> None:
    if "mask_token" in name and isinstance(parameter, nn.Parameter):
        _mask_tokens.append(parameter)


if torch.cuda.is_available():  # two runs can only be equal if each is repeatable
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
_file.unlink(missing_ok=True)
Tensor.backward = _recorded_backward  # type: ignore[method-assign]
nn.modules.module.register_module_parameter_registration_hook(_registered)
register_optimizer_step_pre_hook(_before_step)
