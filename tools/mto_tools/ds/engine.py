"""The engine behind `mto_tools.ds`: it runs every backward, and the step when it is due."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mto_tools.ds.config import Config
from mto_tools.errors import RefusedError


class Engine:
    """A recipe's model and optimizer under ZeRO; the optimizer's own state is dropped.

    Args:
        module: The model, without DDP.
        optimizer: The recipe's own.
        scaler: The recipe's loss scale.
        config: The configuration, which agrees with the recipe.
        divide: Whether accumulation is the engine's, and so the division of the loss.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: Any,
        scaler: torch.amp.GradScaler,
        config: Config,
        *,
        divide: bool,
    ) -> None:
        import deepspeed

        if next(module.parameters()).device.type == "cpu":
            # Its shared-memory op would be compiled on first use, for a minute; gloo does as well.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self.config, self.scaler = config, scaler
        self.divisor = config.accumulation if divide else 1
        self.micro = 0  # micro batches of the current step whose backward is done
        # The parameters of each group, in the recipe's order.
        self.groups = [list(group["params"]) for group in optimizer.param_groups]
        self.unused = UnusedParameters([p for group in self.groups for p in group])
        optimizer.state.clear()  # or the whole of it would stay on every rank
        self._engine = deepspeed.initialize(
            model=_LossOnly(module),
            optimizer=optimizer,
            config=config.model_dump(by_alias=True, exclude_unset=True),
            dist_init_required=False,
        )[0]
        self.zero: Any = self._engine.optimizer
        self._ddp_is_gone = False

    def backward(self, loss: Tensor) -> None:
        """Backward of one micro batch, reduced over ranks with the last of a step."""
        if not self._ddp_is_gone:
            gc.collect()  # the recipe has dropped its DDP wrapper, whose buckets hold the gradients
            self._ddp_is_gone = True
        self.micro += 1
        self._engine.set_gradient_accumulation_boundary(self.micro == self.config.accumulation)
        if self.scaler.is_enabled():
            self.zero.override_loss_scale(self.scaler.get_scale())
        # The recipe has divided its loss already.
        self._engine.backward(self._engine(loss / self.divisor), scale_wrt_gas=False)

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
        with self.unused.restored():
            self._engine.step()
        self.micro = 0
        if self.scaler.is_enabled():
            self._count(bool(self.zero.overflow))
        elif self.zero.overflow:
            raise FloatingPointError(
                "the gradients are not finite, and there is no loss scale that could have done it"
            )

    def _count(self, overflow: bool) -> None:
        """Count a step in torch's scaler, by the gradient of a parameter of no model.

        DeepSpeed's own handling of float16 under autocast (0.19) is not used: it updates the scale
        once per parameter group, and clips gradients that are still scaled.
        """
        probe = nn.Parameter(torch.zeros((), device=self.groups[0][0].device))
        probe.grad = torch.full_like(probe, torch.inf if overflow else 0.0)
        self.scaler.scale(probe.detach())  # makes the scale where it has not been used yet
        self.scaler.unscale_(torch.optim.SGD([probe]))
        self.scaler.update()

    def drop(self) -> None:
        """Forget the gradients of a step that was begun and not finished."""
        self.micro = 0
        self.zero.zero_grad(set_to_none=True)
        for held in (self.zero.averaged_gradients, self.zero.all_grad_tensors):
            for group in held:
                held[group] = None

    def grad_norm(self) -> Tensor | None:
        """Norm of the last step's gradients before clipping, inf where they overflowed."""
        norm = self._engine.get_global_grad_norm()
        return None if norm is None else torch.as_tensor(norm, device=self.groups[0][0].device)


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
        """The raw model's by the names that DDP gives; a moving average looks for them."""
        return {f"module.{name}": value for name, value in self.module.state_dict().items()}

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


class UnusedParameters:
    """Trained parameters without gradient on any rank so far: torch's optimizers pass them over.

    In ZeRO's flat shard their gradient is zero, by which Adam leaves them where they are, but for
    weight decay.
    """

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self._trained = {n: p for n, p in enumerate(parameters) if p.requires_grad}
        self._none_left = False
        self.used: set[int] = set()  # numbers of those that have had a gradient on this rank
        for number, parameter in self._trained.items():
            parameter.register_hook(lambda grad, number=number: self.used.add(number))

    def numbers(self) -> set[int]:
        """Numbers of those parameters; a collective call."""
        device = next(iter(self._trained.values())).device
        used = torch.tensor([n in self.used for n in self._trained], device=device).int()
        dist.all_reduce(used)
        return {n for n, ranks in zip(self._trained, used.tolist(), strict=True) if not ranks}

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """Put unused parameters back to their values before the step inside."""
        unused = [] if self._none_left else [self._trained[n] for n in self.numbers()]
        self._none_left = not unused
        before = [p.detach().clone() for p in unused]
        yield
        with torch.no_grad():
            for parameter, value in zip(unused, before, strict=True):
                parameter.copy_(value)
