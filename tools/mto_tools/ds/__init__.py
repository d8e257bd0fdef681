"""The glue that layer `deepspeed` inserts into a recipe: one flag, one call, the recipe unchanged.

    from mto_tools import ds

    ds.add_arguments(parser)                                   # --deepspeed_config FILE
    model, optimizer, loss_scaler = ds.start(                  # after DDP, optimizer and scaler
        model, optimizer, loss_scaler,
        batch_size=args.batch_size, accumulation=args.accum_iter, clip_grad=None)

Without `--deepspeed_config` every call is the identity and DeepSpeed is not imported.

With it, ZeRO 1 or 2 shards optimizer state and gradients, and all else stays what it was: the
recipe's optimizer, schedules, EMA, autocast and loss scale, and its checkpoints, which go on under
DDP and the other way round, on any number of GPUs. What the configuration says of batch,
accumulation and clipping must agree with the recipe, or `start` refuses.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mto_tools.ds.config import Config, read_config
from mto_tools.flags import add_kept

if TYPE_CHECKING:
    from torch import Tensor

    from mto_tools.ds.engine import Engine

_file: Path | None = None
_config: Config | None = None
_engine: Engine | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--deepspeed_config FILE`; the value never reaches the recipe's namespace."""
    _forget()
    group = parser.add_argument_group("DeepSpeed")
    text = "run under DeepSpeed with this configuration, as `mto plan` writes it"
    add_kept(group, "--deepspeed_config", _use, type=Path, metavar="FILE", help=text)
    text = "accepted, and without effect: --deepspeed_config says it all"
    add_kept(group, "--deepspeed", lambda _: None, nargs=0, help=text)


def defaults() -> dict[str, Any]:
    """The settings by upper-case name, for a recipe whose options are yacs nodes."""
    return {"CONFIG": ""}


def start(
    model: Any,
    optimizer: Any,
    scaler: Any,
    *,
    batch_size: int,
    accumulation: int | None,
    clip_grad: float | None,
    settings: Mapping[str, Any] | None = None,
) -> tuple[Any, Any, Any]:
    """Put the recipe on DeepSpeed; return what takes the place of the three objects given.

    Call it when the model is wrapped in DDP (which has given all ranks the same weights, and is
    dropped here), and the optimizer and the loss scaler are made.

    Args:
        model: The model, in DDP or not.
        optimizer: The recipe's own; elementwise, as the Adam family is.
        scaler: What scales its loss: the `NativeScalerWithGradNormCount` of MAE and its kin, a
            `torch.amp.GradScaler`, or the module `apex.amp`.
        batch_size: Images per GPU and micro batch.
        accumulation: Micro batches per step, by which the recipe divides its loss itself; `None`
            for a recipe without accumulation, which `accumulate` then brings.
        clip_grad: The recipe's largest gradient norm; `None` or 0 does not clip.
        settings: A yacs node made of `defaults()`, where the flag is not on the command line.

    Raises:
        RefusedError: The configuration would change the recipe, or asks for what is not supported.
        MissingError: No such file, no DeepSpeed, or no process group.
    """
    global _engine, _file
    if settings is not None:
        _file = Path(settings["CONFIG"]) if settings["CONFIG"] else None
    config = _read()
    if config is None:
        return model, optimizer, scaler
    from mto_tools.ds.engine import Engine

    _engine = Engine(model, optimizer, scaler, config)
    config.agree(
        batch_size=batch_size,
        accumulation=accumulation,
        clip_grad=clip_grad or 0.0,
        world_size=_engine.world_size,
    )
    _engine.begin(divide=accumulation is None)
    return _engine.model, _engine.optimizer, _engine.scaler


def gather(optimizer: Any) -> None:
    """Bring the optimizer's state to rank 0; all ranks call it, where rank 0 alone will save."""
    if _engine is not None:
        _engine.optimizer.gather()


def grad_norm(value: Any) -> Any:
    """The gradient norm of the last step; `value` without DeepSpeed, and before the first step."""
    norm = None if _engine is None else _engine.grad_norm()
    return value if norm is None else norm


def accumulation() -> int:
    """Micro batches per step that the configuration asks for; 1 without one."""
    config = _read()
    return 1 if config is None else config.accumulation


def accumulate(loss: Tensor) -> bool:
    """Do the backward of a micro batch that is not the last of its step, and say so.

    For a recipe without accumulation of its own: where this is `True`, it goes on with the next
    micro batch; the last one takes the recipe's ordinary way.
    """
    return _engine is not None and _engine.accumulate(loss)


def whole_steps(data_loader: Any) -> Any:
    """The loader without the last micro batches that fill no step."""
    micro = accumulation()
    return data_loader if micro == 1 else _WholeSteps(data_loader, micro)


class _WholeSteps:
    def __init__(self, loader: Any, micro: int) -> None:
        self.loader, self.length = loader, len(loader) // micro * micro

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterable[Any]:
        for number, batch in enumerate(self.loader, start=1):
            if number > self.length:
                return
            yield batch


def _use(file: Path) -> None:
    global _file
    _file = file


def _read() -> Config | None:
    global _config
    if _file is not None and (_config is None or _config.file != _file):
        _config = read_config(_file)
    return None if _file is None else _config


def _forget() -> None:
    global _file, _config, _engine
    _file = _config = _engine = None
