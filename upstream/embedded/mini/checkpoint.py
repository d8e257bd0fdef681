"""Checkpoints that survive a kill at any moment, and the log that goes with them."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import torch

from runtime import CORRUPT, MISSING, stop

# What a resumed run need not share with the one that wrote the checkpoint.
FREE = {
    *("data_path", "output_dir", "accum_steps", "device", "threads", "workers"),
    *("cache_mb", "log_every", "eval_every", "save_every", "save_steps"),
}


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Replace `path` in one step: a reader, or a crash, finds the old file or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        kept = "the old file is intact" if path.exists() else "nothing was written"
        stop(
            f"could not write {path} ({error.strerror}), {kept}; "
            "free some space or choose another --output_dir, then start again to go on",
            MISSING,
        )


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint atomically."""
    buffer = io.BytesIO()  # torch's own writer turns a full disk into an internal error
    torch.save(state, buffer)
    write_atomically(path, buffer.getbuffer())


def load(path: Path, args: dict[str, Any], images: str) -> dict[str, Any]:
    """Read a checkpoint to go on from, on the CPU, and refuse one of another run.

    Args:
        path: The file.
        args: This run's arguments.
        images: Fingerprint of this run's training images.
    """
    other = f"use another --output_dir, or move {path.parent} away"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        found = {**state["args"], "data": state["progress"]["images"]}
    except Exception as error:  # whatever zip, pickle or torch make of a foreign file
        stop(
            f"{path} is not a checkpoint of this recipe ({type(error).__name__}): expected one "
            f"that main_pretrain.py wrote; {other}",
            CORRUPT,
        )
    for name, value in {**args, "data": images}.items():
        if name not in FREE and found.get(name) != value:
            stop(
                f"{path} is of another run: expected --{name} {value}, found "
                f"{found.get(name)}; {other}",
                CORRUPT,
            )
    return state


class Log:
    """OUT/log.jsonl: one JSON object per line, also printed.

    Args:
        path: The file.
        step: Where training goes on; lines of later steps, from before a kill, are cut off.
    """

    def __init__(self, path: Path, step: int) -> None:
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        if lines and not lines[-1].endswith("\n"):
            lines[-1] = ""  # the kill came in the middle of a line
        try:
            kept = [line for line in lines if line and json.loads(line)["step"] <= step]
        except (ValueError, KeyError, TypeError):
            stop(f"{path} is not a log of this recipe; move it away, then start again", CORRUPT)
        if kept != lines:
            write_atomically(path, "".join(kept).encode())
        self.path, self.file = path, path.open("a")

    def write(self, record: dict[str, Any]) -> None:
        """Append one line."""
        line = json.dumps(record)
        print(line, flush=True)
        try:
            self.file.write(line + "\n")
            self.file.flush()
        except OSError as error:
            stop(f"could not write {self.path} ({error.strerror}); free some space", MISSING)

    def sync(self) -> None:
        """Bring the lines to disk, before a checkpoint that counts on them."""
        os.fsync(self.file.fileno())
