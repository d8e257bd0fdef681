"""What a search found: a sentence, the flags, the file and the picture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from mto_tools.study.folder import JsonModel
from mto_tools.study.measures import Interval
from mto_tools.study.spec import Study, Value

RESULT, PICTURE = "result.json", "tune.svg"


class Tried(JsonModel):
    """A trial that ended."""

    number: int
    mto: dict[str, Value]  # options of MTO; {}: no term was on
    gain: float  # mean over seeds of (baseline - arm) / baseline, for a score where less is better
    early: bool  # it fell behind, and did not run all seeds


class Result(JsonModel):
    """`result.json`."""

    study: Study  # the baseline's arms, and the seeds of the search
    score: str
    baseline: str  # the arm that all trials are on top of
    trials: list[Tried]
    best: Tried | None  # None: no trial was better than the baseline
    gains: list[float]  # of the best one, by fresh seed
    interval: Interval | None  # 95 %, of their mean
    options: list[str]  # of MTO, for the recipe's script
    seconds: float  # of training
    versions: dict[str, str]

    @property
    def flags(self) -> list[str]:
        """Arguments of the recipe's script: the learning rate, and MTO where it was better."""
        return [*self.study.arms[self.baseline].arguments, *self.options]

    @property
    def sentence(self) -> str:
        """What can be said of the best trial."""
        tried = f"{len(self.trials)} trial{'s' if len(self.trials) > 1 else ''}"
        if self.best is None:
            return f"{tried}: none was better than the baseline. Leave MTO off here."
        found = f"{tried}: the best one gained {self.best.gain:+.1%} in the search's seeds."
        if not all(map(math.isfinite, self.gains)):
            return f"{found} A run with a fresh seed failed: these weights are not safe."
        fresh = (
            f"{found} {self.score}, {len(self.gains)} fresh seeds: {mean(self.gains):+.1%} better"
        )
        if self.interval is None:
            return f"{fresh}; too few seeds for an interval."
        low, high = self.interval
        shown = "" if low > 0 else " This shows harm." if high < 0 else " This shows no gain."
        return f"{fresh} (95 % interval {low:+.1%} to {high:+.1%}).{shown}"

    def write(self, folder: Path) -> None:
        """Write the file, and the picture: gains by trial, by weight of a term, in fresh seeds."""
        from matplotlib.figure import Figure

        self.save(folder / RESULT)
        figure = Figure(figsize=(10, 3), layout="constrained")
        by_trial, by_weight, fresh = figure.subplots(1, 3, width_ratios=(4, 4, 2), sharey=True)
        for early, face in ((False, "C0"), (True, "none")):
            some = {one.number: 100 * one.gain for one in self.trials if one.early == early}
            label = "ended early" if early else "all seeds"
            by_trial.scatter(*_points(some), facecolors=face, edgecolors="C0", label=label)
        by_trial.set(xlabel="trial; 0 is the recipe's preset", ylabel="% better than the baseline")
        by_trial.xaxis.get_major_locator().set_params(integer=True)
        for term, marker in zip(("sparsity", "singularity", "ranking"), "os^", strict=True):
            on = {one.mto[term]: 100 * one.gain for one in self.trials if one.mto.get(term)}
            by_weight.scatter(*_points(on), marker=marker, label=term)
        by_weight.set(xscale="log", xlabel="weight of a term that is on")
        first = max(self.study.seeds) + 1
        seeds = {first + i: 100 * gain for i, gain in enumerate(self.gains)}
        fresh.scatter(*_points(seeds), color="C2")
        if self.interval:
            fresh.axhspan(*(100 * end for end in self.interval), color="C2", alpha=0.15)
        fresh.set(xlabel="fresh seed, the best trial", xticks=[*seeds])
        for axes in (by_trial, by_weight, fresh):
            axes.axhline(0, color="0.5", lw=0.8)
        for axes in (by_trial, by_weight):
            axes.legend(frameon=False, fontsize="small")
        figure.savefig(folder / PICTURE, metadata={"Date": None})


def _points(values: Mapping[Any, float]) -> tuple[list[Any], list[float]]:
    return [*values], [*values.values()]
