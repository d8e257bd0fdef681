"""How long the pre-trainings of a study are, in steps and epochs."""

from __future__ import annotations

from dataclasses import dataclass

from mto_tools.errors import MissingError, MtoError
from mto_tools.study.spec import Study
from mto_tools.upstreams.facts import Facts
from mto_tools.upstreams.facts import Schedule as FullSize
from mto_tools.upstreams.recipe import Recipe

MAX_LOG_EVERY = 500  # steps


@dataclass(frozen=True)
class Schedule:
    """The length of every pre-training."""

    steps: int
    epochs: int | None  # None: the recipe counts steps
    batch: int | None  # images of a step; None: the recipe's own
    log_every: int

    @property
    def last_logged(self) -> int:
        """The last step with a line in mto.jsonl, which has none for a remainder."""
        return self.steps - self.steps % self.log_every


def schedule_of(study: Study, recipe: Recipe, images: int) -> Schedule:
    """Steps and epochs of every pre-training on so many images.

    Raises:
        MissingError: The recipe has no table for this size, or the images make no batch.
        MtoError: Steps are asked of a recipe that counts epochs, in full size, or the reverse.
    """
    check_size(study, recipe)
    if study.size == "full":
        _, plan = full_size(study, recipe)
        batch: int | None = study.batch or plan.total_batch
        steps, epochs = study.steps, study.epochs or plan.epochs or None
    else:
        assert recipe.compare  # as check_size saw
        batch = study.batch or recipe.compare.batch
        steps, epochs = study.steps or recipe.compare.steps, study.epochs
    if counts_epochs(recipe):
        assert batch
        per_epoch = steps_per_epoch(images, batch)
        epochs = epochs or -(-(steps or per_epoch) // per_epoch)
        steps = epochs * per_epoch
    elif study.epochs or not steps:
        raise MtoError(f"{study.upstream} counts steps, not epochs", hint="steps = 900")
    else:
        epochs = None
    return Schedule(steps, epochs, batch, log_every=min(max(1, steps // 90), MAX_LOG_EVERY))


def full_size(study: Study, recipe: Recipe) -> tuple[Facts, FullSize]:
    """Table `[plan]`, and its schedule; its epochs may differ where they are an argument.

    Raises:
        MissingError: There is no such table, model or length.
    """
    facts = recipe.plan
    if facts is None:
        raise MissingError(
            f"{study.upstream} has no full size: its recipe.toml has no table [plan]",
            hint="size = 'small'",
        )
    model = study.model or facts.models[0]
    known = study.epochs in {one.epochs for one in facts.schedules if one.model == model}
    free = "{epochs}" in facts.arguments or (recipe.options.epochs and not known)
    return facts, facts.schedule(model, None if free else study.epochs)


def check_size(study: Study, recipe: Recipe) -> None:
    """Look at what the recipe knows, before anything is made ready.

    Raises:
        MissingError: The recipe has no table for a small comparison.
        MtoError: A batch is asked of a recipe that takes it among its own arguments.
    """
    recipe.style(study.style or None, study.upstream)
    if study.size == "full":
        return
    if recipe.compare is None:
        raise MissingError(
            f"{study.upstream} cannot be compared: its recipe.toml has no table [compare]",
            hint=f"write it into patches/{study.upstream}/recipe.toml, as in "
            "patches/mini/recipe.toml",
        )
    if study.batch and recipe.compare.batch is None:
        option = recipe.options.batch
        raise MtoError(
            f"{study.upstream} takes its batch among its own arguments, not by --batch or batch",
            hint=f"-- {option} {study.batch}, or arguments = ['{option}', '{study.batch}']",
        )


def counts_epochs(recipe: Recipe) -> bool:
    """Whether its schedule and checkpoints count epochs, else optimizer steps."""
    return "{epoch" in recipe.checkpoint


def steps_per_epoch(images: int, batch: int) -> int:
    """Every recipe that counts epochs drops the images left over from its last batch.

    Raises:
        MissingError: The images do not make one batch.
    """
    if images < batch:
        raise MissingError(
            f"the data set holds {images} images, which do not make one batch of {batch}",
            hint=f"--batch {images}",
        )
    return images // batch
