"""The engine behind `mto_tools.ds`: who runs forward and backward, and when a step is due."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mto_tools.ds.config import Config
from mto_tools.ds.optimizer import Optimizer
from mto_tools.ds.peers import give_way
from mto_tools.ds.scaler import LossScale, kind
from mto_tools.errors import MissingError, RefusedError


class Engine:
    """A recipe's model, optimizer and scaler on DeepSpeed.

    Attributes:
        model: Takes the place of the recipe's DDP model.
        optimizer: Takes the place of its optimizer.
        scaler: Takes the place of its loss scaler.
    """

    def __init__(self, model: nn.Module, optimizer: Any, scaler: Any, config: Config) -> None:
        try:
            import deepspeed
        except ImportError:
            raise MissingError(
                "--deepspeed_config was given, but DeepSpeed is not installed",
                hint="pip install deepspeed",
            ) from None
        if not dist.is_initialized():
            raise MissingError(
                "--deepspeed_config needs a process group, also for one GPU",
                hint="torchrun --nproc_per_node N SCRIPT …   (or: deepspeed --num_gpus N SCRIPT …)",
            )
        self.config, self.world_size = config, dist.get_world_size()
        raw: Any = model.module if isinstance(model, DistributedDataParallel) else model
        if next(raw.parameters()).device.type == "cpu":
            # Its shared-memory op would be compiled on first use, for a minute; gloo does as well.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self._make = deepspeed.initialize
        self._raw, self._client, self._recipe_scaler = raw, optimizer, scaler
        self._adapter = kind(scaler)
        self.scale = LossScale(scaler)
        self.model = Model(raw)
        self.micro = 0
        self.divisor = 1

    def begin(self, divide: bool) -> None:
        """Hand the recipe's objects to DeepSpeed.

        Args:
            divide: Whether accumulation is ours, and so the division of the loss.
        """
        self.divisor = self.config.accumulation if divide else 1
        gc.collect()  # the DDP wrapper that the recipe drops holds buckets of the model's size
        groups = [list(group["params"]) for group in self._client.param_groups]
        state = self._client.state_dict()
        self._client.state.clear()  # or the whole of it would stay on every rank
        self.engine = self._make(
            model=_LossOnly(self._raw),
            optimizer=self._client,
            config=self.config.content,
            dist_init_required=False,
        )[0]
        self.zero: Any = self.engine.optimizer
        self.optimizer = Optimizer(self, groups)
        if state["state"]:  # a recipe that has loaded its checkpoint already
            self.optimizer.load_state_dict(state)
        self.scaler = self._adapter(self._recipe_scaler, self)
        give_way()

    def backward(self, loss: Tensor) -> None:
        """Backward of one micro batch, reduced over ranks with the last of a step."""
        if self.micro == self.config.accumulation:
            raise RefusedError(
                f"{self.config.file}: more than {self.micro} backward passes without a step; "
                "gradient_accumulation_steps must be what the recipe does"
            )
        self.micro += 1
        self.engine.set_gradient_accumulation_boundary(self.micro == self.config.accumulation)
        if self.scale.enabled:
            self.zero.override_loss_scale(self.scale.value)
        # The recipe has divided its loss already.
        self.engine.backward(self.engine(loss / self.divisor), scale_wrt_gas=False)

    def accumulate(self, loss: Tensor) -> bool:
        """Whether this was not the last micro batch of a step, and its backward is done."""
        if self.micro + 1 >= self.config.accumulation:
            return False
        self.backward(loss)
        return True

    def step(self) -> None:
        """One optimizer step on the gradients of all micro batches, unless they overflowed."""
        if self.micro != self.config.accumulation:
            raise RefusedError(
                f"{self.config.file}: a step after {self.micro} of {self.config.accumulation} "
                "micro batches; gradient_accumulation_steps must be what the recipe does"
            )
        # ZeRO steps on copies of the weights: without this, a step undoes what has been loaded.
        self.zero.refresh_fp32_params()
        with self.optimizer.unused_kept():
            self.engine.step()
        self.micro = 0
        overflow = bool(self.zero.overflow)
        if overflow and not self.scale.enabled:
            raise FloatingPointError(
                "the gradients are not finite, and there is no loss scale that could have done it"
            )
        self.scale.update(overflow)

    def drop(self) -> None:
        """Forget the gradients of a step that was begun and not finished."""
        self.micro = 0
        self.zero.zero_grad(set_to_none=True)
        for held in (self.zero.averaged_gradients, self.zero.all_grad_tensors):
            for group in held:
                held[group] = None

    def grad_norm(self) -> Tensor | None:
        """Norm of the last step's gradients before clipping, inf where they overflowed."""
        norm = self.engine.get_global_grad_norm()
        return None if norm is None else torch.as_tensor(norm)


class Model:
    """What the recipe calls: the engine, with the raw model in `.module`, as DDP has it.

    Its `parameters()` are none: gradients are DeepSpeed's, and clipping those of a single rank,
    not yet averaged, would be wrong.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Forward."""
        return self.module(*args, **kwargs)

    def parameters(self) -> Iterator[nn.Parameter]:
        """Nothing to clip and no norm to take: both are done in the step."""
        return iter(())

    def state_dict(self) -> dict[str, Any]:
        """The raw model's, under the names that DDP gives them."""
        return {f"module.{name}": value for name, value in self.module.state_dict().items()}

    def train(self, mode: bool = True) -> Model:
        """Set the mode of the raw model."""
        self.module.train(mode)
        return self

    def eval(self) -> Model:
        """Set the mode of the raw model."""
        return self.train(False)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)


class _LossOnly(nn.Module):
    """The model as DeepSpeed gets it: its parameters, and a forward that only lets the loss pass.

    The recipe calls the model itself. DeepSpeed would switch its autocast off. It would divide by
    the accumulation what passes the model's outputs, and so weigh MTO's terms, which leave by
    hooks, too much. And it would take any gradient through these outputs for a backward pass and
    reduce it, also those that MTO measures for its balance.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, loss: Tensor) -> Tensor:
        return loss
