"""The scores of a checkpoint: read where nothing has changed, or else made."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TaskID

from mto_tools.bars import progress_bars
from mto_tools.checkpoint import digest, read_checkpoint
from mto_tools.errors import CorruptError, MissingError, RefusedError
from mto_tools.evaluate import probe
from mto_tools.evaluate.extract import DONE, Made
from mto_tools.evaluate.features import Maker, features
from mto_tools.evaluate.images import Images
from mto_tools.evaluate.result import Evaluation, path_of
from mto_tools.evaluate.rows import Rows


@dataclass(frozen=True)
class Evaluator:
    """Evaluates checkpoints of a recipe on one data set."""

    maker: Maker
    images: Images
    k: int
    cache: Path | None  # of features; None: they are not kept
    out: Path | None  # folder of results; None: beside each checkpoint
    console: Console  # for a person

    def evaluate(self, file: Path) -> Evaluation:
        """Scores of a checkpoint; its file of results is written, or is up to date.

        Raises:
            MissingError, CorruptError: The checkpoint, or what it needs, is not there or not whole.
            RefusedError: The file of results is of another recipe.
            MtoError: The fine-tuning script failed.
        """
        checkpoint = read_checkpoint(file)
        sha = digest(file)
        settings = {
            **self.maker.settings(checkpoint),
            "k-NN": f"k = {self.k}",
            "probe": f"C = {probe.C}",
        }
        path = path_of(file, self.out)
        earlier = self._earlier(path)
        if earlier is not None:
            changed = self._changed(earlier, sha, settings)
            if not changed:
                self.console.print(
                    f"{file}: evaluated on {earlier.made}; nothing has changed since"
                )
                return earlier
            self.console.print(f"{file}: evaluated anew, {changed} changed since {earlier.made}")
        counts = {split: len(labels) for split, labels in self.images.labels.items()}
        self.console.print(f"{file}: features of {counts['train']} and {counts['val']} images")
        key = self.maker.key(checkpoint, self.images, sha)
        with progress_bars(self.console, transient=True) as bars:
            bar = bars.add_task("features", total=sum(counts.values()))
            watch = partial(_update, bars, bar)
            with features(self.maker, checkpoint, self.images, key, self.cache, watch) as at:
                bars.remove_task(bar)
                made, found = self._score(at, bars)
        result = Evaluation(
            checkpoint=str(file.absolute()),
            digest=sha,
            progress=checkpoint.progress,
            recipe=self.maker.name,
            model=made.model,
            data=self.images.described,
            images_train=counts["train"],
            images_val=counts["val"],
            scores=found,
            settings={**settings, "transform": made.transform},
            versions=self.maker.versions(),
            made=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        )
        result.save(path)
        return result

    def _score(self, folder: Path, bars: Progress) -> tuple[Made, dict[str, float]]:
        from mto_tools.evaluate.score import scores

        made = Made.model_validate_json((folder / DONE).read_text())
        labels = self.images.labels
        train, val = (Rows(folder / f"{split}.npy") for split in ("train", "val"))
        for split, rows in (("train", train), ("val", val)):
            if rows.shape != (len(labels[split]), made.size):
                raise CorruptError(
                    f"{folder / split}.npy: has {rows.shape} features, not "
                    f"{(len(labels[split]), made.size)}",
                    hint=f"rm -r {folder}",
                )
        self.console.print("  k-NN and linear probes")
        watch = partial(_update, bars, bars.add_task("k-NN", total=len(labels["train"])))
        bars.add_task("linear probes", total=None)
        device = "cpu" if self.maker.cpu else "cuda"
        found = scores(
            train, labels["train"], val, labels["val"], k=self.k, device=device, watch=watch
        )
        return made, found

    def _earlier(self, path: Path) -> Evaluation | None:
        try:
            found = Evaluation.load(path)
        except MissingError:
            return None
        if found.recipe != self.maker.name:
            raise RefusedError(
                f"{path} is of another recipe, {found.recipe}", hint="--out DIR, or move it away"
            )
        return found

    def _changed(self, earlier: Evaluation, sha: str, settings: dict[str, str]) -> str:
        """What is not as it was, in words; "" if nothing."""
        data, versions = self.images.described, self.maker.versions()
        pairs = {
            "the checkpoint": (earlier.digest, sha),
            "the data": (earlier.data.rpartition(": ")[2], data.rpartition(": ")[2]),
            **{key: (earlier.settings.get(key), x) for key, x in settings.items()},
            **{key: (earlier.versions.get(key), x) for key, x in versions.items()},
        }
        return ", ".join(key for key, (was, now) in pairs.items() if was != now)


def _update(bars: Progress, bar: TaskID, done: int) -> None:
    bars.update(bar, completed=done)
