"""Rows of features in a .npy file: read in blocks, so that a file may be larger than memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.float32]


def create(file: Path, rows: int, size: int) -> None:
    """Make a file of [rows, size] zeros, float32, and claim its room on the disk.

    Raises:
        OSError: The disk is full.
    """
    try:
        np.lib.format.open_memmap(file, "w+", np.float32, (rows, size)).flush()
        with file.open("r+b") as opened:
            os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)
    except OSError as error:  # which names no file
        raise OSError(error.errno, error.strerror, str(file)) from None


def write(file: Path, first: int, values: Features) -> None:
    """Write [n, size] float32 from row `first` on; processes may write other rows of the file."""
    start = int(np.load(file, mmap_mode="r").offset)
    with file.open("r+b") as opened:
        opened.seek(start + first * values.shape[1] * 4)
        opened.write(np.ascontiguousarray(values, np.float32).tobytes())


@dataclass(frozen=True)
class Rows:
    """Some rows of an array or of a .npy file, [n, size]."""

    source: Path | NDArray[Any]
    chosen: NDArray[np.int64] | None = None  # their numbers; None: all

    def _open(self) -> NDArray[Any]:
        if isinstance(self.source, Path):
            return np.load(self.source, mmap_mode="r")
        return self.source

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows, and their size."""
        rows, size = self._open().shape
        return (rows if self.chosen is None else len(self.chosen)), size

    def blocks(self, rows: int) -> Iterator[tuple[slice, NDArray[Any]]]:
        """Copies of so many rows at a time, with their place.

        The file is mapped anew for each: pages of an open map count as memory of the process.
        """
        for first in range(0, self.shape[0], rows):
            place = slice(first, min(first + rows, self.shape[0]))
            yield (
                place,
                np.array(self._open()[place if self.chosen is None else self.chosen[place]]),
            )

    def take(self, numbers: NDArray[np.int64]) -> Rows:
        """Those of our rows."""
        return Rows(self.source, numbers if self.chosen is None else self.chosen[numbers])
