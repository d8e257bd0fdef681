"""The glue that layer `deepspeed` inserts into a recipe: one flag, one call, the recipe unchanged.

    from mto_tools import ds

    ds.add_arguments(parser)                                   # --deepspeed_config FILE
    model, optimizer, loss_scaler = ds.start(                  # after DDP, optimizer and scaler
        model, optimizer, loss_scaler,
        batch_size=args.batch_size, accumulation=args.accum_iter, clip_grad=None)

Without `--deepspeed_config` every call is the identity and DeepSpeed is not imported.

With it, ZeRO 1 or 2 shards optimizer state and gradients. All else stays what it was: the recipe's
optimizer, schedules, EMA, autocast and loss scale, and its checkpoints, which go on under DDP and
the other way round, on any number of GPUs. The configuration's batch, accumulation and clipping
must agree with the recipe, or `start` refuses.

The process that parses the flag exports it as `MTO_DEEPSPEED_CONFIG`, for processes that never
parse a command line: submitit's jobs, spawned workers. A process that parses its own decides for
itself. An optimizer that steps where DeepSpeed was asked for and `start` never called is stopped.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mto_tools.errors import MissingError
from mto_tools.flags import PrivateOptions, Wish

if TYPE_CHECKING:
    from torch import Tensor

    from mto_tools.ds.config import Config
    from mto_tools.ds.engine import Engine

_config: Config | None = None
_engine: Engine | None = None
_wish = Wish("MTO_DEEPSPEED_CONFIG", "ds.start", "deepspeed")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--deepspeed_config FILE`; the value never reaches the recipe's namespace.

    A file that is missing or refused is an error of the command line.
    """
    options = PrivateOptions(parser.add_argument_group("DeepSpeed"), lambda: _ask(None))
    text = "run under DeepSpeed with this configuration, as `mto plan` writes it"
    options.add("--deepspeed_config", _ask, type=Path, metavar="FILE", help=text)


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
    """Put the recipe on DeepSpeed; return replacements for the three objects given.

    Call it when the model is wrapped in DDP (which has given all ranks the same weights, and is
    dropped here), and the optimizer and the loss scaler are made.

    Args:
        model: The model, in DDP or not.
        optimizer: The recipe's own; elementwise, as the Adam family is.
        scaler: The recipe's loss scaler: the `NativeScalerWithGradNormCount` of MAE and its kin, a
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
    global _engine
    if settings is not None:
        _ask(Path(settings["CONFIG"]) if settings["CONFIG"] else None)
    config = _asked()
    if config is None:
        return model, optimizer, scaler
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    try:
        from mto_tools.ds.engine import Engine, Model
        from mto_tools.ds.optimizer import Optimizer
        from mto_tools.ds.scaler import scaler_adapter, torch_scaler
    except ImportError as error:
        raise MissingError(
            f"--deepspeed_config was given, but DeepSpeed cannot be imported: {error}",
            hint="pip install -e '.[deepspeed]'   (in your clone of mto)",
        ) from error
    if not dist.is_initialized():
        raise MissingError(
            "--deepspeed_config needs a process group, also for one GPU",
            hint="torchrun --nproc_per_node N SCRIPT …   (or: deepspeed --num_gpus N SCRIPT …)",
        )
    world = dist.get_world_size()
    module: Any = model.module if isinstance(model, DistributedDataParallel) else model
    inner = torch_scaler(scaler, next(module.parameters()).device)
    config.agree(
        batch_size=batch_size,
        accumulation=accumulation,
        clip_grad=clip_grad or 0.0,
        world_size=world,
    )
    state = optimizer.state_dict()
    _engine = Engine(module, optimizer, inner, config, divide=accumulation is None)
    sharded = Optimizer(_engine)
    if state["state"]:  # a recipe that has loaded its checkpoint already
        sharded.load_state_dict(state)
    _wish.met()
    if dist.get_rank() == 0:
        print(
            f"DeepSpeed is on: ZeRO {config.zero.stage}, {config.batch_size} images x "
            f"{config.accumulation} micro batches x {world} processes = {config.total} a step "
            f"({config.file})",
            flush=True,
        )
    return Model(module), sharded, scaler_adapter(scaler, _engine)


def gather(optimizer: Any) -> None:
    """Bring the optimizer's state to rank 0; all ranks call it, where rank 0 alone will save."""
    if _engine is not None:
        optimizer.gather()


def grad_norm(value: Any) -> Any:
    """The gradient norm of the last step; `value` without DeepSpeed, and before the first step."""
    norm = None if _engine is None else _engine.grad_norm()
    return value if norm is None else norm


def accumulation() -> int:
    """Micro batches per step that the configuration asks for; 1 without one."""
    config = _asked()
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

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(self.loader, self.length)


def _ask(file: Path | None) -> None:
    """Take a configuration, or none, as this process's and that of its children."""
    global _config, _engine
    _config = _engine = None
    _wish.ask(None)
    if file is not None:
        from mto_tools.ds.config import read_config

        _config = read_config(file.absolute())
        _wish.ask(str(_config.file))


def _asked() -> Config | None:
    """The configuration that was asked for here, or by the process that started this one."""
    if _config is None and _wish.text is not None:
        _ask(Path(_wish.text))
    return _config
