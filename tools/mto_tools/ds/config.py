"""A DeepSpeed configuration, and whether it leaves the recipe what it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, PrivateAttr, ValidationError

from mto_tools.errors import CorruptError, MissingError, RefusedError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

HINT = "mto plan NAME --gpus N --gpu-mem GB   (writes the configuration and the command for it)"
REASONS = {  # why a key is needed, must go, or has no other value
    "gradient_clipping": "0.0 for none; left out, DeepSpeed clips at 1.0",
    "zero_optimization.stage": "stage 3 shards the weights, which EMA, teachers and hooks read",
    "zero_optimization.offload_optimizer": "offload is not supported",
    "zero_optimization.offload_param": "offload is not supported",
    "optimizer": "the recipe's own optimizer counts",
    "scheduler": "the recipe's own schedule counts",
    **dict.fromkeys(
        ("amp", "bf16", "fp16", "torch_autocast"), "the recipe's own autocast and loss scale count"
    ),
}


class _Strict(BaseModel):
    """No key but these, and no number as text: "auto" is a guess that may change the recipe."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class Zero(_Strict):
    """Keys that say how ZeRO works, and nothing of the recipe."""

    stage: int = Field(ge=1, le=2)
    reduce_bucket_size: PositiveInt | None = None
    allgather_bucket_size: PositiveInt | None = None
    overlap_comm: bool | None = None
    contiguous_gradients: bool | None = None
    reduce_scatter: bool | None = None
    allgather_partitions: bool | None = None


class Config(_Strict):
    """Numbers that must agree with the recipe, ZeRO, and what DeepSpeed prints."""

    total: PositiveInt = Field(alias="train_batch_size")  # images per step on all GPUs
    batch_size: PositiveInt = Field(alias="train_micro_batch_size_per_gpu")
    accumulation: PositiveInt = Field(alias="gradient_accumulation_steps")
    clip_grad: float = Field(alias="gradient_clipping", ge=0)  # largest norm; 0 does not clip
    zero: Zero = Field(alias="zero_optimization")
    zero_allow_untested_optimizer: bool = False
    steps_per_print: PositiveInt | None = None
    wall_clock_breakdown: bool = False
    memory_breakdown: bool = False
    comms_logger: dict[str, Any] | None = None
    _file: Path = PrivateAttr()

    @property
    def file(self) -> Path:
        """Its file."""
        return self._file

    def agree(
        self, *, batch_size: int, accumulation: int | None, clip_grad: float, world_size: int
    ) -> None:
        """Compare with the recipe's own options.

        Raises:
            RefusedError: They differ.
        """
        accumulation = accumulation or self.accumulation
        found = {
            "train_micro_batch_size_per_gpu": (self.batch_size, batch_size),
            "gradient_accumulation_steps": (self.accumulation, accumulation),
            "gradient_clipping": (self.clip_grad, clip_grad),
            "train_batch_size": (self.total, batch_size * accumulation * world_size),
        }
        for key, (ours, theirs) in found.items():
            if ours != theirs:
                raise RefusedError(
                    f"{self.file}: {key} is {ours:g}, but the recipe has {theirs:g} "
                    f"({batch_size} images, {accumulation} micro batches, {world_size} processes)",
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
        config = Config.model_validate_json(file.read_bytes())
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
    config._file = file
    return config


def _objection(error: ErrorDetails) -> str:
    key = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        return f"{key} must go: {REASONS.get(key, 'it may change the recipe')}"
    found = "is left out" if error["type"] == "missing" else f"is {error['input']!r}"
    return f"{key} {found}: {error['msg']}" + (f" ({REASONS[key]})" if key in REASONS else "")
