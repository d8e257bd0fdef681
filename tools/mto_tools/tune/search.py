"""The search: Optuna proposes weights, short runs judge them, fresh seeds have the last word."""

from __future__ import annotations

import math
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import optuna
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from mto_core import MTOConfig
from mto_core.checks import TERMS
from mto_tools.errors import MissingError, RefusedError
from mto_tools.study.folder import locked
from mto_tools.study.measures import t_interval
from mto_tools.study.spec import Arm, Value
from mto_tools.tune.result import Result, Tried
from mto_tools.tune.runs import Limit, Runs

WEIGHTS = (1e-3, 3.0)  # of a term that is on
STARTUP = 5  # trials before the sampler, and the pruner, judge by those that were
FAILED = -1.0  # gain of a run that failed
WIDER = 3  # more learning rates at the most, beyond the best one
POLL = 0.5  # seconds between looks at other processes


def tune(runs: Runs, limit: Limit, *, widen: bool = False) -> Result:
    """Go on with a search, in company of other processes, until its limit.

    `widen`: a learning rate that is best at an end of those tried gets a neighbour.

    Raises:
        MissingError: Every run of the baseline failed.
        RefusedError: The folder is of another search.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with locked(runs.folder, patience=math.inf) as lock:
        runs.claim()
        runs, baseline = _best_baseline(runs, lock, WIDER if widen else 0)
        preset: Any = runs.recipe.styles[runs.study.style].preset
        search = Search(runs, limit, baseline, preset, _open(runs, MTOConfig.preset(preset)))
    while search.go_on():
        pass
    with locked(runs.folder, patience=math.inf) as lock:
        return search.conclude(lock)


def _best_baseline(runs: Runs, lock: int, wider: int) -> tuple[Runs, str]:
    """The arm of the learning rate with which the baseline ends best, over the search's seeds.

    The runs returned know up to `wider` more rates than those given.
    """
    arms, ends = dict(runs.study.arms), dict[str, float]()
    rates = {name: float(arm.arguments[-1]) for name, arm in arms.items()}
    most = len(arms) + wider
    while True:
        for name in [name for name in arms if name not in ends]:
            done = runs.train({name: arms[name]}, runs.study.seeds, lock)
            end = runs.mean_end(name) if done else math.nan
            ends[name] = end if math.isfinite(end) else -math.inf
        best = max(ends, key=ends.__getitem__)
        if math.isinf(ends[best]):
            raise MissingError(
                f"every run of the baseline failed; see {runs.folder / 'tasks'}",
                hint="--rate, again for each, with smaller learning rates",
            )
        inner = min(rates.values()) < rates[best] < max(rates.values())
        if inner or len(arms) == most:
            return replace(runs, study=runs.study.model_copy(update={"arms": arms})), best
        name = f"rate{len(arms)}"
        rates[name] = rates[best] * (2 if rates[best] == max(rates.values()) else 0.5)
        option = arms[best].arguments[0]
        arms[name] = Arm(mto=arms[best].mto, arguments=(option, f"{rates[name]:g}"))
        told = f"{option} {rates[best]:g} is best, and the last one tried: {rates[name]:g} too"
        runs.console.print(told, markup=False, highlight=False)


def _open(runs: Runs, shipped: MTOConfig) -> optuna.Study:
    """The trials so far; the first one to be is the recipe's own preset."""
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(runs.folder / "journal.log"))),
        study_name="tune",
        direction="maximize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP),
        load_if_exists=True,
    )
    on = {f"{term}_on": weight > 0 for term, weight in shipped.weights.items()}
    weights = {term: weight for term, weight in shipped.weights.items() if weight > 0}
    where = {"sparsity_depth": shipped.sparsity_depth, "scale": shipped.scale_of("sparsity")}
    study.enqueue_trial({**on, **weights, **where}, skip_if_exists=True)
    return study


def _options(trial: Trial, preset: str) -> dict[str, Value]:
    """Options of MTO that a trial tries. A weight has three digits: what is pasted is what ran."""
    found: dict[str, Value] = {"preset": preset}
    for term in TERMS:
        found[term] = 0.0
        if trial.suggest_categorical(f"{term}_on", (True, False)):
            found[term] = float(f"{trial.suggest_float(term, *WEIGHTS, log=True):.3g}")
    scale = trial.suggest_categorical("scale", ("layernorm", "raw"))
    depth = trial.suggest_categorical("sparsity_depth", (0, -1))
    return {**found, "sparsity_depth": depth, "scale": scale, "sparsity_scale": scale}


@dataclass(frozen=True)
class Search:
    """One process's part in a search, after the baseline."""

    runs: Runs
    limit: Limit
    baseline: str  # arm whose learning rate all trials have
    preset: str
    study: optuna.Study

    def go_on(self) -> bool:
        """Judge one trial, or wait for other processes; False: all trials have ended."""
        with ExitStack() as stack:
            if found := self._next(stack):
                self._judge(*found)
                return True
        time.sleep(POLL)
        return bool(self._trials(TrialState.RUNNING))

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=states)

    def _next(self, stack: ExitStack) -> tuple[Trial, int] | None:
        """A trial that a killed process left, else a new one, with its lock."""
        for left in self._trials(TrialState.RUNNING):
            lock = self._lock(stack, left.number)
            if lock is None:
                continue
            if left.number in {trial.number for trial in self._trials(TrialState.RUNNING)}:
                return Trial(self.study, left._trial_id), lock
            stack.close()  # it has ended meanwhile
        with locked(self.runs.folder, patience=math.inf):  # no two count the same trials
            running = len(self._trials(TrialState.RUNNING))
            begun = running + len(self._trials(TrialState.COMPLETE, TrialState.PRUNED))
            spent, each = self.runs.spent()
            cost, interval = each * len(self.runs.study.seeds), 2 * each * self.runs.fresh
            if not self.limit.allows(begun, spent + running * cost, cost, interval):
                return None
            trial = self.study.ask()
        lock = self._lock(stack, trial.number)
        return None if lock is None else (trial, lock)

    def _lock(self, stack: ExitStack, number: int) -> int | None:
        """Take a trial; None: another process has it."""
        try:
            return stack.enter_context(locked(self.runs.folder / "locks" / str(number)))
        except RefusedError:
            return None

    def _judge(self, trial: Trial, lock: int) -> None:
        """Run a trial seed by seed; end it early where it falls behind the others."""
        runs, seeds = self.runs, self.runs.study.seeds
        # Proposals depend on the trials before, not on how often the search was killed.
        self.study.sampler = optuna.samplers.TPESampler(n_startup_trials=STARTUP, seed=trial.number)
        mto = _options(trial, self.preset)
        if not any(mto[term] for term in TERMS):
            self.study.tell(trial, 0.0)  # the baseline itself
            return
        trial.set_user_attr("mto", mto)
        name, gains = f"t{trial.number}", list[float]()
        for first in range(0, len(seeds), runs.jobs):
            some = seeds[first : first + runs.jobs]
            if runs.train({name: runs.arm(mto, self.baseline)}, some, lock):
                gains += [runs.gain(name, self.baseline, seed) for seed in some]
            else:
                gains += [FAILED] * len(some)
            trial.report(sum(gains) / len(gains), len(gains))
            if len(gains) < len(seeds) and (trial.should_prune() or FAILED in gains):
                self.study.tell(trial, state=TrialState.PRUNED)
                break
        else:
            self.study.tell(trial, sum(gains) / len(gains))
        flags = " ".join(runs.recipe.options.mto(mto))
        told = f"trial {trial.number}, {len(gains)} seeds: {sum(gains) / len(gains):+.1%}; {flags}"
        runs.console.print(told, markup=False, highlight=False)

    def conclude(self, lock: int) -> Result:
        """Run the best trial with fresh seeds: luck had a part in choosing it."""
        runs, plain = self.runs, self.baseline
        tried = [
            Tried(
                number=trial.number,
                mto=trial.user_attrs.get("mto", {}),
                gain=trial.value or 0.0,  # of one that ended early, the last that it reported
                early=trial.state == TrialState.PRUNED,
            )
            for trial in self._trials(TrialState.COMPLETE, TrialState.PRUNED)
        ]
        better = [one for one in tried if not one.early and one.gain > 0]
        best = max(better, key=lambda one: one.gain, default=None)
        gains: list[float] = []
        if best:
            name, first = f"t{best.number}", max(runs.study.seeds) + 1
            seeds = range(first, first + runs.fresh)
            arms = {plain: runs.study.arms[plain], name: runs.arm(best.mto, plain)}
            if runs.train(arms, seeds, lock):
                gains = [runs.gain(name, plain, seed) for seed in seeds]
            else:
                gains = [math.nan] * len(seeds)
        return Result(
            study=runs.study,
            score=runs.score(runs.record(plain, runs.study.seeds[0])).label,
            baseline=plain,
            trials=tried,
            best=best,
            gains=gains,
            interval=t_interval(gains, 0.95),
            options=runs.recipe.options.mto(best.mto) if best else [],
            seconds=runs.spent()[0],
            versions=runs.inputs.versions,
        )
