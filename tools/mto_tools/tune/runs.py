"""Paired runs: a baseline and arms with MTO, of the same seeds, as tasks of a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from rich.console import Console

from mto_tools.errors import MtoError, RefusedError
from mto_tools.launch.inputs import Inputs
from mto_tools.study.commands import Maker
from mto_tools.study.launchers import Local
from mto_tools.study.record import Record
from mto_tools.study.run import Driver
from mto_tools.study.runs import Source, collect
from mto_tools.study.session import usable_cores, visible_gpus
from mto_tools.study.spec import FILE, Arm, Study, Value, check_folder, load_study
from mto_tools.study.tasks import read_states
from mto_tools.study.verdict import LOSS
from mto_tools.upstreams.recipe import Recipe, Score


@dataclass(frozen=True)
class Limit:
    """Where a search ends; both count all that is done in its folder, by whatever process."""

    trials: int | None = None
    seconds: float | None = None  # of all runs, those of the interval counted in

    def allows(self, begun: int, spent: float, trial: float, interval: float) -> bool:
        """Whether one more may begin beside those that have; all but `begun` are seconds."""
        fits = self.seconds is None or spent + trial + interval <= self.seconds
        return (self.trials is None or begun < self.trials) and (begun == 0 or fits)


@dataclass(frozen=True)
class Runs:
    """All runs of a search.

    Args:
        study: The baseline: an arm for each learning rate, and the seeds of the search.
        fresh: Number of further seeds, for the interval.
        recipe, inputs: How the upstream is run, and from what.
        folder: Of the search.
        console: For progress.
        jobs: Runs at the same time.
    """

    study: Study
    fresh: int
    recipe: Recipe
    inputs: Inputs
    folder: Path
    console: Console
    jobs: int = 1

    def claim(self) -> None:
        """Make the folder this search's, or go on in it.

        Raises:
            RefusedError: It holds another search, or other files.
        """
        check_folder(self.study, self.folder)
        file = self.folder / FILE
        if not file.is_file():
            self.study.save_as(file)
        elif load_study(file).seeds != self.study.seeds:
            raise RefusedError(f"{file} has other seeds", hint="--out names another folder")

    def arm(self, mto: Mapping[str, Value], baseline: str) -> Arm:
        """Options of MTO on top of a baseline."""
        return Arm(mto=dict(mto), arguments=self.study.arms[baseline].arguments)

    def train(self, arms: Mapping[str, Arm], seeds: Sequence[int], held: int) -> bool:
        """Run what is not done yet; False if a run failed.

        `held` is the descriptor of a lock, which stays closed until the last process has ended.
        """
        gpus = visible_gpus()
        study = self.study.model_copy(update={"arms": dict(arms), "seeds": (*seeds,)})
        tasks = Maker(study, self.recipe, self.inputs, self.folder, bool(gpus)).tasks()
        launcher = Local(self.jobs, max(1, usable_cores() // self.jobs), gpus, [held])
        cwd = str(self.inputs.cwd)
        driver = Driver(self.folder, self.recipe, cwd, 1, launcher, self.console, keep_going=True)
        return not driver.run(tasks)

    def gain(self, arm: str, baseline: str, seed: int) -> float:
        """How much better an arm ends than the baseline of the same seed, as a share of that.

        Raises:
            MtoError: The runs did not see the same data.
        """
        ours, theirs = self.record(arm, seed), self.record(baseline, seed)
        if ours.data != theirs.data:
            raise MtoError(
                f"{arm} and {baseline} saw other data in seed {seed}, so they are no pair",
                hint="--out names a new folder",
            )
        before, sign = self.end(theirs)
        return sign * (self.end(ours)[0] - before) / abs(before)

    def mean_end(self, arm: str) -> float:
        """Mean over the search's seeds of the score at the end, such that more is better."""
        ends = [self.end(self.record(arm, seed)) for seed in self.study.seeds]
        return mean(sign * value for value, sign in ends)

    def end(self, record: Record) -> tuple[float, int]:
        """The score at the end of a run, and -1 if less of it is better."""
        score = self.score(record)
        curve = record.curve("loss").smooth() if score == LOSS else record.score(score)
        return curve.values[-1], 1 if score.higher_is_better else -1

    def score(self, record: Record) -> Score:
        """What decides: the recipe's first score that a run has, else its L_ss."""
        known = self.recipe.compare.scores if self.recipe.compare else ()
        return next((score for score in known if record.score(score).at), LOSS)

    def spent(self) -> tuple[float, float]:
        """Seconds of all runs that ended, and of one of them on average."""
        ended = [state.seconds for state in read_states(self.folder).values() if state.seconds]
        return sum(ended), mean(ended) if ended else 0.0

    def record(self, arm: str, seed: int) -> Record:
        """What a run left behind."""
        folder = self.folder / "runs" / f"{arm}-{seed}"
        return collect(Source(arm=arm, seed=seed, folder=folder), self.recipe)
