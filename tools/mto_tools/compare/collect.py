"""Read what the runs left behind into one record each, and tell which of them are whole."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from mto_tools.compare.plan import ArmName, JsonModel, Plan, Run
from mto_tools.compare.spec import LogSpec
from mto_tools.errors import CorruptError, MissingError

TERMS = ("sparsity", "singularity", "ranking")


class Curve(JsonModel):
    """Values over optimizer steps, in ascending order of the steps."""

    steps: list[int] = Field(default_factory=list)
    values: list[float] = Field(default_factory=list)


class Rows(JsonModel):
    """Lists of one number per depth, over optimizer steps."""

    steps: list[int] = Field(default_factory=list)
    values: list[list[float]] = Field(default_factory=list)


class AffinityMap(JsonModel):
    """Affinity maps of one image, `[L+1][N][N]`, masked tokens first, then visible ones."""

    step: int
    num_masked: int
    maps: list[list[list[float]]]


class Record(JsonModel):
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


def unfinished(plan: Plan, work: Path) -> list[str]:
    """Names of the runs that stopped before all was logged, or whose log has a torn line.

    The scores of the last step are logged after its loss, so the loss alone does not tell. A score
    that no run ever logged (mini's, on data without validation images) is not waited for.
    """
    logs = {run.name: _logged(plan, work / "runs" / run.name) for run in plan.runs}
    known = {key for lines in logs.values() for line in lines for key in line}
    wanted = [plan.logs.loss if plan.logs.train else "loss"]
    wanted += [score.key for score in plan.scores if score.key in known]
    return [name for name, lines in logs.items() if not _ended(plan, lines, wanted)]


def _logged(plan: Plan, folder: Path) -> list[dict[str, Any]]:
    """The lines that hold loss and scores; none where one of either log is torn."""
    try:
        lines = _read_lines(folder / plan.logs.measures, "step")
        if plan.logs.train:
            lines = _read_lines(folder / plan.logs.train, plan.logs.step)
    except CorruptError:
        return []
    return lines


def _ended(plan: Plan, lines: list[dict[str, Any]], keys: list[str]) -> bool:
    step = plan.logs.step if plan.logs.train else "step"
    last = [key for line in lines if line[step] >= plan.last_logged for key in line]
    return all(key in last for key in keys)


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
    # A torn line may end within a character.
    for number, text in enumerate(path.read_text("utf-8", "replace").splitlines(), start=1):
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
