"""Where the runs of a report are."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


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
