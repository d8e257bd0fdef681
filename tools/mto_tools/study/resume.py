"""Checkpoints in a run's folder: the one to go on from, and the one of an epoch or step."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

from mto_tools.checkpoint import read_checkpoint
from mto_tools.errors import CorruptError, MissingError
from mto_tools.upstreams.recipe import Recipe
from mto_tools.upstreams.upstream import fill


def go_on(recipe: Recipe, kind: str, folder: Path) -> list[str]:
    """Arguments that go on from the newest whole checkpoint in `folder`; [] begins anew.

    A checkpoint that a kill has cut moves aside as `NAME.cut`, since some scripts look for the
    newest one by themselves. Without a whole one, all that the run has left moves aside, and the
    run begins anew.
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        return []
    tuning = recipe.finetune if kind == "finetune" else None
    template = tuning.checkpoint if tuning else recipe.checkpoint
    resume = tuning.resume if tuning else recipe.resume
    if not tuning and recipe.resume_from:
        if _whole([folder / recipe.resume_from]):
            return []  # the script finds it by itself
    elif resume:
        for number in sorted(numbered(folder, template), reverse=True):
            words = fill(resume, {"folder": folder, "epoch": number, "step": number})
            files = [Path(word) for word in words if Path(word).is_relative_to(folder)]
            if _whole(files):
                return words
    _set_aside(folder)
    return []


def numbered(folder: Path, template: str) -> dict[int, Path]:
    """Checkpoints by the epoch, from 0, or the step in their name."""
    place = Path(template)
    pattern = re.sub(r"\\\{(epoch|step)[^}]*\\\}", lambda _: r"(\d+)", re.escape(place.name))
    found = {}
    for path in (folder / place.parent).glob("*"):
        if match := re.fullmatch(pattern, path.name):
            found[int(match[1])] = path
    return found


def checkpoint_at(recipe: Recipe, folder: Path, at: int) -> tuple[int, Path]:
    """The first checkpoint that was saved after `at` epochs, or steps, or later; and when.

    Some upstreams fix the epochs that they save: MAE saves after 1, 21, 41 …

    Raises:
        MissingError: There is none.
    """
    shift = 1 if "{epoch" in recipe.checkpoint else 0  # epochs count from 0
    found = numbered(folder, recipe.logs.evaluated or recipe.checkpoint)
    later = [number + shift for number in sorted(found) if number + shift >= at]
    if not later:
        raise MissingError(
            f"{folder} holds no checkpoint of {at} or later; it has "
            f"{', '.join(str(n + shift) for n in sorted(found)) or 'none'}",
            hint="a smaller save = N in study.toml, for runs that have not begun",
        )
    return later[0], found[later[0] - shift]


def check_model(recipe: Recipe, file: Path) -> None:
    """See that `[finetune]` is meant for a checkpoint's model: scripts load what fits, and go on.

    Raises:
        MissingError: It is not, as far as the settings in the file tell.
    """
    names = recipe.finetune.models if recipe.finetune else ()
    models = [recipe.finetuned[name] for name in names]
    if not all(model.when for model in models):  # one fits all
        return
    try:
        settings = read_checkpoint(file, mmap=True).settings
    except CorruptError:  # the recipe reads what the safe reader refuses
        return
    if settings and not any(model.fits(settings) for model in models):
        raise MissingError(
            f"{file} is of a model that the recipe's fine-tuning is not meant for; it is for "
            f"{', '.join(names)}",
            hint="finetune_at = [] in another study, or size = 'full' with such a model",
        )


def _whole(files: list[Path]) -> bool:
    """Whether all can be read; those that are cut move aside."""
    whole = True
    for file in files:
        try:
            read_checkpoint(file)
        except MissingError:
            whole = False
        except CorruptError:
            if zipfile.is_zipfile(file):  # not cut; the recipe reads what the safe reader refuses
                continue
            file.replace(file.with_name(f"{file.name}.cut"))
            whole = False
    return whole


def _set_aside(folder: Path) -> None:
    number = 1
    while (aside := folder.with_name(f"{folder.name}.aside{number}")).exists():
        number += 1
    folder.replace(aside)
