"""Read what the runs left behind into one record each, and check that the comparison was fair."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from mto_tools.compare.plan import ArmName, Data, Plan, Run
from mto_tools.compare.spec import LogSpec
from mto_tools.errors import CorruptError, MissingError

TERMS = ("sparsity", "singularity", "ranking")


class Curve(Data):
    """Values over optimizer steps, in ascending order of the steps."""

    steps: list[int] = Field(default_factory=list)
    values: list[float] = Field(default_factory=list)


class Rows(Data):
    """Lists of one number per depth, over optimizer steps."""

    steps: list[int] = Field(default_factory=list)
    values: list[list[float]] = Field(default_factory=list)


class AffinityMap(Data):
    """Affinity maps of one image, `[L+1][N][N]`, masked tokens first, then visible ones."""

    step: int
    num_masked: int
    maps: list[list[list[float]]]


class Record(Data):
    """All that was logged by one run."""

    arm: ArmName
    seed: int
    seconds: float
    bytes: int
    loss: Curve  # from the recipe's log, where it may be a mean over the steps since the last line
    own_loss: Curve  # L_ss of the very step, as MTO met it
    step_ms: Curve
    data: dict[int, str]
    rng: dict[int, str]
    scores: dict[str, Curve]
    terms: dict[str, Curve]
    weights: dict[str, Curve]
    initial_weights: str  # digest; "" where the recipe saves none
    grad_ratio: dict[str, Curve]
    diagonal_mass: Curve
    masked_mass: Curve
    heterogeneity: Rows
    token_norm: Rows
    affinity: list[AffinityMap]


def of_arm(records: list[Record], arm: ArmName) -> list[Record]:
    """The records of one arm, by seed."""
    return [record for record in records if record.arm == arm]


def by_seed(records: list[Record]) -> list[tuple[Record, Record]]:
    """(baseline, MTO) of every seed."""
    return list(zip(of_arm(records, "baseline"), of_arm(records, "mto"), strict=True))


class Check(Data):
    """One condition of a fair comparison, over all seeds."""

    name: str
    passed: bool
    detail: str


def collect(run: Run, folder: Path, plan: Plan, seconds: float) -> Record:
    """Read one run's folder.

    Raises:
        MissingError: A log is missing, or holds no step or none of the scores.
        CorruptError: A line is not the JSON that the recipe promises.
    """
    logs = plan.logs
    measured = _read_lines(folder / logs.measures, "step")
    lines = _read_lines(folder / logs.train, logs.step) if logs.train else []
    steps = [line for line in lines if logs.loss in line]
    if logs.train and not steps:
        raise MissingError(
            f"{folder / logs.train} holds no line with {logs.step!r} and {logs.loss!r}",
            hint=f"read {folder / 'output.txt'}, and check [logs] in patches/{plan.upstream}/"
            "compare.toml",
        )
    if not measured:
        raise MissingError(
            f"{folder / logs.measures} is missing or empty: the run measured nothing",
            hint=f"mto apply {plan.upstream}, then compare again",
        )
    read = _Reader(logs)
    return Record(
        arm=run.arm,
        seed=run.seed,
        seconds=seconds,
        bytes=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        loss=read.curve(steps, logs.loss) if logs.train else read.curve(measured, "loss"),
        step_ms=read.curve(steps, logs.step_ms),
        data={line[logs.step]: str(line[logs.data]) for line in steps if logs.data in line},
        rng={line["step"]: str(line["rng"]) for line in measured if "rng" in line},
        scores={score.key: read.curve(lines, score.key) for score in plan.scores},
        terms={term: read.curve(measured, term) for term in TERMS},
        weights={term: read.curve(measured, "weights", term) for term in TERMS},
        grad_ratio={term: read.curve(measured, "grad_ratio", term) for term in TERMS},
        initial_weights=_digest(folder / logs.initial) if logs.initial else "",
        own_loss=read.curve(measured, "loss"),
        diagonal_mass=read.curve(measured, "diagonal_mass"),
        masked_mass=read.curve(measured, "masked_mass"),
        heterogeneity=read.rows(measured, "heterogeneity"),
        token_norm=read.rows(measured, "token_norm"),
        affinity=_affinity(folder, plan),
    )


class _Reader:
    def __init__(self, logs: LogSpec) -> None:
        self.step = logs.step

    def curve(self, lines: list[dict[str, Any]], *path: str) -> Curve:
        """The values at `path` inside the lines that have one: some are logged on some steps."""
        points: dict[int, float] = {}
        for line in lines:
            value: Any = line
            for key in path:
                value = value.get(key) if isinstance(value, dict) else None
            if isinstance(value, (int, float)):
                points[int(line[self.step if self.step in line else "step"])] = float(value)
        return Curve(steps=sorted(points), values=[points[step] for step in sorted(points)])

    def rows(self, lines: list[dict[str, Any]], key: str) -> Rows:
        points = {int(line["step"]): [float(v) for v in line[key]] for line in lines if key in line}
        return Rows(steps=sorted(points), values=[points[step] for step in sorted(points)])


def _read_lines(path: Path, step: str) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    lines: list[dict[str, Any]] = []
    for number, text in enumerate(path.read_text("utf-8").splitlines(), start=1):
        try:
            line = json.loads(text)
        except json.JSONDecodeError as error:
            raise CorruptError(f"{path}:{number} is not JSON: {error}") from None
        if not isinstance(line, dict) or step not in line:
            raise CorruptError(
                f"{path}:{number}: expected an object with {step!r}, found {text:.60}"
            )
        lines.append(line)
    return lines


def _affinity(folder: Path, plan: Plan) -> list[AffinityMap]:
    found = []
    for step in plan.affinity_steps:
        path = folder / plan.logs.affinity.format(step=step)
        if not path.is_file():
            continue
        with np.load(path) as arrays:
            maps = arrays["affinity"].astype(np.float64)
            masked = int(arrays["num_masked"])
        # Four digits are more than a picture shows, and keep the report small.
        rounded = [[[float(f"{v:.3g}") for v in row] for row in depth] for depth in maps.tolist()]
        found.append(AffinityMap(step=step, num_masked=masked, maps=rounded))
    return found


def _digest(path: Path) -> str:
    """Digest of the tensors under "model" in a checkpoint; "" where there is none."""
    if not path.is_file():
        return ""
    import torch

    model = torch.load(path, map_location="cpu", weights_only=True)["model"]
    digest = hashlib.sha256()
    for name in sorted(model):
        digest.update(name.encode())
        digest.update(model[name].contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def fairness(pairs: list[tuple[Record, Record]], plan: Plan) -> list[Check]:
    """Check that in every seed both arms met the same weights, data, masks and random numbers."""
    data = _check("Same data in the same order", pairs, lambda b, m: _same(b.data, m.data, "data"))
    return [
        _check("Same first loss, bit for bit", pairs, _first_loss),
        _check("Same initial weights", pairs, _first_state),
        *([data] if plan.logs.data else []),
        _check("Same random numbers", pairs, lambda b, m: _same(b.rng, m.rng, "RNG state")),
        _check("Both arms ran to the end", pairs, lambda b, m: _complete(b, m, plan)),
        _check("Every loss is finite", pairs, _finite),
    ]


_Result = tuple[bool, str]  # passed, detail


def _check(
    name: str, pairs: list[tuple[Record, Record]], test: Callable[[Record, Record], _Result]
) -> Check:
    results = [(baseline.seed, *test(baseline, mto)) for baseline, mto in pairs]
    bad = [f"seed {seed}: {detail}" for seed, passed, detail in results if not passed]
    if bad or not results:
        return Check(name=name, passed=False, detail="; ".join(bad) or "nothing to check")
    return Check(name=name, passed=True, detail=f"{results[0][2]}, in every seed")


def _first_loss(baseline: Record, mto: Record) -> _Result:
    if not baseline.own_loss.steps or not mto.own_loss.steps:
        return False, "no L_ss was logged"
    first = [(r.own_loss.steps[0], r.own_loss.values[0]) for r in (baseline, mto)]
    if first[0] != first[1]:
        return False, " and ".join(f"{value!r} at step {step}" for step, value in first)
    if first[0][0] != 1:
        return False, f"first logged at step {first[0][0]}, after the weights have moved"
    return True, "at step 1, before the first update"


def _first_state(baseline: Record, mto: Record) -> _Result:
    """The saved initial weights, or what they do: token norms and H at all depths of step 1."""
    if baseline.initial_weights or mto.initial_weights:
        if baseline.initial_weights != mto.initial_weights:
            return False, f"{baseline.initial_weights[:12]} and {mto.initial_weights[:12]}"
        return True, "digests of the saved weights agree"
    for name in ("token_norm", "heterogeneity"):
        a, b = getattr(baseline, name), getattr(mto, name)
        if not a.steps or a.steps[0] != 1 or b.steps[:1] != a.steps[:1]:
            return False, f"{name} was not logged at step 1"
        if a.values[0] != b.values[0]:
            return False, f"{name} differs at step 1"
    return True, f"token norms and H agree at all {len(a.values[0])} depths of step 1"


def _same(baseline: dict[int, str], mto: dict[int, str], what: str) -> _Result:
    if not baseline or baseline.keys() != mto.keys():
        return False, f"{what} logged at {len(baseline)} and {len(mto)} steps"
    for step in sorted(baseline):
        if baseline[step] != mto[step]:
            return False, f"{what} differs from step {step} on: {baseline[step]} and {mto[step]}"
    return True, f"digests agree at all {len(baseline)} logged steps"


def _complete(baseline: Record, mto: Record, plan: Plan) -> _Result:
    last = [r.loss.steps[-1] for r in (baseline, mto)]
    if last[0] != last[1] or last[0] < plan.last_logged:
        return False, f"last logged steps {last[0]} and {last[1]} of {plan.steps}"
    return True, f"last logged step {last[0]} of {plan.steps}"


def _finite(baseline: Record, mto: Record) -> _Result:
    for record in (baseline, mto):
        for step, value in zip(record.loss.steps, record.loss.values, strict=True):
            if not np.isfinite(value):
                return False, f"{record.arm} has L_ss = {value} at step {step}"
    return True, "in both arms"
