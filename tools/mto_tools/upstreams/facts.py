"""Table `[plan]` of `patches/NAME/recipe.toml`: facts about memory, batch and schedule."""

from __future__ import annotations

from math import prod
from typing import Annotated

from pydantic import AfterValidator, Field, PositiveInt

from mto_tools.errors import MissingError, RefusedError
from mto_tools.upstreams.upstream import Table, of, some

VALUES = (
    *("accumulation", "arm", "checkout", "config", "data", "epochs", "flags", "micro", "model"),
    *("output", "rate", "total", "warmup"),
)


class Counts(Table):
    """The memory of one model; bytes and tokens are of one image.

    `saved` is counted on a CPU by `tests/plan/measure.py`: the distinct storages that autograd
    packs, without parameters. The shapes give the rest.
    """

    parameters: PositiveInt  # of the trained model, all
    trainable: PositiveInt  # those with gradients
    saved: PositiveInt  # bytes saved for the backward pass under bfloat16 autocast
    tokens: PositiveInt  # tokens in a traced block, class tokens included
    width: PositiveInt  # channels of a traced block
    depths: PositiveInt  # depths at which MTO measures
    masked: PositiveInt  # masked tokens
    # Attentions that are written out, not fused: blocks, heads, queries, keys.
    attention: tuple[tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt], ...] = ()

    @property
    def activations(self) -> int:
        """Bytes saved for the backward pass on CUDA, whose softmax gives float32."""
        return self.saved + 4 * sum(prod(shape) for shape in self.attention)

    @property
    def workspace(self) -> int:
        """Gradients of residual (4 B), of an MLP (2 x 4 x 2 B) and of one softmax (3 x 4 B)."""
        rows = max((prod(shape[1:]) for shape in self.attention), default=0)
        return self.tokens * self.width * (2 * 4 + 2 * 4 * 2) + 3 * 4 * rows

    @property
    def mto(self) -> int:
        """Three floats per masked row and depth, indices, a LayerNormed copy and one gradient."""
        return self.depths * self.masked * 12 + 24 * self.tokens + 8 * self.tokens * self.width


class Schedule(Table):
    """One model with a length of training; several lengths of one model are several schedules."""

    model: str  # upstream's name of it
    total_batch: PositiveInt  # images per step on all GPUs
    rate: Annotated[str, Field(pattern=r"^[0-9.]+(e-?[0-9]+)?$")]  # before upstream scales it
    epochs: int = 0  # length; 0 for a recipe that counts steps
    flags: str = ""  # arguments of this schedule alone
    images_per_gpu: int = 0  # in docs/recipes.md; 0: not in its memory table


class Facts(Table):
    """All that `mto plan` knows of a recipe."""

    arguments: Annotated[str, of(*VALUES)]  # of the script; names in braces are filled in
    mto: str = "--mto"  # arguments that switch MTO on
    schedules: Annotated[tuple[Schedule, ...], AfterValidator(some)]  # the first is the default
    memory: dict[str, Counts] = Field(default_factory=dict)  # by model
    images: int = 0  # images of an epoch; 0 for a recipe that counts steps
    clip_grad: float = 0.0  # largest gradient norm; 0 does not clip
    rate_per_images: int = 0  # total batch of `Schedule.rate`; 0 where upstream does not scale it
    warmup_epochs: int = 0  # length of the warm-up; 0 where `arguments` do not give it
    bytes_beside: int = 0  # bytes per parameter of models without gradient: EMA copy, teacher
    largest_micro_batch: int = 0  # of a model that normalises by it; 0: no limit
    before: str = ""  # command to run first in the working directory
    left_over: str = "they are dropped"  # micro batches at an epoch's end that fill no step

    @property
    def models(self) -> list[str]:
        """Names of the models."""
        return list(dict.fromkeys(schedule.model for schedule in self.schedules))

    def schedule(self, model: str | None, epochs: int | None) -> Schedule:
        """Find a model's schedule.

        Raises:
            MissingError: Upstream has no such model, or no schedule of that length for it.
            RefusedError: The schedule would end within its warm-up.
        """
        model = model or self.schedules[0].model
        named = [schedule for schedule in self.schedules if schedule.model == model]
        if not named:
            raise MissingError(f"no model {model!r}", hint=f"--model {' | '.join(self.models)}")
        for schedule in named:
            if epochs in (None, schedule.epochs):
                return schedule
        assert epochs is not None
        if "{epochs}" not in self.arguments:
            lengths = " | ".join(str(schedule.epochs) for schedule in named if schedule.epochs)
            raise MissingError(
                f"{model}: upstream has no schedule of {epochs} epochs",
                hint=f"--epochs {lengths}" if lengths else "it counts steps: leave --epochs out",
            )
        if epochs <= self.warmup_epochs:
            raise RefusedError(
                f"{model}: {epochs} epochs end within the warm-up of {self.warmup_epochs}: the "
                "learning rate never reaches its peak",
                hint=f"--epochs {self.warmup_epochs + 1} or more; for a shorter run leave it out "
                "and change --epochs and --warmup_epochs in the printed command",
            )
        return named[0].model_copy(update={"epochs": epochs})
