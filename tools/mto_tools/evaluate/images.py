"""The images that encoders are scored on: DIR/train/CLASS/* and DIR/val/CLASS/*."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mto_tools.errors import MissingError, MtoError

SPLITS = ("train", "val")


class BrokenImageError(OSError):
    """An image file cannot be decoded."""


@dataclass(frozen=True)
class Images:
    """File names and labels of both splits; no image is read."""

    root: Path
    classes: list[str]
    labels: dict[str, NDArray[np.int64]]  # by split, [n]
    fingerprint: str  # checksum of the files' names and sizes

    @property
    def described(self) -> str:
        """Path, counts and fingerprint."""
        counts = ", ".join(f"{len(self.labels[split])} {split}" for split in SPLITS)
        return f"{self.root}: {len(self.classes)} classes, {counts}, {self.fingerprint}"


def open_split(root: Path, split: str, transform: Any = None) -> Any:
    """A split as torchvision's ImageFolder, in its order: by class, then by name."""
    from torchvision.datasets import ImageFolder

    return ImageFolder(str(root / split), transform, loader=_decode)


def _decode(file: str) -> Any:
    from torchvision.datasets.folder import default_loader

    try:
        return default_loader(file)
    except Exception as error:  # PIL has another kind for each format
        raise BrokenImageError(f"cannot decode {file} ({type(error).__name__})") from None


def scan(root: Path, neighbours: int) -> Images:
    """List both splits.

    Args:
        root: The data folder.
        neighbours: k of k-NN; train must hold as many images.

    Raises:
        MissingError: A split, its classes or its images are missing, or too few.
        MtoError: The splits have other classes.
    """
    layout = "--data DIR must hold train/CLASS/* and val/CLASS/*"
    found = {}
    checksum = hashlib.sha256()
    for split in SPLITS:
        if not (root / split).is_dir():
            raise MissingError(f"there is no folder {root / split}", hint=layout)
        try:
            found[split] = open_split(root, split)
        except FileNotFoundError as error:  # no class, or one without an image
            raise MissingError(str(error).splitlines()[0], hint=layout) from None
        for file, _ in found[split].samples:
            path = Path(file)
            checksum.update(f"{path.relative_to(root)}\0{path.stat().st_size}\0".encode())
    train, val = (found[split] for split in SPLITS)
    if train.classes != val.classes:
        odd = sorted(set(train.classes) ^ set(val.classes))
        raise MtoError(
            f"train and val of {root} have other classes: {', '.join(odd[:5])} "
            f"{'is' if len(odd) == 1 else 'are'} in one of them only",
            hint="give both splits a folder for each class",
        )
    if len(train.classes) < 2:
        raise MissingError(f"{root} has one class, {train.classes[0]}; two are needed", hint=layout)
    if len(train) < neighbours:
        raise MissingError(
            f"{root / 'train'} has {len(train)} images, fewer than the {neighbours} neighbours of "
            "k-NN",
            hint=f"--k {len(train)}, or more images",
        )
    labels = {split: np.asarray(found[split].targets, dtype=np.int64) for split in SPLITS}
    return Images(root, train.classes, labels, checksum.hexdigest()[:16])
