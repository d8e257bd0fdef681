"""Where tasks run: on this machine, or through submitit on SLURM or on its local executor."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mto_tools.errors import MissingError, MtoError
from mto_tools.launch.command import OF_ONE_RUN
from mto_tools.launch.process import Started, end, start
from mto_tools.study.folder import JsonModel, locked

LAUNCHERS = ("local", "slurm", "submitit-local")
LOST = -1  # exit status of a job that is gone without a word


def environment(threads: int | None) -> dict[str, str]:
    """The environment of every task: the same threads, and nothing of a run around this process."""
    inherited = {k: v for k, v in os.environ.items() if k not in (*OF_ONE_RUN, "SLURM_PROCID")}
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return inherited | dict.fromkeys(names, str(threads)) if threads else inherited


@dataclass(frozen=True)
class Work:
    """What a launcher starts."""

    id: str
    command: Sequence[str]
    cwd: str
    log: Path
    nproc: int


@dataclass
class Process:
    """A task on this machine."""

    started: Started
    slot: int
    job: str = ""  # of SLURM

    def code(self) -> int | None:
        """Exit status, 128 + N for one that signal N ended; None while it runs."""
        return self.started.returncode

    @property
    def seconds(self) -> float:
        """Since its start."""
        return time.monotonic() - self.started.began


@dataclass
class Local:
    """Tasks as processes below guards: however this process ends, none of them is left.

    Args:
        jobs: Tasks at the same time.
        threads: Of every process of a task.
        gpus: Ids of the GPUs; each task gets `nproc` of them, in turn.
        held: File descriptors that the guards inherit, such as the folder's lock.
    """

    jobs: int
    threads: int
    gpus: Sequence[str] = ()
    held: Sequence[int] = ()
    _running: list[Process] = field(default_factory=list)

    def start(self, work: Work) -> Process:
        """Start a task in the first free slot."""
        self._running = [one for one in self._running if one.code() is None]
        slot = min(set(range(self.jobs)) - {one.slot for one in self._running})
        variables = environment(self.threads)
        if self.gpus:
            count = len(self.gpus)
            mine = [self.gpus[(slot * work.nproc + i) % count] for i in range(work.nproc)]
            variables["CUDA_VISIBLE_DEVICES"] = ",".join(mine)
        started = start(
            work.command, cwd=work.cwd, log=work.log, environment=variables, held=self.held
        )
        self._running.append(Process(started, slot))
        return self._running[-1]

    def find(self, job: str, work: Work) -> Job | None:
        """None: a task of a driver that ended has ended, too."""
        return None

    def close(self) -> None:
        """End all that run still."""
        end(one.started for one in self._running if one.code() is None)


class End(JsonModel):
    """How a job ended, as it wrote itself."""

    exit_code: int
    seconds: float


def run_job(command: Sequence[str], cwd: str, log: str, end_file: str) -> int:
    """What a job does: the task, and then the file that says how it ended.

    A driver that is killed between submitting a job and noting it submits a second one. That one
    waits for the first, whose end counts for both.
    """
    with locked(Path(end_file).with_suffix(".job"), patience=math.inf):
        if Path(end_file).is_file():
            return End.load(Path(end_file)).exit_code
        began = time.time()
        code = start(command, cwd=cwd, log=Path(log), environment=environment(None)).wait()
        End(exit_code=code, seconds=round(time.time() - began, 2)).save(Path(end_file))
        return code


@dataclass
class Job:
    """A task that submitit started."""

    submitted: Any  # submitit.Job
    end_file: Path

    @property
    def job(self) -> str:
        """SLURM's number, or the local executor's process."""
        return str(self.submitted.job_id)

    def code(self) -> int | None:
        """Exit status, `LOST` for a job that is gone; None while it waits or runs."""
        if self.end_file.is_file():
            return End.load(self.end_file).exit_code
        if not self._gone():
            return None
        time.sleep(0.5)  # a shared file system may show the file later
        return End.load(self.end_file).exit_code if self.end_file.is_file() else LOST

    @property
    def seconds(self) -> float:
        """That it ran, without its time in the queue; 0 for a job that is gone."""
        return End.load(self.end_file).seconds if self.end_file.is_file() else 0.0

    def _gone(self) -> bool:
        if getattr(self.submitted, "_process", self) is None:  # of an earlier driver, local
            return not _alive(int(self.submitted.job_id))
        return bool(self.submitted.done())


@dataclass
class Submitit:
    """Tasks as jobs; they live on when this process ends, and the next one finds them.

    Args:
        folder: Of submitit's own files, `tasks/slurm`.
        cluster: "slurm", or "local" for its executor without SLURM.
        jobs: Tasks at the same time.
        gpus: Whether a task asks for GPUs, one for each of its processes.
        parameters: Further ones of submitit, such as `timeout_min` and `slurm_partition`.

    Raises:
        MissingError: submitit or SLURM is not there.
        MtoError: submitit does not know a parameter.
    """

    folder: Path
    cluster: str
    jobs: int
    gpus: bool
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            import submitit
        except ModuleNotFoundError:
            raise MissingError(
                "--launcher slurm needs the package submitit, which is not installed",
                hint="pip install -e '.[slurm]'   in your clone of mto",
            ) from None
        if self.cluster == "slurm" and shutil.which("sbatch") is None:
            raise MissingError(
                "SLURM is not here: there is no program sbatch",
                hint="start mto study on a login node, or with --launcher local",
            )
        self._submitit = submitit
        self._executor = submitit.AutoExecutor(self.folder, cluster=self.cluster)
        self._update(**{"timeout_min": 60 * 24, **self.parameters})

    def _update(self, **values: Any) -> None:
        try:
            self._executor.update_parameters(**values)
        except (NameError, ValueError, TypeError, AssertionError) as error:
            raise MtoError(f"submitit: {error}", hint="--slurm partition=NAME") from None

    def start(self, work: Work) -> Job:
        """Submit a job."""
        end_file = self._end_file(work)
        end_file.unlink(missing_ok=True)
        gpus = {"gpus_per_node": work.nproc} if self.gpus else {}
        self._update(name=work.id, nodes=1, tasks_per_node=1, **gpus)
        job = self._executor.submit(
            run_job, list(work.command), work.cwd, str(work.log), str(end_file)
        )
        return Job(job, end_file)

    def find(self, job: str, work: Work) -> Job | None:
        """A job that an earlier driver submitted; it may have ended meanwhile."""
        if not job:
            return None
        of = self._submitit
        kind: Any = of.LocalJob if self.cluster == "local" else of.SlurmJob
        return Job(kind(self.folder, job), self._end_file(work))

    def _end_file(self, work: Work) -> Path:
        return self.folder / f"{work.id}.end"

    def close(self) -> None:
        """Jobs live on."""


Launcher = Local | Submitit
Handle = Process | Job


def _alive(pid: int) -> bool:
    """Whether the controller of a local job runs."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return b"submitit" in command
