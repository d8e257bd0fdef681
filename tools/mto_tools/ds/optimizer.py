"""The optimizer as the recipe sees it, over one that ZeRO has sharded."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from deepspeed.utils import (
    lazy_init_hp_params_optimizer_state,
    safe_get_full_optimizer_state,
    safe_set_full_optimizer_state,
)
from torch import Tensor, nn

from mto_tools.ds.engine import Engine


class Optimizer:
    """`param_groups`, `step`, `zero_grad` and a state dict in the recipe's own format.

    A checkpoint therefore goes on under DDP, or on another number of GPUs.

    Args:
        engine: Runs the step.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine, self._groups = engine, engine.groups
        self._gathered: dict[str, Any] | None = None

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The live groups, for schedules. Their `params` are flat shards."""
        groups: list[dict[str, Any]] = self._engine.zero.param_groups
        return groups

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of an unfinished step; after a step there are none."""
        engine = self._engine
        if engine.divisor > 1 and engine.micro == engine.config.accumulation - 1:
            return  # a recipe that knows no accumulation clears before each backward
        if engine.micro:
            engine.drop()

    def step(self, closure: None = None) -> None:
        """One step, as `Engine.step`."""
        self._engine.step()

    def gather(self) -> None:
        """Collect the state for the next `state_dict()`; a collective call."""
        self._gathered = self._collect()

    def state_dict(self) -> dict[str, Any]:
        """The state in torch's format: rank 0's on the CPU, empty on other ranks.

        A collective call, unless `gather` came before.
        """
        state, self._gathered = self._gathered, None
        return self._collect() if state is None else state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take a state in torch's format, of any number of ranks; each keeps its shard.

        Raises:
            ValueError: The state is of other groups or parameters, or ZeRO cannot hold it.
        """
        zero, saved = self._engine.zero, state["param_groups"]
        sizes = [[len(group) for group in self._groups], [len(g["params"]) for g in saved]]
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"the optimizer state has groups of {sizes[1]} parameters, the model has {sizes[0]}"
            )
        for live, group, flat, parameters in zip(
            self.param_groups,
            saved,
            zero.single_partition_of_fp32_groups,
            self._groups,
            strict=True,
        ):
            live.update({k: v for k, v in group.items() if k != "params"})
            entries = {n: state["state"][n] for n in group["params"] if state["state"].get(n)}
            self._engine.unused.used |= entries.keys()
            by_parameter = zip(parameters, group["params"], strict=True)
            self._scatter(flat, [(p, entries[n]) for p, n in by_parameter if n in entries])
        zero.refresh_fp32_params()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._engine.zero.optimizer, name)

    @torch.no_grad()
    def _collect(self) -> dict[str, Any]:
        """Whole parameters one by one, since a GPU has no room for all of their state."""
        zero, unused = self._engine.zero, self._engine.unused.numbers()
        state: dict[int, dict[str, Any]] = {}
        groups: list[dict[str, Any]] = []
        first = 0
        for live, flat, parameters in zip(
            self.param_groups, zero.single_partition_of_fp32_groups, self._groups, strict=True
        ):
            numbered = dict(enumerate(parameters, start=first))
            first += len(parameters)
            settings = {key: value for key, value in live.items() if key != "params"}
            groups.append(settings | {"params": list(numbered)})
            shard = zero.optimizer.state.get(flat)
            if not shard:
                continue
            self._link(flat, parameters)
            for number, parameter in numbered.items():
                if parameter.requires_grad and number not in unused:
                    entry = {
                        key: safe_get_full_optimizer_state(parameter, key).cpu()
                        if torch.is_tensor(value) and value.shape == flat.shape
                        else _copy(value)
                        for key, value in shard.items()
                    }
                    if dist.get_rank() == 0:
                        state[number] = entry
        return {"state": state, "param_groups": groups}

    @torch.no_grad()
    def _scatter(self, flat: Tensor, entries: list[tuple[nn.Parameter, dict[str, Any]]]) -> None:
        inner = self._engine.zero.optimizer.state
        inner.pop(flat, None)
        if not entries:
            return
        shard: dict[str, Any] = {}
        for key, value in entries[0][1].items():
            if torch.is_tensor(value) and value.ndim:
                shard[key] = torch.zeros_like(flat)
                continue
            shard[key] = _copy(value)
            values = {float(entry[key]) for _, entry in entries}
            if len(values) > 1:
                raise ValueError(
                    f"parameters of one group have different {key!r} ({sorted(values)}): ZeRO "
                    "keeps one for all"
                )
        inner[flat] = shard
        self._link(flat, [parameter for parameter, _ in entries])
        for parameter, entry in entries:
            for key, value in entry.items():
                if torch.is_tensor(value) and value.ndim:
                    safe_set_full_optimizer_state(parameter, value.to(flat), key)

    def _link(self, flat: Tensor, parameters: list[nn.Parameter]) -> None:
        """Tell DeepSpeed where in the shard each parameter's state stands."""
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        lazy_init_hp_params_optimizer_state(trained, flat, self._engine.zero.optimizer.state)


def _copy(value: Any) -> Any:
    return value.clone() if torch.is_tensor(value) else value
