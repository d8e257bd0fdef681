"""What was found, as data: it holds every number of the page."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from mto_tools.inspect.measure import MEASURES
from mto_tools.inspect.run import Seen


class Strict(BaseModel):
    """Immutable, every key known."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Measure(Strict):
    """One measure by depth, over the images for which it is defined."""

    mean: list[float | None]
    std: list[float | None]  # population's
    values: list[list[float | None]]  # by depth, then image


class Blocks(Strict):
    """One list of blocks that mask tokens pass through; depth 0 is the input of the first."""

    name: str  # in the model
    tokens: list[int]  # patch tokens by depth
    masked: list[float]  # masked ones, mean over the images
    measures: dict[str, Measure]


class Inspected(Strict):
    """One checkpoint."""

    label: str
    path: str
    sha256: str | None  # of a file
    progress: float | None  # epoch or step of its own
    blocks: list[Blocks]


class Inspection(Strict):
    """`inspect.json`: every number of the page."""

    schema_version: Literal[1] = 1
    made: str  # ISO time with zone
    upstream: str
    command: list[str]
    data: str  # folder the images were drawn from
    images: int
    seed: int
    scale: str  # of the logits
    checksums: dict[str, str]  # of images and masks, which all checkpoints share
    versions: dict[str, str]
    checkpoints: list[Inspected]


def labels(paths: list[Path]) -> list[str]:
    """Tell files apart by as little of their paths as does it."""
    whole = [path.absolute() for path in paths]
    shared = os.path.commonpath([path.parent for path in whole])
    return [path.relative_to(shared).as_posix() for path in whole]


def inspected(seen: Seen, label: str, sha256: str | None) -> Inspected:
    """Put a probe's arrays in order."""
    arrays = seen.arrays
    blocks = [
        Blocks(
            name=str(name),
            tokens=arrays[f"{n}/tokens"].tolist(),
            masked=arrays[f"{n}/masked"].tolist(),
            measures={key: _measure(arrays[f"{n}/{key}"]) for key in MEASURES},
        )
        for n, name in enumerate(arrays["groups"])
    ]
    return Inspected(
        label=label,
        path=str(seen.path),
        sha256=sha256,
        progress=seen.progress,
        blocks=blocks,
    )


def table(inspection: Inspection) -> str:
    """CSV: a line for each checkpoint, list of blocks and depth."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    columns = [f"{name}_{kind}" for name in MEASURES for kind in ("mean", "std")]
    writer.writerow(["checkpoint", "blocks", "depth", "tokens", "masked", *columns])
    for one in inspection.checkpoints:
        for blocks in one.blocks:
            for depth, (tokens, masked) in enumerate(
                zip(blocks.tokens, blocks.masked, strict=True)
            ):
                found = (blocks.measures[name] for name in MEASURES)
                numbers = [x for m in found for x in (m.mean[depth], m.std[depth])]
                writer.writerow([one.label, blocks.name, depth, tokens, masked, *numbers])
    return out.getvalue()


def _measure(values: np.ndarray[Any, Any]) -> Measure:
    """[L+1, B], NaN where undefined."""
    defined = [row[np.isfinite(row)] for row in values]
    return Measure(
        mean=[float(row.mean()) if row.size else None for row in defined],
        std=[float(row.std()) if row.size else None for row in defined],
        values=[[float(x) if np.isfinite(x) else None for x in row] for row in values],
    )
