"""The glue that a patch inserts into a recipe: flags, attach, add, log.

    from mto_tools import recipe as mto

    mto.add_arguments(parser, preset="mae")                    # where the recipe makes its parser
    mto.attach(model, model.decoder_blocks, num_prefix_tokens=1, output_dir=args.output_dir)
    loss = mto.add(loss, mask, step=step)                      # where its own loss is made
    record.update(mto.log())                                   # where it logs

Without `--mto` every call is the identity: nothing is hooked, computed, written or drawn from a
random number generator. The flags are kept here and not in the recipe's namespace, because three of
the four recipes store that namespace in every checkpoint.

One process trains one model, so the attached state is the module's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mto_core import MaskedTokenOptimization, MTOTerms, TokenTrace
from mto_tools import ds
from mto_tools.recipe.files import RunFiles
from mto_tools.recipe.micro import MicroBatches
from mto_tools.recipe.rng import checksum
from mto_tools.recipe.settings import Settings, add_arguments, defaults, settle

__all__ = ["add", "add_arguments", "attach", "defaults", "log"]

_TERMS = ("sparsity", "singularity", "ranking")
_SCALARS = ("loss", "total", *_TERMS, "diagonal_mass", "masked_mass")

_run: _Run | None = None


def attach(
    model: nn.Module,
    *blocks: Iterable[nn.Module],
    num_prefix_tokens: int = 0,
    output_dir: str | Path | None = None,
    preset: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Watch the blocks that hold mask tokens. Call it before DDP, DeepSpeed or `torch.compile`.

    Args:
        model: The module whose forward pass makes the loss; its call arms the trace, in training
            mode and with gradients enabled only.
        *blocks: The transformer blocks in order. Several lists (BootMAE's two decoders) are
            averaged.
        num_prefix_tokens: Class tokens in front of the patch tokens.
        output_dir: Where rank 0 writes `mto.jsonl` and the affinity maps; `None` writes nothing.
        preset: This recipe's preset, where only now it is known which it is.
        settings: Options from elsewhere than the command line, by field name of `Settings`
            (any case), as a yacs node gives them.
    """
    global _run
    asked = settle(preset, settings)
    if _run is not None:
        _run.close()
    _run = _Run(model, blocks, num_prefix_tokens, output_dir, asked) if asked.on else None


def add(
    loss: Tensor, mask: Tensor, *, step: int | None = None, micro_batches: int | None = None
) -> Tensor:
    """Return `loss` plus the weighted MTO terms; `loss` itself when MTO is off or only observes.

    Args:
        loss: The recipe's own loss L_ss, a scalar with history, not yet divided by `micro_batches`.
        mask: `[B, N]` or `[B, h, w]`, bool or numbers, 1 = masked, in image order.
        step: Optimizer step, counted from 1 and equal for all micro batches of a step. `None`
            counts calls, which forgets the past on resume: pass it where there is a warm-up.
            Micro batches left over at the end of an epoch may have the next step's number: of more
            than `micro_batches` with one number, the last count.
        micro_batches: Micro batches per optimizer step; `None` for a recipe that knows none, so
            that there is one, or as many as DeepSpeed's configuration brings.
    """
    if _run is None:
        return loss
    return _run.add(loss, mask, step, ds.accumulation() if micro_batches is None else micro_batches)


def log() -> dict[str, float]:
    """The newest L_ss, terms and H by depth, under `mto_*` names; empty when MTO is off."""
    return {} if _run is None else _run.log()


class _Run:
    """Everything there is while MTO is on."""

    def __init__(
        self,
        model: nn.Module,
        blocks: tuple[Iterable[nn.Module], ...],
        num_prefix_tokens: int,
        output_dir: str | Path | None,
        settings: Settings,
    ) -> None:
        self.settings = settings
        self.config = settings.config()
        self.observes = not any(self.config.weights.values())
        device = next(model.parameters()).device
        groups = [list(group) for group in blocks]
        self.depths = len(groups[0]) + 1
        self.traces = [TokenTrace(group, num_prefix_tokens) for group in groups]
        self.objectives = [MaskedTokenOptimization(self.config).to(device) for _ in groups]
        self.arming = model.register_forward_pre_hook(_Arm(self.traces))
        self.files = RunFiles(Path(output_dir)) if output_dir and _rank() == 0 else None
        self.calls = 0
        self.step: int | None = None
        self.micro = MicroBatches(self.objectives)
        self.ratios: dict[str, float] = {}
        self.rng = ""

    def close(self) -> None:
        self.arming.remove()
        for trace in self.traces:
            trace.close()

    def add(self, loss: Tensor, mask: Tensor, step: int | None, micro_batches: int) -> Tensor:
        step = self.calls // micro_batches + 1 if step is None else step
        self.calls += 1
        if step != self.step:
            self._begin(step)
        mask = mask.detach() != 0
        asked = {
            "step": step,
            "loss": loss if self.config.balance is not None else None,
            "diagnostics": self._logs(step),
        }
        pairs = list(zip(self.objectives, self.traces, strict=True))
        self.micro.before()
        terms = [mto(trace.tokens_by_depth, mask, **asked) for mto, trace in pairs]
        total = torch.stack([t.total for t in terms]).mean()
        row = torch.stack([_row(loss, t) for t in terms]).mean(0)
        complete = self.micro.keep(row, micro_batches)
        if complete and self.files:
            self._look(self.files, loss, mask, step)
        for trace in self.traces:
            trace.disarm()
            trace.clear()
        if complete:  # for now: if left-overs were among them, more come, and the line is replaced
            self._end(step)
        return loss if self.observes else loss + total

    def log(self) -> dict[str, float]:
        if not self.micro.rows:
            return {}
        values = _plain(self.micro.rows[-1], self.depths)
        by_depth = {f"mto_h{i:02d}": h for i, h in enumerate(values["heterogeneity"])}
        return {f"mto_{name}": values[name] for name in ("loss", *_TERMS, "total")} | by_depth

    def _begin(self, step: int) -> None:
        first = self.step is None
        self.step, self.ratios = step, {}
        self.micro.clear()
        if not first:
            return
        kept = self.files.start(step, self.settings, self.config) if self.files else None
        if self.config.balance is not None:
            for number, mto in enumerate(self.objectives):
                _restore(mto, kept[number] if kept else {})

    def _logs(self, step: int) -> bool:
        return step == 1 or step % self.settings.log_every == 0 or self._compares(step)

    def _compares(self, step: int) -> bool:
        every = self.settings.grad_every
        return bool(every) and (step == 1 or step % every == 0)

    def _look(self, files: RunFiles, loss: Tensor, mask: Tensor, step: int) -> None:
        """What rank 0 measures on the last micro batch of some steps only; the first may be left
        over from the epoch before."""
        if self._logs(step):
            self.rng = checksum(mask)
        pairs = list(zip(self.objectives, self.traces, strict=True))
        if self._compares(step):
            found = [m.grad_ratios(t.tokens_by_depth, mask, loss=loss) for m, t in pairs]
            self.ratios = {name: sum(f[name] for f in found) / len(found) for name in found[0]}
        if step in self.settings.affinity_steps:
            files.save_affinity(step, self.traces[0].tokens_by_depth, mask)

    def _end(self, step: int) -> None:
        if self._logs(step):
            row = torch.stack(self.micro.rows).mean(0)
            if dist.is_available() and dist.is_initialized():
                dist.all_reduce(row)
                row /= dist.get_world_size()
            if self.files:
                record = {"step": step, **_plain(row, self.depths), "rng": self.rng}
                self.files.log.write(record | ({"grad_ratio": self.ratios} if self.ratios else {}))
        if self.files and self.config.balance is not None and step % self.config.balance_every == 0:
            states = [
                {name: value.tolist() for name, value in mto.state_dict().items()}
                for mto in self.objectives
            ]
            self.files.balance.write({"step": step, "state": states})


class _Arm:
    """Pre-hook of the whole model. A copy of the model (EMA, teacher) must not arm our traces."""

    def __init__(self, traces: list[TokenTrace]) -> None:
        self.traces = traces

    def __call__(self, model: nn.Module, inputs: Any) -> None:
        if model.training and torch.is_grad_enabled():
            for trace in self.traces:
                trace.arm()

    def __deepcopy__(self, memo: dict[int, Any]) -> _Arm:
        return _Arm([])

    def __reduce__(self) -> tuple[type[_Arm], tuple[list[TokenTrace]]]:
        return _Arm, ([],)


def _row(loss: Tensor, terms: MTOTerms) -> Tensor:
    """All that is logged in one tensor, so that reading it waits for the device once."""
    missing = torch.full((), torch.nan, device=loss.device)
    found = {"loss": loss} | {name: getattr(terms, name) for name in _SCALARS[1:]}
    scalars = [missing if value is None else value for value in found.values()]
    weights = [torch.as_tensor(terms.weights[name], device=loss.device) for name in _TERMS]
    norms = terms.heterogeneity.new_empty(0) if terms.token_norm is None else terms.token_norm
    first = torch.stack([x.detach().double() for x in (*scalars, *weights)])
    return torch.cat([first, terms.heterogeneity.double(), norms.double()])


def _plain(row: Tensor, depths: int) -> dict[str, Any]:
    """`_row` as numbers by name."""
    values = iter(row.tolist())
    named: dict[str, Any] = {name: next(values) for name in _SCALARS}
    named["weights"] = {name: next(values) for name in _TERMS}
    rest = list(values)
    return named | {"heterogeneity": rest[:depths], "token_norm": rest[depths:]}


def _restore(mto: MaskedTokenOptimization, state: Mapping[str, list[float]]) -> None:
    """Put back a balance state that rank 0 read, on all ranks."""
    for name, buffer in mto.state_dict().items():
        if name in state:
            buffer.copy_(torch.tensor(state[name]))
        if dist.is_available() and dist.is_initialized():
            dist.broadcast(buffer, 0)


def _rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
