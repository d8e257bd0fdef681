"""Files that a run with MTO leaves beside the recipe's own; rank 0 writes them.

| file                  | content                                                                |
|-----------------------|------------------------------------------------------------------------|
| mto.jsonl             | loss, terms, weights, H and token norms by depth, every few steps      |
| mto.replaced.jsonl    | lines of steps that a resumed run has made anew                        |
| mto-affinity-STEP.npz | affinity maps of one image at every depth                              |
| mto-config.json       | the settings of the run                                                |
| mto-balance.jsonl     | with `--mto_balance`: the running gradient norms, for an exact resume  |

Every line is JSON: a value that was not measured, or is not finite, is null.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mto_core import affinity


class RunFiles:
    """The files of one run.

    Args:
        folder: The recipe's output folder; made if missing.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.log = JsonLines(folder / "mto.jsonl")
        self.balance = JsonLines(folder / "mto-balance.jsonl")

    def number(self, step: int, steps_per_epoch: int | None) -> int:
        """The number in this run of the step that the recipe counts as `step`.

        Recipes count epochs times steps per epoch, which changes with the batch or the number of
        GPUs. The checkpoint stands at (step - 1) / steps_per_epoch epochs; the last line before
        that point says how many steps the run had made.
        """
        if step == 1 or steps_per_epoch is None:
            return step
        epoch = (step - 1) / steps_per_epoch
        for line in reversed(self.log.read()):
            if line.get("epoch") is not None and line["epoch"] <= epoch + 1e-9:
                since = (epoch - line["epoch"]) * line["steps_per_epoch"]
                return int(line["step"]) + round(since) + 1
        return step

    def start(self, step: int, *settings: Any) -> list[dict[str, Any]] | None:
        """Make ready for a run that begins at `step`; return the balance states it goes on from."""
        self._check_settings(
            step, {k: v for s in settings for k, v in dataclasses.asdict(s).items()}
        )
        self.log.start(step)
        last = self.balance.start(step)
        return last["state"] if last else None

    def save_affinity(self, step: int, tokens_by_depth: Sequence[Tensor], mask: Tensor) -> None:
        """Write `mto-affinity-STEP.npz`; see `save_affinity`."""
        save_affinity(self.folder / f"mto-affinity-{step:06d}.npz", tokens_by_depth, mask)

    def _check_settings(self, step: int, settings: dict[str, Any]) -> None:
        """Keep the settings, and say so when a resumed run goes on with others."""
        path = self.folder / "mto-config.json"
        text = json.dumps(settings, indent=1) + "\n"
        before, now = _read_object(path), json.loads(text)
        changed = [k for k in now if before and before.get(k) != now[k]]
        if step > 1 and changed:
            print(
                f"mto: resumed at step {step} with other settings than before: "
                + ", ".join(f"{k} {before.get(k)} -> {now[k]}" for k in changed),
                file=sys.stderr,
            )
        _write_whole(path, text)


class JsonLines:
    """One JSON object per line, each with a `step`; survives a kill and a resume.

    A resumed run repeats the steps after its checkpoint, so the lines from the first repeated step
    on move to `NAME.replaced.jsonl`: a newer checkpoint may contain them. A run that starts from
    step 1 sets an older file aside as `NAME.1.jsonl`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._step: int | None = None  # of the last line written
        self._begin = 0  # where that line begins

    def start(self, step: int) -> dict[str, Any] | None:
        """Make the file ready for a run whose first step is `step`; return the last line kept."""
        self._step = None
        if not self.path.exists():
            return None
        if step == 1:
            self._set_aside()
            return None
        records = self.read()
        kept = [record for record in records if record["step"] < step]
        if replaced := [record for record in records if record["step"] >= step]:
            with self.path.with_name(f"{self.path.stem}.replaced.jsonl").open("a") as file:
                file.write("".join(map(_line, replaced)))
        _write_whole(self.path, "".join(map(_line, kept)))
        return kept[-1] if kept else None

    def read(self) -> list[dict[str, Any]]:
        """All records, without a line that a kill has cut short."""
        if not self.path.exists():
            return []
        return [r for r in map(_parse, self.path.read_text().splitlines()) if r is not None]

    def write(self, record: dict[str, Any]) -> None:
        """Append one line, whole or not at all in the eyes of `start`.

        A line of the same step as the last one replaces it.
        """
        with self.path.open("a") as file:
            if record["step"] != self._step:
                self._step, self._begin = record["step"], file.tell()
            file.truncate(self._begin)
            file.write(_line(record))

    def _set_aside(self) -> None:
        if self.path.stat().st_size == 0:
            return
        number = 1
        while (old := self.path.with_name(f"{self.path.stem}.{number}.jsonl")).exists():
            number += 1
        self.path.replace(old)


def _line(record: dict[str, Any]) -> str:
    return json.dumps(_finite(record), allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """The value with null for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write_whole(path: Path, text: str) -> None:
    """Replace a file in one step: a kill leaves the old one or the new one."""
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    part.replace(path)


def _read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is none, or what a kill has left of one."""
    try:
        found = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _parse(line: str) -> dict[str, Any] | None:
    """The record, or `None` for a line that a kill cut short."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError:
        return None
    return record if isinstance(record, dict) and "step" in record else None


def save_affinity(path: Path, tokens_by_depth: Sequence[Tensor], mask: Tensor) -> None:
    """Save the first image's affinity maps (Figure 2) as `.npz`.

    Arrays: `affinity` float16 `[L+1, N, N]`, rows and columns ordered masked then visible;
    `num_masked` int; `mask` bool `[N]`.

    Raises:
        ValueError: The depths hold different numbers of tokens (hierarchical models).
    """
    if len({tokens.shape[1] for tokens in tokens_by_depth}) > 1:
        raise ValueError(
            "affinity maps need the same number of tokens at every depth, but this model has "
            f"{[tokens.shape[1] for tokens in tokens_by_depth]}; leave --mto_affinity_steps out"
        )
    first = mask[:1].flatten(1)
    maps = [affinity(tokens[:1].detach(), first)[0] for tokens in tokens_by_depth]
    np.savez_compressed(
        path,
        affinity=np.stack([m.float().cpu().numpy().astype(np.float16) for m in maps]),
        num_masked=int(first.sum()),
        mask=first[0].cpu().numpy(),
    )
