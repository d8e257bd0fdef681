"""A DeepSpeed configuration, and whether it leaves the recipe what it is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mto_tools.errors import CorruptError, MissingError, RefusedError

# What a configuration may hold: numbers that must agree with the recipe, and how ZeRO works. All
# other keys are refused, known to change the recipe (with the reason) or not.
COUNTS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
KEYS = (
    *COUNTS,
    *("gradient_clipping", "zero_optimization", "zero_allow_untested_optimizer"),
    *("steps_per_print", "wall_clock_breakdown", "memory_breakdown", "comms_logger"),
)
ZERO_KEYS = (
    *("stage", "reduce_bucket_size", "allgather_bucket_size", "overlap_comm"),
    *("contiguous_gradients", "reduce_scatter", "allgather_partitions"),
)
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
STAGES = (1, 2)


@dataclass(frozen=True)
class Config:
    """A configuration that has been read and checked by itself.

    Attributes:
        file: Where it stands.
        content: The JSON object.
    """

    file: Path
    content: dict[str, Any]

    @property
    def batch_size(self) -> int:
        """Images per GPU and micro batch."""
        return int(self.content["train_micro_batch_size_per_gpu"])

    @property
    def accumulation(self) -> int:
        """Micro batches per step."""
        return int(self.content["gradient_accumulation_steps"])

    @property
    def total(self) -> int:
        """Images per step on all GPUs."""
        return int(self.content["train_batch_size"])

    @property
    def clip_grad(self) -> float:
        """Largest gradient norm; 0 does not clip."""
        return float(self.content["gradient_clipping"])

    @property
    def stage(self) -> int:
        """ZeRO stage."""
        return int(self.content["zero_optimization"]["stage"])

    def agree(
        self, *, batch_size: int, accumulation: int | None, clip_grad: float, world_size: int
    ) -> None:
        """Compare with what the recipe was started with.

        Raises:
            RefusedError: They differ.
        """
        recipe = {
            "train_micro_batch_size_per_gpu": (self.batch_size, batch_size),
            "gradient_accumulation_steps": (
                self.accumulation,
                self.accumulation if accumulation is None else accumulation,
            ),
            "gradient_clipping": (self.clip_grad, clip_grad),
        }
        for key, (ours, theirs) in recipe.items():
            if ours != theirs:
                raise RefusedError(
                    f"{self.file}: {key} is {ours:g}, but the recipe was started with {theirs:g}",
                    hint=_HINT,
                )
        product = self.batch_size * self.accumulation * world_size
        if product != self.total:
            raise RefusedError(
                f"{self.file}: train_batch_size is {self.total}, but {self.batch_size} images x "
                f"{self.accumulation} micro batches x {world_size} processes = {product}",
                hint=_HINT,
            )


_HINT = "mto plan NAME --gpus N --gpu-mem GB   (writes the configuration and the command for it)"


def read_config(file: Path) -> Config:
    """Read a configuration and check what can be checked without the recipe.

    Raises:
        MissingError: No such file.
        CorruptError: It is not a JSON object.
        RefusedError: It leaves to DeepSpeed what belongs to the recipe, leaves a number out whose
            default would change the recipe, or asks for what is not supported.
    """
    try:
        content = json.loads(file.read_text())
    except OSError as error:
        raise MissingError(
            f"--deepspeed_config {file}: {error.strerror}; it must be a file on this machine",
            hint=_HINT,
        ) from None
    except ValueError as error:
        raise CorruptError(f"{file}: not JSON: {error}", hint=_HINT) from None
    if not isinstance(content, dict):
        raise CorruptError(f"{file}: expected a JSON object", hint=_HINT)
    for reason in _objections(content):
        raise RefusedError(f"{file}: {reason}", hint=_HINT)
    return Config(file, content)


def _objections(content: dict[str, Any]) -> list[str]:
    found = [
        f"{path} is {value!r}; write the number, since a guess may change the recipe"
        for path, value in _leaves(content)
        if value == "auto"
    ]
    for key in (
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "gradient_accumulation_steps",
    ):
        if not _count(content.get(key)):
            found.append(f"{key} must be a positive whole number, not {content.get(key)!r}")
    clip = content.get("gradient_clipping")
    if isinstance(clip, bool) or not isinstance(clip, (int, float)) or clip < 0:
        found.append(
            f"gradient_clipping must be a number (0.0 for none), not {clip!r}: "
            "left out, DeepSpeed clips at 1.0"
        )
    zero = content.get("zero_optimization")
    stage = zero.get("stage") if isinstance(zero, dict) else None
    if not isinstance(zero, dict) or isinstance(stage, bool) or stage not in STAGES:
        found.append(
            f"zero_optimization.stage must be 1 or 2, not {stage!r}: stage 3 shards the weights, "
            "which EMA, teachers and MTO's hooks read"
        )
        zero = {}
    unknown = [key for key in content if key not in KEYS]
    unknown += [f"zero_optimization.{key}" for key in zero if key not in ZERO_KEYS]
    for key in unknown:
        found.append(f"{key} must go: {REASONS.get(key, 'it may change the recipe')}")
    return found


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _leaves(value: Any, path: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [leaf for k, v in value.items() for leaf in _leaves(v, f"{path}.{k}".strip("."))]
    return [(path, value)]
