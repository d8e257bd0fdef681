"""What a run says in its own log: what is on, what ended, and what outweighs the recipe."""

from __future__ import annotations

import atexit
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from mto_core import MTOConfig
from mto_tools.recipe.settings import Settings

PATIENCE = 3  # measurements in a row


def describe(settings: Settings, config: MTOConfig, output_dir: str | Path | None) -> str:
    """One line: what is on, with weights, places and schedule."""
    weights = ", ".join(f"{name} {weight:g}" for name, weight in config.weights.items())
    parts = [f"mto is on: preset {settings.preset or settings.recipe}", weights]
    if not any(config.weights.values()):
        parts.append("it observes and changes nothing")
    elif beyond := beyond_paper(config):
        parts.append(f"not as in the paper: {', '.join(beyond)}")
    if config.balance is not None:
        parts.append(f"weights follow the loss's gradient, ratio {config.balance:g}")
    if config.calibrate is not None:
        parts.append(
            f"weights are 0 until they are set from the first {config.calibrate_steps} steps, to "
            f"pull {config.calibrate:g} times as hard as the loss"
        )
    if config.warmup_steps:
        parts.append(f"warm-up {config.warmup_steps} steps")
    if config.off_after is not None:
        parts.append(f"off after step {config.off_after}")
    if output_dir:
        parts.append(f"a line every {settings.log_every} steps in {Path(output_dir, 'mto.jsonl')}")
    return "; ".join(parts)


def beyond_paper(config: MTOConfig) -> list[str]:
    """Where the weighted terms differ from the paper's: three terms, depth 0, raw logits."""
    weighted = [name for name, weight in config.weights.items() if weight > 0]
    found = []
    if config.sparsity and config.sparsity_depth:
        last = " (the last)" if config.sparsity_depth == -1 else ""
        found.append(f"sparsity at depth {config.sparsity_depth}{last}")
    found += [
        f"{name} on {scale} logits"
        for name in weighted
        if (scale := config.scale_of(name)) != "raw"
    ]
    found += [f"no {name}" for name in config.weights if name not in weighted]
    if config.off_after is not None:
        found.append("off before the end")
    return found


class PullWatch:
    """Warns once where a weighted term has pulled harder than the recipe's loss for some time."""

    def __init__(self) -> None:
        self._above: Counter[str] = Counter()
        self._said = False

    def see(self, step: int, pulls: Mapping[str, float], config: MTOConfig) -> None:
        """Take in one measurement: weight times gradient ratio, by term."""
        for name, pull in pulls.items():
            self._above[name] = self._above[name] + 1 if pull > 1 else 0
            if self._above[name] < PATIENCE or self._said:
                continue
            self._said = True
            modes = [mode for mode in ("balance", "calibrate") if getattr(config, mode) is not None]
            setting = modes[0] if modes else name
            mend = f"lower --mto_{setting} (MTO.{setting.upper()})"
            if not modes:
                mend += ", or let --mto_calibrate 0.1 (MTO.CALIBRATE) find the weight"
            print(
                f"mto: warning: at step {step} {name} pulls {pull:.3g} times as hard as the "
                f"recipe's own loss, and more than once as hard in {PATIENCE} measurements in a "
                f"row. The model learns this term first: {mend}",
                file=sys.stderr,
                flush=True,
            )


class Schedule:
    """Says when weights were set and went off, and at exit what the run was too short for."""

    def __init__(self, config: MTOConfig) -> None:
        self.config = config
        self.step = 0
        self.calibrated = config.calibrate is None or not any(config.weights.values())
        self._off = False
        atexit.register(self._end)

    def close(self) -> None:
        """The run is over, or another one begins."""
        atexit.unregister(self._end)
        self._end()

    def see(self, step: int, weights: Mapping[str, float] | None) -> None:
        """Take in a step; `weights` are given where a calibration has just set them."""
        self.step = step
        if weights is not None:
            self.calibrated = True
            named = ", ".join(f"{name} {weight:.3g}" for name, weight in weights.items())
            print(f"mto: at step {step} the weights are set: {named}", flush=True)
        off = self.config.off_after
        if off is not None and step > off and not self._off:
            self._off = True
            print(f"mto: off, for step {off} was the last with weights", flush=True)

    def _end(self) -> None:
        """Name what was still to come."""
        left = []
        if not self.calibrated:
            left.append("before the calibration had set the weights, so they were 0")
        if self.step < self.config.warmup_steps:
            left.append(f"within the warm-up of {self.config.warmup_steps} steps")
        off = self.config.off_after
        if off is not None and self.step <= off:
            left.append(f"before the weights went off after step {off}")
        if self.step and left:
            print(f"mto: ended at step {self.step}, {', '.join(left)}", file=sys.stderr, flush=True)
