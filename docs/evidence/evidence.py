"""`make evidence`: run the studies beside this file; write docs/evidence.md and .svg of their runs.

Stop it anywhere and give the command again. SEEDS and ARMS may grow; other STEPS are other studies.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from picture import KEY, draw

from mto_tools.errors import MissingError, MtoError
from mto_tools.home import find_home
from mto_tools.study.fairness import fairness
from mto_tools.study.measures import Pairs, paired, rauc_or_none, speed_of
from mto_tools.study.record import Curve, Record, by_seed, of_arm
from mto_tools.study.report import Report
from mto_tools.study.session import PREPARED, open_session
from mto_tools.study.spec import FILE, Arm, Study, load_study
from mto_tools.study.tasks import read_states

HERE = Path(__file__).parent
# Arms that differ in their learning rate alone.
RATES = ("baseline", "half_lr", "twice_lr", "four_lr")
GAINS = (0.5, 0.75, 0.9, 1.0)  # of the baseline, from its first evaluation to its last


@dataclass(frozen=True)
class Row:
    """An arm against the baseline with the best learning rate, over seeds."""

    arm: str
    words: str  # options of MTO and arguments
    end: Pairs  # held-out L_ss at the end
    shares: list[list[float]]  # steps to each of GAINS over the baseline's, by seed; inf: never
    rauc: list[float | None]


@dataclass(frozen=True)
class Found:
    """What a study says."""

    name: str
    study: Study
    report: Report
    unlike: dict[str, list[str]]  # conditions of a fair pair: arms of its length without them
    opponent: str
    rates: dict[str, float]  # mean final L_ss by arm of RATES
    rows: list[Row]
    minutes: float  # of its runs, one after another


def asked(file: Path, seeds: int, steps: int | None, arms: list[str]) -> Study:
    """The study in `file` with other numbers; an arm of half the steps stays half as long.

    Such an arm has `--steps` last. Data that it names are a folder of this clone.
    """
    study = load_study(file)
    written = study.steps or 2
    steps = steps or written
    chosen = {name: arm for name, arm in study.arms.items() if not arms or name in arms}
    for name, arm in chosen.items():
        if "--steps" in arm.arguments:
            own = int(arm.arguments[-1]) * steps // written
            chosen[name] = Arm(mto=arm.mto, arguments=(*arm.arguments[:-1], str(own)))
    data = str(find_home() / study.data) if study.data else ""
    changes = {"arms": chosen, "seeds": (*range(seeds),), "steps": steps, "data": data}
    return study.model_copy(update=changes)


def begun(file: Path, folder: Path) -> Study:
    """The study in `file`, as far as its runs were started in `folder`; its name has the steps."""
    runs = [task.removeprefix("pretrain-").rpartition("-") for task in read_states(folder)]
    seeds = 1 + max((int(seed) for *_, seed in runs), default=0)
    steps = int(folder.name.rpartition("-")[2])
    return asked(file, seeds, steps, [arm for arm, *_ in runs])


def run(folder: Path, study: Study, jobs: str | None) -> None:
    """Train what is not done yet.

    Raises:
        MtoError: A run failed. Arms with other learning rates are called unfair, which they are
            meant to be: this is no failure.
    """
    data = Path(study.data)
    if study.data and not data.exists():
        script = find_home() / "upstream" / "embedded" / "mini" / f"make_{data.name}.py"
        subprocess.run([sys.executable, script, "--out", data], check=True)
    command = [sys.executable, "-m", "mto_tools.cli", "study", str(folder)]
    subprocess.run(command + (["--jobs", jobs] if jobs else []), stdout=subprocess.DEVNULL)
    states = read_states(folder)
    runs = [f"pretrain-{arm}-{seed}" for seed in study.seeds for arm in study.arms]
    if left := [id for id in runs if id not in states or states[id].status != "done"]:
        raise MtoError(f"{len(left)} runs are not done, {left[0]} among them", hint="make evidence")


def read(name: str, folder: Path) -> Found:
    """Judge each arm over the seeds that it and the baseline, with each learning rate, have.

    Raises:
        MissingError: There is none, or no arm beside the baseline.
    """
    session = open_session(folder)
    report = session.report()
    records = {arm: {r.seed: r for r in of_arm(report.records, arm)} for arm in report.arms}
    several_rates = [records[arm] for arm in RATES if records.get(arm)]
    common = set.intersection(*map(set, several_rates)) if several_rates else set()
    if not common or all(arm in RATES for arm, runs in records.items() if runs):
        raise MissingError(f"{folder}: no seed has baseline and arm yet", hint="make evidence")
    rates = {
        arm: sum(end(records[arm][seed]) for seed in common) / len(common)
        for arm in RATES
        if records.get(arm)
    }
    opponent = min(rates, key=rates.__getitem__)
    rows = []
    for arm, runs in records.items():
        if not (seeds := sorted(common & runs.keys())):
            continue
        pairs = [(rising(records[opponent][seed]), rising(runs[seed])) for seed in seeds]
        ends = [(end(records[opponent][seed]), end(runs[seed])) for seed in seeds]
        given = session.study.arms[arm]
        words = " ".join([*(f"{k}={v}" for k, v in given.mto.items()), *given.arguments])
        shares = [[share(b, a, gain) for b, a in pairs] for gain in GAINS]
        stop = min(pair[0].at[-1] for pair in pairs)
        rauc = [rauc_or_none(b, a, stop / 4, stop) for b, a in pairs]
        rows.append(Row(arm, words, paired(ends, False), shares, rauc))
    seconds = sum(state.seconds for state in read_states(folder).values())
    unlike: dict[str, list[str]] = {}
    for arm in report.arms[1:]:
        if "--steps" not in session.study.arms[arm].arguments:
            for check in fairness(by_seed(report.records, arm), report.scores):
                if check.passed is False and check.name != "Same settings of the recipe":
                    unlike.setdefault(check.name, []).append(arm)
    return Found(name, session.study, report, unlike, opponent, rates, rows, seconds / 60)


def end(record: Record) -> float:
    """Held-out L_ss at the end of a run."""
    return record.scores[KEY].values[-1]


def rising(record: Record) -> Curve:
    """The held-out L_ss with its sign turned, so that more is better."""
    return record.scores[KEY].map(lambda value: -value)


def share(baseline: Curve, arm: Curve, gain: float) -> float:
    """Steps of an arm to a part of the baseline's gain, over the baseline's own; inf: never."""
    target = baseline.values[0] + gain * (baseline.values[-1] - baseline.values[0])
    return arm.first_reach(target) / baseline.first_reach(target)


def mean_share(row: Row) -> str:
    """Geometric mean of the steps to the opponent's end, in per cent, with its 95 % interval."""
    speed = speed_of(row.shares[-1], 0.95)
    if speed is None or math.isinf(speed.mean):
        return "no mean, as a seed never gets there"
    interval = speed.interval
    low_high = f" ({100 * interval[0]:.0f} to {100 * interval[1]:.0f})" if interval else ""
    return f"{100 * speed.mean:.0f} %{low_high}"


def several(values: list[float]) -> str:
    """Shares by seed, in per cent."""
    return " ".join("never" if math.isinf(value) else f"{100 * value:.0f}" for value in values)


def verdict(row: Row) -> str:
    """What the 95 % interval of the paired differences lets us say; lower is better."""
    if row.end.interval_95 is None:
        return "one seed proves nothing"
    low, high = row.end.interval_95
    return "lower" if high < 0 else "higher" if low > 0 else "no difference shown"


def main() -> None:
    """Run and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--seeds", type=int, default=5)
    add("--steps", type=int, help="of a run; default: those of the study file")
    add("--only", nargs="*", default=[], help="some of the study files, such as mae; default: all")
    add("--arms", nargs="*", default=[], help="some of the study file's; default: all")
    add("--jobs", help="runs at the same time")
    add("--page", action="store_true", help="write the page from all that is there, run nothing")
    args = parser.parse_args()
    root, found = find_home() / "reports" / "evidence", []
    wanted = sorted(file for file in HERE.glob("*.toml") if not args.only or file.stem in args.only)
    if args.page:
        studies = [(file, begun(file, at)) for file in wanted for at in root.glob(f"{file.stem}-*")]
    else:
        studies = [(file, asked(file, args.seeds, args.steps, args.arms)) for file in wanted]
    for file, study in studies:
        folder = root / f"{file.stem}-{study.steps}"
        folder.mkdir(parents=True, exist_ok=True)
        study.save_as(folder / FILE)
        if not args.page:
            run(folder, study, args.jobs)
        if (folder / PREPARED).is_file():
            try:
                found.append(read(file.stem, folder))
            except MissingError as error:  # no arm has a baseline yet
                print(f"left out: {error.message}", file=sys.stderr)
    page = Environment(
        loader=FileSystemLoader(HERE),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    page.filters.update(several=several, verdict=verdict, mean_share=mean_share)
    text = page.get_template("page.md.jinja").render(found=found)
    (HERE.parent / "evidence.md").write_text(text, "utf-8")
    if drawn := [one for one in found if one.name.endswith("_long")]:
        draw(drawn, HERE.parent / "evidence.svg")
    print(HERE.parent / "evidence.md")


if __name__ == "__main__":
    try:
        main()
    except MtoError as error:
        sys.exit(f"error: {error.message}\nhint:  {error.hint}")
