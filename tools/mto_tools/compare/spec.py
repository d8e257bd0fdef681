"""A recipe as a comparison runs it, from `patches/NAME/recipe.toml`."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from mto_tools.errors import MissingError
from mto_tools.upstreams.recipe import Compare, Data, Logs, Recipe, Score, load_recipe
from mto_tools.upstreams.upstream import load_upstream

LogSpec = Logs
__all__ = ["Data", "Launch", "LogSpec", "Score", "load_launch"]


class Launch(BaseModel):
    """The recipe, its table `[compare]`, and MTO's options in its manner."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    recipe: Recipe
    compare: Compare
    baseline: list[str]
    mto: list[str]
    measures: list[str]

    @property
    def batch(self) -> int | None:
        """Images of an optimizer step; None where the recipe counts steps."""
        return self.compare.batch

    @property
    def steps(self) -> int:
        """Optimizer steps of a run."""
        return self.compare.steps

    @property
    def disk_mb_per_run(self) -> int:
        """Room that a run takes."""
        return self.compare.disk_mb_per_run

    @property
    def moving_target(self) -> bool:
        """L_ss decides nothing, as each arm has a target of its own."""
        return self.compare.moving_target

    @property
    def scores(self) -> list[Score]:
        """The first one decides."""
        return list(self.compare.scores)

    @property
    def logs(self) -> Logs:
        """Files that a run leaves."""
        return self.recipe.logs

    @property
    def data(self) -> Data:
        """How images are read."""
        return self.recipe.data

    @property
    def styles(self) -> dict[str, str]:
        """Preset of MTO by style; the first style is the default."""
        return {name: style.preset for name, style in self.recipe.styles.items()}


def make_launch(recipe: Recipe, compare: Compare) -> Launch:
    """Words for the arms; names in braces are filled in by the plan."""
    mto = recipe.options.mto
    every = {name: f"{{{name}}}" for name in ("log_every", "grad_every", "affinity_steps")}
    return Launch(
        recipe=recipe,
        compare=compare,
        # The baseline measures the same things and adds nothing: all weights are zero.
        baseline=mto({"preset": "observe"}),
        mto=mto({"preset": "{preset}"}),
        measures=mto(every)[len(mto({})) :],
    )


def load_launch(home: Path, upstream: str) -> Launch:
    """Read `patches/UPSTREAM/recipe.toml`.

    Raises:
        MissingError: No such upstream, or its recipe.toml has no table `[compare]`.
        CorruptError: The file is not TOML, or a key is missing, unknown or of another type.
    """
    found = load_upstream(home, upstream)
    recipe = load_recipe(found)
    if recipe.compare is None:
        raise MissingError(
            f"{upstream} cannot be compared: {found.folder / 'recipe.toml'} has no table [compare]",
            hint=f"write it after the model of {home / 'patches/mini/recipe.toml'}",
        )
    return make_launch(recipe, recipe.compare)
