"""Checkpoints that survive a kill at any moment, and the log that goes with them."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import torch

from runtime import CORRUPT, stop

# What a resumed run need not share with the one that wrote the checkpoint.
FREE = {
    *("data_path", "output_dir", "accum_steps", "device", "workers"),
    *("log_every", "eval_every", "save_every", "save_steps"),
}


def save(path: Path, state: dict[str, Any]) -> None:
    """Write in one step: a reader, or a crash, finds the old file or the new one."""
    buffer = io.BytesIO()  # torch's own writer turns a full disk into an internal error
    torch.save(state, buffer)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def load(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Read a checkpoint to go on from, on the CPU, and refuse one of another configuration."""
    other = f"use another --output_dir, or move {path.parent} away"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        found = state["args"]
    except Exception as error:  # whatever zip, pickle or torch make of a foreign file
        reason = type(error).__name__
        stop(f"{path} is not a checkpoint of this recipe ({reason}); {other}", CORRUPT)
    for name in config.keys() - FREE:
        if found.get(name) != config[name]:
            was, now = found.get(name), config[name]
            stop(f"{path} is of another run: its {name} is {was}, not {now}; {other}", CORRUPT)
    return state


class Log:
    """OUT/log.jsonl: one JSON object per line, also printed.

    Args:
        path: The file.
        step: Where training goes on; lines of later steps, from before a kill, are cut off.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.file = path.open("ab+")
        self.file.seek(0)
        kept = 0
        try:
            for line in self.file:
                if not line.endswith(b"\n") or json.loads(line)["step"] > step:
                    break
                kept += len(line)
        except (ValueError, KeyError, TypeError):
            stop(f"{path} is no log of this recipe; use another --output_dir, or move it", CORRUPT)
        self.file.truncate(kept)

    def write(self, record: dict[str, Any]) -> None:
        """Append one line, and bring it to disk before a checkpoint counts on it."""
        line = json.dumps(record)
        print(line, flush=True)
        self.file.write(line.encode() + b"\n")
        self.file.flush()
        os.fsync(self.file.fileno())
