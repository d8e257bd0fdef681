"""Files that a run with MTO leaves beside the recipe's own; rank 0 writes them.

| file                  | content                                                                |
|-----------------------|------------------------------------------------------------------------|
| mto.jsonl             | loss, terms, weights, H and token norms by depth, every few steps      |
| mto.replaced.jsonl    | lines of steps that a resumed run has made anew                        |
| mto-affinity-STEP.npz | affinity maps of one image at every depth                              |
| mto-config.jsonl      | the settings, a line for each start of the run                         |
| mto-balance.jsonl     | with `--mto_balance` or `--mto_calibrate`: measured gradient norms,    |
|                       | for an exact resume                                                    |

Every line is JSON: a value that was not measured, or is not finite, is null.
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any


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
        self.config = JsonLines(folder / "mto-config.jsonl")

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

    def start(
        self, step: int, settings: dict[str, Any], defaults: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """Make ready for a run that begins at `step`; return the balance states it goes on from.

        Says so where a resumed run goes on with other settings. A setting that did not exist when
        the run began had its default.
        """
        now = {"step": step, **json.loads(json.dumps(settings))}
        before = self.config.start(step)
        before = before and defaults | before
        self.config.write(now)
        changed = [k for k in settings if before and before.get(k) != now[k]]
        if before and changed:
            print(
                f"mto: resumed at step {step} with other settings than before: "
                + ", ".join(f"{k} {before.get(k)} -> {now[k]}" for k in changed),
                file=sys.stderr,
            )
        self.log.start(step)
        last = self.balance.start(step)
        return last["state"] if last else []


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
        records = self.read()
        if step == 1 and records:
            number = 1
            while (old := self.path.with_name(f"{self.path.stem}.{number}.jsonl")).exists():
                number += 1
            self.path.replace(old)
            return None
        kept = [record for record in records if record["step"] < step]
        if replaced := [record for record in records if record["step"] >= step]:
            with self.path.with_name(f"{self.path.stem}.replaced.jsonl").open("a") as file:
                file.write("".join(map(_line, replaced)))
        part = self.path.with_name(self.path.name + ".part")
        part.write_text("".join(map(_line, kept)))
        part.replace(self.path)  # in one step: a kill leaves the old file or the new one
        return kept[-1] if kept else None

    def read(self) -> list[dict[str, Any]]:
        """All records, without a line that a kill has cut short."""
        records = []
        for line in self.path.read_text().splitlines() if self.path.exists() else ():
            with contextlib.suppress(json.JSONDecodeError):
                records.append(json.loads(line))
        return [r for r in records if isinstance(r, dict) and "step" in r]

    def write(self, record: dict[str, Any]) -> None:
        """Append one line, whole or not at all in the eyes of `start`.

        A line of the same step as the last one replaces it.
        """
        with self.path.open("a") as file:
            if record["step"] != self._step:
                self._step, self._begin = record["step"], file.tell()
            file.truncate(self._begin)
            file.write(_line(record))


def _line(record: dict[str, Any]) -> str:
    """A record as JSON, in which NaN and infinity, that JSON does not have, are null."""
    finite = json.loads(json.dumps(record), parse_constant=lambda name: None)
    return json.dumps(finite) + "\n"
