"""A DeepSpeed configuration, and whether it leaves the recipe what it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from mto_tools.errors import CorruptError, MissingError, RefusedError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

HINT = "mto plan NAME --gpus N --gpu-mem GB   (writes the configuration and the command for it)"
EXPECTED = {
    "gradient_clipping": "expected a number, 0.0 for none; left out, DeepSpeed clips at 1.0",
    "zero_optimization.stage": "expected 1 or 2; stage 3 shards the weights, which EMA, teachers "
    "and MTO's hooks read",
}
AUTOCAST = "the recipe's own autocast and loss scale count"
REASONS = {
    "optimizer": "the recipe's own optimizer counts",
    "scheduler": "the recipe's own schedule counts",
    "fp16": f"it would hold the weights in float16; {AUTOCAST}",
    "bf16": f"it would hold the weights in bfloat16; {AUTOCAST}",
    "torch_autocast": AUTOCAST,
    "amp": AUTOCAST,
    "zero_optimization.offload_optimizer": "offload is not supported",
    "zero_optimization.offload_param": "offload is not supported",
}


class _Strict(BaseModel):
    """No key but these, and no number as text: "auto" is a guess that may change the recipe."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class Zero(_Strict):
    """Keys that say how ZeRO works, and nothing of the recipe."""

    stage: Annotated[int, Field(ge=1, le=2)]
    reduce_bucket_size: PositiveInt | None = None
    allgather_bucket_size: PositiveInt | None = None
    overlap_comm: bool | None = None
    contiguous_gradients: bool | None = None
    reduce_scatter: bool | None = None
    allgather_partitions: bool | None = None


class Content(_Strict):
    """Numbers that must agree with the recipe, ZeRO, and what DeepSpeed prints."""

    train_batch_size: PositiveInt
    train_micro_batch_size_per_gpu: PositiveInt
    gradient_accumulation_steps: PositiveInt
    gradient_clipping: Annotated[float, Field(ge=0)]
    zero_optimization: Zero
    zero_allow_untested_optimizer: bool = False
    steps_per_print: PositiveInt | None = None
    wall_clock_breakdown: bool = False
    memory_breakdown: bool = False
    comms_logger: dict[str, Any] | None = None


class Config:
    """A configuration that has been read and checked by itself.

    Attributes:
        file: Its file.
        batch_size: Images per GPU and micro batch.
        accumulation: Micro batches per step.
        total: Images per step on all GPUs.
        clip_grad: Largest gradient norm; 0 does not clip.
        stage: ZeRO stage.
        content: The JSON object.
    """

    def __init__(self, file: Path, content: Content) -> None:
        self.file = file
        self.batch_size = content.train_micro_batch_size_per_gpu
        self.accumulation = content.gradient_accumulation_steps
        self.total = content.train_batch_size
        self.clip_grad = content.gradient_clipping
        self.stage = content.zero_optimization.stage
        self.content: dict[str, Any] = content.model_dump(exclude_unset=True)

    def agree(
        self, *, batch_size: int, accumulation: int | None, clip_grad: float, world_size: int
    ) -> None:
        """Compare with the recipe's own options.

        Raises:
            RefusedError: They differ.
        """
        recipe = {
            "train_micro_batch_size_per_gpu": (self.batch_size, batch_size),
            "gradient_accumulation_steps": (self.accumulation, accumulation or self.accumulation),
            "gradient_clipping": (self.clip_grad, clip_grad),
        }
        for key, (ours, theirs) in recipe.items():
            if ours != theirs:
                raise RefusedError(
                    f"{self.file}: {key} is {ours:g}, but the recipe was started with {theirs:g}",
                    hint=HINT,
                )
        product = self.batch_size * self.accumulation * world_size
        if product != self.total:
            raise RefusedError(
                f"{self.file}: train_batch_size is {self.total}, but {self.batch_size} images x "
                f"{self.accumulation} micro batches x {world_size} processes = {product}",
                hint=HINT,
            )


def read_config(file: Path) -> Config:
    """Read a configuration and check what can be checked without the recipe.

    Raises:
        MissingError: No such file.
        CorruptError: It is not a JSON object.
        RefusedError: It leaves to DeepSpeed what belongs to the recipe, leaves a number out whose
            default would change the recipe, or asks for what is not supported.
    """
    try:
        return Config(file, Content.model_validate_json(file.read_bytes()))
    except OSError as error:
        raise MissingError(
            f"--deepspeed_config {file}: {error.strerror}; it must be a file on this machine",
            hint=HINT,
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:
            raise CorruptError(f"{file}: not a JSON object: {first['msg']}", hint=HINT) from None
        raise RefusedError(f"{file}: {_objection(first)}", hint=HINT) from None


def _objection(error: ErrorDetails) -> str:
    key = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        return f"{key} must go: {REASONS.get(key, 'it may change the recipe')}"
    found = "is left out" if error["type"] == "missing" else f"is {error['input']!r}"
    return f"{key} {found}: {EXPECTED.get(key, error['msg'])}"
