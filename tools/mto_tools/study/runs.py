"""Where the runs of a report are, and how their folders are read."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from mto_tools.checkpoint import read_checkpoint
from mto_tools.errors import MissingError, MtoError
from mto_tools.evaluate.result import FOLDER, Evaluation
from mto_tools.study.logs import (
    Log,
    find_file,
    last_json_line,
    read_finetuning,
    read_json_lines,
    read_text,
)
from mto_tools.study.record import AffinityMap, Curve, Record, Unit
from mto_tools.upstreams.recipe import Recipe, Score

FINETUNED = Score(key="finetuned", label="Fine-tuned top-1 accuracy")
# Scores of `mto evaluate`: its key, and what is shown.
EVALUATED = {
    "knn": Score(key="evaluate.knn", label="k-NN accuracy, mto evaluate"),
    "probe": Score(key="evaluate.probe", label="Linear probe, mto evaluate"),
    "probe_1pct": Score(key="evaluate.probe_1pct", label="Linear probe, 1 % of labels"),
    "probe10": Score(key="evaluate.probe10", label="Linear probe, 10 labels a class"),
}


class Source(BaseModel):
    """One run: its arm, its seed, and the output folder that the recipe wrote into."""

    model_config = ConfigDict(frozen=True)

    arm: str
    seed: int
    folder: Path
    finetuned: dict[float, Path] = Field(default_factory=dict)  # by epoch of pre-training
    ended: bool | None = None  # False: it failed, so its seed is left out; None: not known
    seconds: float | None = None  # it took so long; None: not known

    @property
    def name(self) -> str:
        """`ARM-SEED`, as in messages and on the page."""
        return f"{self.arm}-{self.seed}"


def scores_of(recipe: Recipe) -> tuple[Score, ...]:
    """All scores that a report can hold, in the order in which they decide."""
    own = recipe.compare.scores if recipe.compare else ()
    return (*own, *EVALUATED.values(), FINETUNED)


def unit_of(recipe: Recipe) -> Unit:
    """What the recipe's checkpoints count."""
    return "epoch" if "{epoch" in recipe.checkpoint else "step"


def collect(source: Source, recipe: Recipe, *, pictures: bool = False) -> Record:
    """Read one run's folder; affinity maps, megabytes for a ViT, and images with `pictures`.

    Raises:
        MissingError: The folder is missing, or holds nothing that a report can show.
        CorruptError: A line is not the JSON that the recipe promises.
    """
    folder, logs = source.folder, recipe.logs
    if not folder.is_dir():
        raise MissingError(f"there is no folder {folder} of {source.name}", hint="ls -d its parent")
    path = find_file(folder, logs.measures)
    measured = read_json_lines(path) if path else Log()
    own = _own(folder, recipe)
    curves = measured.curves()
    if "loss" not in curves:  # without MTO; with it, the recipe's own loss may hold the terms
        found = own.curves()
        losses = [found[name] for name in (*logs.own_loss, "loss") if name in found]
        curves |= {"loss": losses[0]} if losses else {}
    evaluated, used, notes = _evaluations(folder, recipe)
    finetuned, tuned = _finetuned(source, recipe)
    declared = recipe.compare.scores if recipe.compare else ()
    in_log = {s.key: own.curves()[s.key] for s in declared if s.key in own.curves()}
    record = Record(
        arm=source.arm,
        seed=source.seed,
        seconds=source.seconds,
        bytes=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        curves=curves,
        rows=measured.rows(),
        rng=measured.texts("rng"),
        data=own.texts(logs.data),
        scores=in_log | evaluated | finetuned,
        options=_options(path),
        evaluated=used,
        tuned=tuned,
        notes=[*measured.notes, *own.notes, *notes],
    )
    if not record.curve("loss").at and not record.scores:
        names = (logs.measures, logs.own, f"{FOLDER}/*.json")
        raise MissingError(
            f"{folder} of {source.name} holds no run of this recipe: none of "
            f"{', '.join(filter(None, names))} has anything to show",
            hint="--recipe names another recipe; --arm NAME=DIR another folder",
        )
    record.settings, note = read_settings(folder, recipe)
    record.notes += [note] if note else []
    if pictures:
        images = find_file(folder, logs.images)
        record.affinity = _affinity(_place(folder, recipe), logs.affinity)
        record.images = base64.b64encode(images.read_bytes()).decode() if images else ""
    return record


def _own(folder: Path, recipe: Recipe) -> Log:
    """The recipe's own log."""
    path = find_file(folder, recipe.logs.own)
    if path is None:
        return Log()
    pattern = recipe.logs.own_pattern
    return read_text(path, pattern) if pattern else read_json_lines(path)


def _options(measures: Path | None) -> dict[str, Any]:
    """MTO's settings at the last start of the run."""
    path = measures.with_name("mto-config.jsonl") if measures else None
    if path is None or not path.is_file():
        return {}
    return {key: value for key, value in last_json_line(path).items() if key != "step"}


def _evaluations(folder: Path, recipe: Recipe) -> tuple[dict[str, Curve], str, list[str]]:
    """Scores of `mto evaluate` by checkpoint; the data and model that it used."""
    place = find_file(_place(folder, recipe), FOLDER)
    found: dict[float, dict[str, float]] = {}
    used: set[str] = set()
    notes: list[str] = []
    files = sorted(place.glob("*.json")) if place else []
    template = recipe.logs.evaluated or recipe.checkpoint
    own = [path for path in files if _matches(path.stem, template)]
    for path in own or files:
        one = Evaluation.load(path)
        used.add(f"{one.data}, {one.model}")
        if one.progress is None:
            notes.append(f"{path}: its checkpoint does not say when it was saved; left out")
            continue
        found[one.progress + (unit_of(recipe) == "epoch")] = one.scores
    curves = {}
    for key, score in EVALUATED.items():
        points = {at: scores[key] for at, scores in sorted(found.items()) if key in scores}
        if points:
            curve = Curve(at=[*points], values=[*points.values()], unit=unit_of(recipe))
            curves[score.key] = curve
    return curves, "; ".join(sorted(used)), notes


def _finetuned(source: Source, recipe: Recipe) -> tuple[dict[str, Curve], dict[float, int]]:
    """Accuracies after fine-tuning, and how often each fine-tuning evaluated."""
    points: dict[float, float] = {}
    tuned: dict[float, int] = {}
    logs = recipe.logs
    for at, folder in sorted(source.finetuned.items()):
        path = find_file(folder, logs.finetune)
        if path is None:
            raise MissingError(
                f"{folder} holds no {logs.finetune or 'log that the recipe names'}: no fine-tuning "
                f"of {source.name} after {at:g} {unit_of(recipe)}s",
                hint="name the folder that the fine-tuning script wrote into",
            )
        points[at], tuned[at] = read_finetuning(path, logs.finetune_score, logs.finetune_pattern)
    curve = Curve(at=[*points], values=[*points.values()], unit=unit_of(recipe))
    return ({FINETUNED.key: curve} if points else {}), tuned


def _affinity(folder: Path, template: str) -> AffinityMap | None:
    """The newest affinity map."""
    found = [path for path in folder.glob("*.npz") if _matches(path.name, template)]
    for path in sorted(found)[-1:]:
        digits = re.findall(r"\d+", path.name)
        with np.load(path) as arrays:
            return AffinityMap(
                step=int(digits[-1]),
                num_masked=int(arrays["num_masked"]),
                maps=_rounded(arrays["affinity"]),
                masked_to_visible=_rounded(arrays["masked_to_visible"]),
            )
    return None


def _rounded(maps: np.ndarray[Any, Any]) -> list[list[list[float]]]:
    """Three digits: more than a picture shows, and the report stays small."""
    return [[[float(f"{v:.3g}") for v in row] for row in depth] for depth in maps.tolist()]


def _matches(name: str, template: str) -> bool:
    """Whether a file has the name of a template, whatever its numbers."""
    parts = re.split(r"\{[^}]*\}", Path(template).name)
    return bool(re.fullmatch(r"\d+".join(map(re.escape, parts)), name))


def read_settings(folder: Path, recipe: Recipe) -> tuple[dict[str, Any], str]:
    """The recipe's settings, out of its newest checkpoint; a note where they cannot be read."""
    place = _place(folder, recipe)
    names = [name for name in (recipe.checkpoint, recipe.resume_from) if name]
    found = [p for p in place.iterdir() if any(_matches(p.name, name) for name in names)]
    if not found:
        return {}, ""
    newest = max(found, key=lambda path: path.stat().st_mtime_ns)
    try:
        settings = read_checkpoint(newest, mmap=True).settings
    except MtoError as error:
        return {}, f"settings are not known: {error.message}"
    free = recipe.logs.free
    flat = {key: value for key, value in _flat(settings).items() if key not in free}
    # MTO's own are in mto-config.jsonl, and are meant to differ.
    return {key: value for key, value in flat.items() if not key.lower().startswith("mto")}, ""


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        inner = _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {}
        flat |= inner or {f"{prefix}{key}": value}
    return flat


def _place(folder: Path, recipe: Recipe) -> Path:
    """The folder in which the run's files are."""
    found = (find_file(folder, name) for name in (recipe.logs.measures, recipe.logs.own))
    return next((path.parent for path in found if path), folder)
