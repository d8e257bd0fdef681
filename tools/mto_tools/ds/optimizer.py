"""The optimizer as the recipe sees it, over one that ZeRO has sharded."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mto_tools.ds.engine import Engine

PIECE = 1 << 24  # elements that a rank sends at once, 64 MiB


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
            ValueError: The state is of other groups or parameters.
        """
        saved = state["param_groups"]
        if [len(group["params"]) for group in saved] != [len(group) for group in self._groups]:
            raise ValueError(
                "the optimizer state has groups of "
                f"{[len(group['params']) for group in saved]} parameters, the model has "
                f"{[len(group) for group in self._groups]}"
            )
        for live, group, flat, parameters in zip(
            self.param_groups, saved, self._flats(), self._groups, strict=True
        ):
            live.update({k: v for k, v in group.items() if k != "params"})
            entries = [state["state"].get(index) for index in group["params"]]
            self._engine.unused.mark_used(
                index for index in group["params"] if state["state"].get(index)
            )
            self._scatter(flat, parameters, entries)
        self._engine.zero.refresh_fp32_params()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._engine.zero.optimizer, name)

    def _flats(self) -> list[Tensor]:
        flats: list[Tensor] = self._engine.zero.single_partition_of_fp32_groups
        return flats

    @torch.no_grad()
    def _collect(self) -> dict[str, Any]:
        first = dist.get_rank() == 0
        inner = self._engine.zero.optimizer.state
        unused = self._engine.unused.on_all_ranks()
        state: dict[int, dict[str, Any]] = {}
        groups, index = [], 0
        for live, flat, parameters in zip(
            self.param_groups, self._flats(), self._groups, strict=True
        ):
            indices = list(range(index, index + len(parameters)))
            index += len(parameters)
            groups.append({k: v for k, v in live.items() if k != "params"} | {"params": indices})
            shard = inner.get(flat, {})
            sharded = {k for k, v in shard.items() if torch.is_tensor(v) and v.shape == flat.shape}
            whole = {k: _gather(shard[k]) if k in sharded else shard[k] for k in shard}
            end = 0
            for number, parameter in zip(indices, parameters, strict=True):
                if not parameter.requires_grad:
                    continue  # not in the shards
                begin, end = end, end + parameter.numel()
                if first and shard and not unused[number]:
                    state[number] = {
                        k: _copy(v[begin:end].view_as(parameter) if k in sharded else v)
                        for k, v in whole.items()
                    }
        return {"state": state, "param_groups": groups}

    @torch.no_grad()
    def _scatter(
        self, flat: Tensor, parameters: list[nn.Parameter], entries: list[dict[str, Any] | None]
    ) -> None:
        known = [entry for entry in entries if entry]
        inner = self._engine.zero.optimizer.state
        if not known:
            inner.pop(flat, None)
            return
        shard: dict[str, Any] = {}
        for key, value in known[0].items():
            if torch.is_tensor(value) and value.ndim:
                shard[key] = torch.zeros_like(flat)
            else:
                values = {float(entry[key]) for entry in known}
                if len(values) > 1:
                    raise ValueError(
                        f"parameters of one group have different {key!r} ({sorted(values)}): "
                        "ZeRO keeps one for all"
                    )
                shard[key] = value.clone() if torch.is_tensor(value) else value
        for parameter, entry in zip(parameters, entries, strict=True):
            for key, value in (entry or {}).items():
                place = _place(parameter)
                if place and torch.is_tensor(value) and value.ndim:
                    there, here = place
                    shard[key][there] = value.flatten()[here].to(flat)
        inner[flat] = shard


def _place(parameter: nn.Parameter) -> tuple[slice, slice] | None:
    """Where this rank's part of a parameter is: in its flat shard, and in the flat parameter."""
    mapping = parameter._hp_mapping  # type: ignore[attr-defined]
    if mapping is None:
        return None
    there, here = mapping.hp_fragment_address, mapping.lp_fragment_address
    return slice(there.start, there.start + there.numel), slice(here.start, here.start + here.numel)


def _gather(shard: Tensor) -> Tensor:
    """The shards of all ranks one behind the other, on rank 0's CPU; empty on other ranks.

    In pieces, since rank 0 has no room for all of them beside the model and its activations.
    """
    ranks, first = dist.get_world_size(), dist.get_rank() == 0
    full = torch.empty((ranks, shard.numel()) if first else 0, dtype=shard.dtype)
    for begin in range(0, shard.numel(), PIECE):
        piece = shard[begin : begin + PIECE]
        pieces = [torch.empty_like(piece) for _ in range(ranks)] if first else None
        dist.gather(piece, pieces, dst=0)
        for rank, found in enumerate(pieces or []):
            full[rank, begin : begin + PIECE] = found
    return full.flatten()


def _copy(value: Any) -> Any:
    return value.clone() if torch.is_tensor(value) else value
