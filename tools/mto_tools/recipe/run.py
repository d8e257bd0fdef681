"""One attached training run: hooks on the model, terms by step, and the log."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mto_core import MaskedTokenOptimization, MTOConfig, MTOTerms, TokenTrace
from mto_core.checks import TERMS, check_mask
from mto_tools.errors import RefusedError
from mto_tools.recipe.files import RunFiles
from mto_tools.recipe.measure import checksum, save_affinity, warn_of_order
from mto_tools.recipe.micro import MicroBatches
from mto_tools.recipe.notices import PullWatch, Schedule, describe
from mto_tools.recipe.rows import by_name, needed, plain, row_of
from mto_tools.recipe.settings import Settings


class Run:
    """State of the attached model; the arguments are those of `attach` and the settings."""

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
        self.rank, self.world = _place()
        self.traces = [TokenTrace(group, num_prefix_tokens) for group in groups]
        self.objectives = [MaskedTokenOptimization(self.config).to(device) for _ in groups]
        self.hooks = [
            model.register_forward_pre_hook(partial(_arm, id(model), self.traces)),
            model.register_forward_hook(partial(_disarm, self.traces)),
        ]
        self.files = RunFiles(Path(output_dir)) if output_dir and self.rank == 0 else None
        self.calls = 0
        self.step: int | None = None
        self.offset = 0  # of the run's step to the recipe's
        self.steps_per_epoch: int | None = None
        self.first_logged: int | None = None
        self.meters = [mto.balance for mto in self.objectives if mto.balance is not None]
        self.micro = MicroBatches(self.meters)
        self.fresh: dict[str, Tensor] = {}  # what the newest micro batch measured, until it is read
        self.newest: dict[str, float] = {}  # the same, read
        self.known: dict[str, float] = {}  # the newest value of all that was ever measured
        self.clock: list[tuple[int, float]] = []  # step and time of the last two logged steps
        self.watch = PullWatch()
        self.schedule = Schedule(self.config) if self.rank == 0 else None
        if self.rank == 0:
            print(describe(self.settings, self.config, output_dir), flush=True)

    def close(self) -> None:
        """Remove all hooks."""
        for hook in self.hooks:
            hook.remove()
        for trace in self.traces:
            trace.close()
        if self.schedule:
            self.schedule.close()

    def add(
        self,
        loss: Tensor,
        mask: Tensor,
        step: int | None,
        micro_batches: int,
        batches_per_epoch: int | None,
    ) -> Tensor:
        """See `mto_tools.recipe.add`."""
        if not isinstance(loss, Tensor):
            raise TypeError(f"loss must be a tensor with its graph, got {type(loss).__name__}")
        if loss.numel() != 1:
            raise ValueError(
                f"loss must be a scalar, got shape {list(loss.shape)}: pass loss.mean()"
            )
        if micro_batches < 1:
            raise ValueError(f"micro_batches must be at least 1, got {micro_batches}")
        step = self.calls // micro_batches + 1 if step is None else step
        self.calls += 1
        if not isinstance(mask, Tensor):
            check_mask(mask)  # raises, with the mend
        mask = mask.detach() != 0
        if self.step is None:
            step = self._start(step, micro_batches, batches_per_epoch, loss.device)
            warn_of_order(self.traces[0].tokens_by_depth[0], mask.flatten(1))
        else:
            step += self.offset
        if step != self.step:
            self.step = step
            self.micro.clear()
            self.clock = self.clock[-1:]
        scalar = loss.reshape(())
        asked: dict[str, Any] = {
            "step": step,
            "loss": scalar if self.meters else None,
            "diagnostics": self._logs(step),
        }
        pairs = list(zip(self.objectives, self.traces, strict=True))
        self.micro.before()
        terms = [mto(trace.tokens_by_depth, mask, **asked) for mto, trace in pairs]
        total = torch.stack([t.total for t in terms]).mean()
        row = None
        if asked["diagnostics"]:
            row = torch.stack([row_of(scalar, t) for t in terms]).mean(0)
            self.fresh = by_name(row, self.depths)
        else:
            active = self.objectives[0].active_at(step)
            self.fresh = {"mto_loss": scalar, **needed(terms, active)}
        if self.micro.keep(row, micro_batches):
            self._end(scalar, mask, step, terms)
        for trace in self.traces:
            trace.clear()
        return loss if self.observes else loss + total

    def log(self, new: bool) -> dict[str, float]:
        """See `mto_tools.recipe.log`."""
        if self.fresh:
            values = torch.stack([value.detach().double() for value in self.fresh.values()])
            self.newest = dict(zip(self.fresh, values.tolist(), strict=True))
            self.known |= self.newest
            self.fresh = {}
        return dict(self.newest if new else self.known)

    def _start(
        self, step: int, micro_batches: int, batches_per_epoch: int | None, device: torch.device
    ) -> int:
        """Read what an earlier process has left; return the run's number of the first step."""
        if _place() != (self.rank, self.world):
            raise RefusedError(
                "mto.attach was called before the process group was made: each rank would log, and "
                "none would average",
                hint="call init_process_group first, then mto.attach",
            )
        if batches_per_epoch is not None:
            self.steps_per_epoch = batches_per_epoch // micro_batches
            if self.steps_per_epoch == 0:
                raise RefusedError(
                    f"a step takes {micro_batches} micro batches, but an epoch has "
                    f"{batches_per_epoch}: no optimizer step would ever be made",
                    hint="lower the accumulation or the batch, or give more images",
                )
        first, logged = step, False
        if self.files:
            first = self.files.number(step, self.steps_per_epoch)
            # A line with the new count, so that a later resume finds where it began.
            before = [line.get("steps_per_epoch") for line in self.files.log.read()[-1:]]
            logged = step > 1 and before != [self.steps_per_epoch]
        shared = torch.tensor([first, int(logged)], device=device)
        if self.world > 1:
            dist.broadcast(shared, 0)
        first, logged = shared.tolist()
        if logged and self.steps_per_epoch is not None:
            self.first_logged = first
        self.offset = first - step
        settings = asdict(self.settings) | asdict(self.config)
        defaults = asdict(Settings()) | asdict(MTOConfig())
        kept = self.files.start(first, settings, defaults) if self.files else []
        for index, mto in enumerate(self.objectives):
            state = kept[index] if kept else {}  # that rank 0 has read
            for name, buffer in mto.state_dict().items():
                if name in state:
                    buffer.copy_(torch.tensor(state[name]))
                if self.world > 1:
                    dist.broadcast(buffer, 0)
        return first

    def _logs(self, step: int) -> bool:
        due = step in (1, self.first_logged) or step % self.settings.log_every == 0
        return due or self._compares(step)

    def _compares(self, step: int) -> bool:
        every = self.settings.grad_every
        return bool(every) and (step == 1 or step % every == 0)

    def _end(self, loss: Tensor, mask: Tensor, step: int, terms: list[MTOTerms]) -> None:
        """Log a step whose micro batches are complete.

        If some were left over from an epoch before, more come, and the step is logged again.
        """
        due = bool(self.meters) and bool(terms[0].total.requires_grad) and self.meters[0].due(step)
        measured = self._measure_on_rank0(self.files, loss, mask, step) if self.files else {}
        if self._logs(step):
            row = torch.stack([row for row in self.micro.rows if row is not None]).mean(0)
            if self.world > 1:
                dist.all_reduce(row)
                row /= self.world
            if self.files:
                record = {"step": step, **plain(row, self.depths), **measured}
                self.files.log.write(record | self._progress(step))
        if self.schedule:
            self._tell(self.schedule, step, terms, measured.get("grad_ratio"), due)
        if self.files and due:
            states = [
                {name: value.tolist() for name, value in mto.state_dict().items()}
                for mto in self.objectives
            ]
            self.files.balance.write({"step": step, "state": states})

    def _tell(
        self,
        schedule: Schedule,
        step: int,
        terms: list[MTOTerms],
        ratios: dict[str, float] | None,
        due: bool,
    ) -> None:
        """What the run's own log is told of this step; waits for the device if there is news."""
        if ratios is None and due:
            each = torch.stack([meter.ratios() for meter in self.meters]).mean(0).tolist()
            ratios = dict(zip(TERMS, each, strict=True))
        calibrated = not schedule.calibrated and any(meter.done for meter in self.meters)
        weights: dict[str, float] = {}
        if ratios is not None or calibrated:
            weights = {n: sum(float(t.weights[n]) for t in terms) / len(terms) for n in TERMS}
        if ratios is not None:
            pulls = {name: weights[name] * ratio for name, ratio in ratios.items()}
            self.watch.see(step, pulls, self.config)
        schedule.see(step, weights if calibrated else None)

    def _measure_on_rank0(
        self, files: RunFiles, loss: Tensor, mask: Tensor, step: int
    ) -> dict[str, Any]:
        """Measurements of some steps, on the last micro batch; the first may be left over."""
        found: dict[str, Any] = {"rng": checksum(mask)} if self._logs(step) else {}
        if self._compares(step):
            pairs = zip(self.objectives, self.traces, strict=True)
            each = [mto.grad_ratios(t.tokens_by_depth, mask, loss=loss) for mto, t in pairs]
            found["grad_ratio"] = {
                n: sum(ratios[n] for ratios in each) / len(each) for n in each[0]
            }
        if step in (self.settings.affinity_steps or ()):
            file = files.folder / f"mto-affinity-{step:06d}.npz"
            save_affinity(file, self.traces[0].tokens_by_depth, mask)
        return found

    def _progress(self, step: int) -> dict[str, Any]:
        """Time a step since the line before, and place in the epochs."""
        more: dict[str, Any] = {}
        now = time.perf_counter()
        if self.clock and self.clock[0][0] < step:
            then, clock = self.clock[0]
            more["step_ms"] = round(1000 * (now - clock) / (step - then), 3)
        self.clock = [*self.clock[:1], (step, now)]
        if self.steps_per_epoch is not None:
            more["epoch"] = (step - self.offset) / self.steps_per_epoch
            more["steps_per_epoch"] = self.steps_per_epoch
        return more


def _arm(owner: int, traces: list[TokenTrace], model: nn.Module, inputs: Any) -> None:
    """Before the forward of the model; a copy of it (EMA, teacher) has this hook, and other ids."""
    if id(model) == owner and model.training and torch.is_grad_enabled():
        for trace in traces:
            trace.arm()


def _disarm(traces: list[TokenTrace], model: nn.Module, inputs: Any, output: Any) -> None:
    """Behind it: blocks that run later do so in no traced forward."""
    for trace in traces:
        trace.disarm()


def _place() -> tuple[int, int]:
    """Rank of this process, and the number of ranks."""
    there = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if there else (0, 1)
