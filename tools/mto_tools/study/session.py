"""A study in its folder: made ready, run, and reported."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from mto_tools.errors import MissingError
from mto_tools.home import find_home
from mto_tools.launch.guard import GRACE
from mto_tools.launch.inputs import Inputs
from mto_tools.study.commands import Maker
from mto_tools.study.folder import JsonModel, check_room, locked
from mto_tools.study.launchers import Launcher, Local, Submitit
from mto_tools.study.report import Report, build_report, write_report
from mto_tools.study.resume import checkpoint_at
from mto_tools.study.run import Driver
from mto_tools.study.runs import Source
from mto_tools.study.spec import FILE, Study, check_folder, load_study
from mto_tools.study.tasks import Task, check_settings, finetuned, read_states
from mto_tools.upstreams.recipe import Recipe, load_recipe
from mto_tools.upstreams.upstream import load_upstream

PREPARED = "inputs.json"


class Prepared(JsonModel):
    """What the runs start from, for a report that is made elsewhere."""

    checkout: Path
    data: Path
    images: int
    cwd: Path
    versions: dict[str, str]
    gpu: bool
    made_by: str  # the command line
    facts: dict[str, str]  # rows of the report's table

    @property
    def inputs(self) -> Inputs:
        """As `launch.inputs.prepare` found them."""
        return Inputs(self.checkout, self.data, self.images, self.cwd, self.versions)


@dataclass(frozen=True)
class How:
    """Options that do not decide the numbers."""

    launcher: str = "local"
    jobs: int | None = None  # tasks at the same time
    slurm: tuple[tuple[str, str], ...] = ()  # parameters of submitit
    keep_going: bool = False


@dataclass(frozen=True)
class Session:
    """A study, its folder, and how its upstream is run."""

    study: Study
    folder: Path
    recipe: Recipe

    def maker(self, inputs: Inputs, *, gpu: bool) -> Maker:
        """What makes its tasks."""
        return Maker(self.study, self.recipe, inputs, self.folder, gpu)

    def run(self, inputs: Inputs, how: How, console: Console) -> Report:
        """Run what is not done yet, and write the report.

        Raises:
            RefusedError: The folder is another study's or in use, or what is done there was made
                with other settings.
            MissingError, MtoError: A launcher, disk space or images are missing; a task failed.
        """
        gpus = visible_gpus()
        maker = self.maker(inputs, gpu=bool(gpus) or how.launcher == "slurm")
        tasks = maker.tasks()
        states = read_states(self.folder)
        check_folder(self.study, self.folder)
        check_settings(tasks, states, self.folder)
        launcher = make_launcher(self.folder, self.study, how, gpus)  # submitit makes its folder
        room = self.recipe.compare.disk_mb_per_run if self.recipe.compare else 0
        new = sum(task.id not in states for task in tasks if task.kind == "pretrain")
        check_room(self.folder, new * room + 50 * bool(new))
        with locked(self.folder, patience=GRACE + 3) as lock:
            if isinstance(launcher, Local):
                launcher.held = [lock]
            if not (self.folder / FILE).is_file() or load_study(self.folder / FILE) != self.study:
                self.study.save_as(self.folder / FILE)
            self._prepared(inputs, maker, launcher).save(self.folder / PREPARED)
            driver = Driver(
                self.folder,
                self.recipe,
                str(inputs.cwd),
                self.study.nproc,
                launcher,
                console,
                how.keep_going,
            )
            try:
                driver.run(tasks)
                found = self.report()
                write_report(found, self.folder)
            except BaseException:  # such as Ctrl-C, or a full disk
                again = self.folder / FILE
                console.print(
                    f"What is done stays in {self.folder}; go on with: mto study {again}",
                    markup=False,
                )
                raise
        return found

    def report(self) -> Report:
        """Judge the runs that are done.

        Raises:
            MissingError: No seed has two arms that are done.
        """
        prepared = Prepared.load(self.folder / PREPARED)
        maker = self.maker(prepared.inputs, gpu=prepared.gpu)
        tasks = maker.tasks()
        states = read_states(self.folder)
        pretrained = [task for task in tasks if task.kind == "pretrain"]
        ended = {id for id, state in states.items() if state.status != "running"}
        known = [task for task in pretrained if task.id in ended]
        return build_report(
            [self._source(task, tasks) for task in known],
            recipe=self.recipe,
            baseline=next(iter(self.study.arms)),
            missing=[(task.arm, task.seed) for task in pretrained if task.id not in ended],
            upstream=self.study.upstream,
            made_by=prepared.made_by,
            style=maker.style,
            versions=prepared.versions,
            facts=prepared.facts,
            commands={task.run: states[task.id].command for task in known},
            last_step=maker.schedule.last_logged,
        )

    def _source(self, pretrain: Task, tasks: list[Task]) -> Source:
        states = read_states(self.folder)
        state, folder = states.get(pretrain.id), self.folder / pretrain.place
        tuned: dict[float, Path] = {}
        for task in tasks:
            done = task.id in states and states[task.id].status == "done"
            if task.kind == "finetune" and task.needs == pretrain.id and done:
                at, _ = checkpoint_at(self.recipe, folder, task.at or 0)
                tuned[at] = self.folder / finetuned(task.run, task.at)
        ended = {"done": True, "failed": False}.get(state.status) if state else None
        return Source(
            arm=pretrain.arm,
            seed=pretrain.seed,
            folder=folder,
            finetuned=tuned,
            ended=ended,
            seconds=state.seconds if state else None,
        )

    def _prepared(self, inputs: Inputs, maker: Maker, launcher: Launcher) -> Prepared:
        threads = launcher.threads if isinstance(launcher, Local) else None
        arms = {
            name: " ".join([*(f"{k}={v}" for k, v in arm.mto.items()), *arm.arguments])
            for name, arm in self.study.arms.items()
        }
        return Prepared(
            checkout=inputs.checkout,
            data=inputs.data,
            images=inputs.images,
            cwd=inputs.cwd,
            versions=inputs.versions,
            gpu=maker.gpu,
            made_by=shlex.join(["mto", *sys.argv[1:]]),
            facts={
                "data": str(inputs.data),
                **{f"MTO in {name}": words for name, words in arms.items()},
                "at once": f"{launcher.jobs} tasks of {self.study.nproc} processes"
                + (f", {threads} threads each" if threads else ""),
                "run in": str(inputs.cwd),
            },
        )


def open_session(folder: Path) -> Session:
    """The study in a folder.

    Raises:
        MissingError, CorruptError: It has none, or one that cannot be read.
    """
    study = load_study(folder / FILE)
    return Session(study, folder, load_recipe(load_upstream(find_home(), study.upstream)))


def make_launcher(folder: Path, study: Study, how: How, gpus: list[str]) -> Launcher:
    """The launcher that was asked for.

    Raises:
        MissingError, MtoError: As `Submitit`; or a task asks for more GPUs than there are.
    """
    if how.launcher == "local":
        if gpus and study.nproc > len(gpus):
            raise MissingError(
                f"a task asks for {study.nproc} GPUs, but this machine has {len(gpus)}",
                hint="a smaller nproc in study.toml, or --launcher slurm",
            )
        cores = usable_cores()
        runs = len(study.arms) * len(study.seeds)
        # Both arms of a seed share a lone GPU; without one, as many tasks as cores, in whole pairs.
        each = max(1, cores // study.nproc)
        jobs = how.jobs or (
            (len(gpus) // study.nproc if len(gpus) > 1 else 2)
            if gpus
            else max(1, min(each, runs) // 2 * 2)
        )
        threads = max(1, cores // (jobs * study.nproc))
        return Local(jobs, threads, gpus)
    parameters: dict[str, Any] = {}
    for key, value in how.slurm:
        name = key if key in ("timeout_min", "mem_gb", "cpus_per_task") else f"slurm_{key}"
        parameters[name] = int(value) if value.isdecimal() else value
    cluster = "slurm" if how.launcher == "slurm" else "local"
    place = folder / "tasks" / "slurm"
    jobs = how.jobs or 1000
    return Submitit(place, cluster, jobs, cluster == "slurm" or bool(gpus), parameters)


def visible_gpus() -> list[str]:
    """Ids of the GPUs that this process may use."""
    import torch

    if not torch.cuda.is_available():
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(i) for i in range(torch.cuda.device_count())]


def usable_cores() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
