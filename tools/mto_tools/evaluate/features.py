"""Features of a checkpoint: made by the recipe's fine-tuning script, kept in a cache."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mto_tools import errors
from mto_tools.checkpoint import Checkpoint
from mto_tools.errors import MissingError, MtoError
from mto_tools.evaluate.extract import DONE, FAILED, REQUEST, Request
from mto_tools.evaluate.images import Images
from mto_tools.launch.command import Launch
from mto_tools.launch.digits import CLASSES, lay_out
from mto_tools.launch.inputs import versions
from mto_tools.launch.process import start
from mto_tools.upstreams.recipe import Evaluate, Recipe, look_up
from mto_tools.upstreams.upstream import fill

TAKEOVER = Path(__file__).with_name("takeover.py")
POLL = 0.2  # seconds between looks at the images done


@dataclass(frozen=True)
class Maker:
    """How features are made."""

    name: str  # of the upstream
    recipe: Recipe
    checkout: Path
    extra: Sequence[str] = ()  # more arguments for the script, which win
    processes: int = 1
    cpu: bool = False
    batch: int = 64
    workers: int = 4

    @property
    def facts(self) -> Evaluate:
        """The recipe's table.

        Raises:
            MissingError: There is none.
        """
        if self.recipe.evaluate is None:
            raise MissingError(
                f"{self.name} cannot be evaluated: its recipe.toml has no table [evaluate]",
                hint="docs/evaluate.md, A fifth upstream, names the facts it needs",
            )
        return self.recipe.evaluate

    def check(self) -> None:
        """Look before a start.

        Raises:
            MissingError: The recipe has no table [evaluate], or its script is not there.
        """
        script = self.checkout / self.facts.script
        Launch(self.name, self.recipe, script).check()

    def arguments(self, checkpoint: Checkpoint, data: Path, out: Path) -> list[str]:
        """Arguments of the script for a checkpoint.

        Raises:
            MissingError: The checkpoint's settings name no model that the script has.
        """
        places = {"checkout": self.checkout, "checkpoint": checkpoint.path.absolute()}
        return self._fill(checkpoint, **places, data=data, out=out)

    def described(self, checkpoint: Checkpoint) -> str:
        """The same with the names of places for places, which do not matter to features."""
        places = {name: f"{{{name}}}" for name in ("checkout", "checkpoint", "data", "out")}
        return shlex.join(self._fill(checkpoint, **places))

    def _fill(self, read: Checkpoint, /, **places: object) -> list[str]:
        facts, settings, models = self.facts, read.settings, [*self.recipe.finetuned.values()]
        fitting = [model for model in models if model.fits(settings)]
        if not fitting and not self.extra:
            keys = sorted({key for model in models for key in model.when})
            found = ", ".join(f"{key} is {look_up(settings, key)!r}" for key in keys)
            known = "; ".join(" ".join(model.values.values()) for model in models)
            raise MissingError(
                f"{read.path}: {facts.script} has no model for it: "
                f"{found if settings else 'no settings are in the checkpoint'}; known: {known}",
                hint=f"name the model as {facts.script} takes it: mto evaluate {self.name} "
                f"{read.path} ... -- ARGUMENTS",
            )
        values = {**(fitting or models)[0].values, **places, "classes": CLASSES}
        return [*fill(facts.arguments, values), *self.extra]

    def settings(self, checkpoint: Checkpoint) -> dict[str, str]:
        """What features depend on besides weights and images."""
        return {
            "arguments": self.described(checkpoint),
            "scripts": _sources(self.checkout)[:16],
            "device": "CPU" if self.cpu else "GPU",
        }

    def versions(self) -> dict[str, str]:
        """Versions of the packages that the script imports, and of ours."""
        return versions(("torch", "mto-core", *self.recipe.needs))

    def key(self, checkpoint: Checkpoint, images: Images, sha: str) -> str:
        """Checksum of all that features depend on."""
        parts = [sha, images.fingerprint, self.settings(checkpoint), self.versions()]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]

    def make(
        self, checkpoint: Checkpoint, images: Images, folder: Path, watch: Callable[[int], None]
    ) -> None:
        """Write train.npy, val.npy and done.json into a folder; `watch` gets the images done.

        Raises:
            MtoError: The script failed, or its model cannot be used; the message says why.
        """
        facts = self.facts
        with tempfile.TemporaryDirectory(prefix="mto-evaluate-") as temporary:
            work = Path(temporary).resolve()
            counts = work / "counts"
            counts.mkdir()
            request = Request(
                checkpoint=checkpoint.path.absolute(),
                data=images.root.absolute(),
                out=folder,
                counts=counts,
                **{key: getattr(facts, key) for key in ("head", "fresh", "resized")},
                batch=self.batch,
                workers=self.workers,
            )
            # Two images a process, or more: each needs a batch.
            data = lay_out(self.recipe.data, work / "images", -(-2 * self.processes // CLASSES))
            (work / "out").mkdir()
            launch = Launch(
                name=self.name,
                recipe=self.recipe,
                script=self.checkout / facts.script,
                arguments=self.arguments(checkpoint, data, work / "out"),
                processes=self.processes,
                cpu=self.cpu,
                before=[TAKEOVER],
            )
            variables = {**launch.environment(), REQUEST: request.model_dump_json()}
            if self.cpu:
                variables["CUDA_VISIBLE_DEVICES"] = ""
            run = start(launch.argv(), cwd=work, log=work / "log", environment=variables)
            try:
                while run.returncode is None:
                    time.sleep(POLL)
                    watch(_done(counts))
            finally:
                code = run.wait()
            watch(_done(counts))
            if (folder / FAILED).is_file():
                told = json.loads((folder / FAILED).read_text())
                raise getattr(errors, told["kind"])(told["message"], hint=told["hint"])
            if code or not (folder / DONE).is_file():
                raise MtoError(
                    f"{facts.script} ended with {code} before its model was there:\n{run.cause()}",
                    hint=f"see that the checkpoint is of {self.name}, and that the arguments after "
                    "-- are its script's",
                )


def _done(counts: Path) -> int:
    """Images that all ranks have done; see `Request.counts`."""
    return sum(file.stat().st_size for file in counts.iterdir())


def _sources(checkout: Path) -> str:
    """Checksum of the scripts and configurations of a checkout."""
    found = hashlib.sha256()
    files = (x for kind in ("py", "yaml", "yml", "json") for x in checkout.glob(f"**/*.{kind}"))
    for file in sorted(files):
        found.update(f"{file.relative_to(checkout)}\0".encode() + file.read_bytes())
    return found.hexdigest()


@contextmanager
def features(
    maker: Maker,
    checkpoint: Checkpoint,
    images: Images,
    key: str,
    cache: Path | None,
    watch: Callable[[int], None],
) -> Iterator[Path]:
    """A folder with the features, from the cache or made now; without a cache, for this time.

    An entry of the cache is renamed into its place when it is whole.
    """
    if cache and (cache / key / DONE).is_file():
        yield cache / key
        return
    if cache:
        cache.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{os.getpid()}-", dir=cache)).resolve()
    try:
        maker.make(checkpoint, images, made, watch)
        if not cache:
            yield made
            return
        shutil.rmtree(cache / key, ignore_errors=True)
        made.replace(cache / key)
        yield cache / key
    finally:
        shutil.rmtree(made, ignore_errors=True)
