"""Table `[plan]` of `patches/NAME/recipe.toml`: facts about memory, batch and schedule."""

from __future__ import annotations

from math import prod
from typing import Annotated

from pydantic import AfterValidator, Field, PositiveInt

from mto_tools.errors import MissingError, RefusedError
from mto_tools.upstreams.templates import of, some
from mto_tools.upstreams.upstream import Table

VALUES = (
    *("accumulation", "arm", "checkout", "config", "data", "epochs", "flags", "micro", "model"),
    *("output", "rate", "total", "warmup"),
)


class Counts(Table):
    """The memory of one model; bytes and tokens are of one image.

    `saved` is counted on a CPU by `tests/plan/measure.py`: the distinct storages that autograd
    packs, without parameters. The shapes give the rest.

    Attributes:
        parameters: Of the trained model, all.
        trainable: Those with gradients.
        saved: Bytes saved for the backward pass under bfloat16 autocast.
        tokens: Tokens in a traced block, class tokens included.
        width: Channels of a traced block.
        depths: Depths at which MTO measures.
        masked: Masked tokens.
        attention: Attentions that are written out, not fused: blocks, heads, queries, keys.
    """

    parameters: PositiveInt
    trainable: PositiveInt
    saved: PositiveInt
    tokens: PositiveInt
    width: PositiveInt
    depths: PositiveInt
    masked: PositiveInt
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
        """Three floats per masked row and depth, indices, and one gradient."""
        return self.depths * self.masked * 12 + 24 * self.tokens + 4 * self.tokens * self.width


class Schedule(Table):
    """One model with a length of training; several lengths of one model are several schedules.

    Attributes:
        model: Upstream's name of the model.
        total_batch: Images per step on all GPUs.
        rate: Learning rate as upstream writes it, before any scaling.
        epochs: Length; 0 for a recipe that counts steps.
        flags: Arguments of this schedule alone.
        images_per_gpu: Micro batch in the command of docs/recipes.md; 0: not in its memory table.
    """

    model: str
    total_batch: PositiveInt
    rate: Annotated[str, Field(pattern=r"^[0-9.]+(e-?[0-9]+)?$")]
    epochs: int = 0
    flags: str = ""
    images_per_gpu: int = 0


class Facts(Table):
    """All that `mto plan` knows of a recipe.

    Attributes:
        arguments: Arguments of the script; the names of `VALUES` in braces are filled in.
        mto: Arguments that switch MTO on.
        schedules: Its models; the first is the default.
        memory: Counts by model.
        images: Images of an epoch; 0 for a recipe that counts steps.
        clip_grad: Largest gradient norm; 0 does not clip.
        rate_per_images: Images for which `Schedule.rate` is given, where upstream scales it by the
            total batch; 0 where upstream takes it as it stands.
        warmup_epochs: Length of the warm-up; 0 where `arguments` do not give it.
        bytes_beside: Bytes per parameter of models without gradient: EMA copy, teacher.
        largest_micro_batch: Largest micro batch of a model that normalises by it; 0: no limit.
        before: Command to run first in the working directory.
        left_over: Effect of micro batches at the end of an epoch that fill no step.
    """

    arguments: Annotated[str, of(*VALUES)]
    mto: str = "--mto"
    schedules: Annotated[tuple[Schedule, ...], AfterValidator(some)]
    memory: dict[str, Counts] = Field(default_factory=dict)
    images: int = 0
    clip_grad: float = 0.0
    rate_per_images: int = 0
    warmup_epochs: int = 0
    bytes_beside: int = 0
    largest_micro_batch: int = 0
    before: str = ""
    left_over: str = "they are dropped"

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
