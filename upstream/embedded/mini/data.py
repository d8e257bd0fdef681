"""Images from folders, and batches that are functions of (seed, step).

Nothing here keeps a position or touches a global generator: the batch of step s, its crops and its
masks are drawn for all ranks at once from generators seeded with (seed, s), and each rank takes
its rows. So a run can stop and go on anywhere, with any number of ranks and workers.
"""

from __future__ import annotations

import argparse
import zlib
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder

from runtime import MISSING, Run, stop

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # the usual ones, of ImageNet
ORDER, DRAWS = 0, 1  # streams of random numbers
Box = tuple[float, float, float, float]  # left, upper, right, lower, in pixels


class BrokenImageError(Exception):
    """An image file that cannot be decoded; the message names it."""


class Images:
    """The decoded images of ROOT/<class>/*; up to `cache_mb` MiB of them stay in memory."""

    def __init__(self, root: Path, cache_mb: int = 512) -> None:
        try:
            folder = ImageFolder(str(root), allow_empty=True)
        except FileNotFoundError:
            stop(f"no folder {root}/<class>; --data_path must hold train/<class>/<image>", MISSING)
        if not folder.samples:
            stop(f"no image in {root}; expected {root}/<class>/<image>", MISSING)
        self.root = root
        self.classes: list[str] = folder.classes
        self.files = [Path(file) for file, _ in folder.samples]
        self.labels = np.array(folder.targets)
        self.cache: dict[int, Image.Image] = {}
        self.room = cache_mb * 2**20

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Image.Image:
        if index in self.cache:
            return self.cache[index]
        file = self.files[index]
        try:
            with Image.open(file) as opened:
                image = opened.convert("RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            reason = type(error).__name__
            raise BrokenImageError(
                f"cannot decode the image {file} ({reason}); replace it, or take it out"
            ) from None
        if self.room > 0:
            self.room -= 3 * image.width * image.height
            self.cache[index] = image
        return image

    def fingerprint(self) -> str:
        """Number of files and CRC-32 of their names (and of the sizes of the first 1000)."""
        crc = 0
        for i, file in enumerate(self.files):
            size = file.stat().st_size if i < 1000 else 0
            crc = zlib.crc32(f"{file.relative_to(self.root).as_posix()} {size}\n".encode(), crc)
        return f"{len(self.files)} images, names {crc:08x}"


def centre_box(image: Image.Image) -> Box:
    """The largest centred square."""
    side = min(image.size)
    left, upper = (image.width - side) / 2, (image.height - side) / 2
    return left, upper, left + side, upper + side


def random_box(image: Image.Image, draw: np.ndarray, min_scale: float) -> Box:
    """A random resized crop: area in [min_scale, 1], aspect ratio in [3/4, 4/3].

    `draw` holds four uniform numbers in [0, 1): area, ratio, left, upper.
    """
    width, height = image.size
    area = (min_scale + (1 - min_scale) * draw[0]) * width * height
    ratio = (4 / 3) ** (2 * draw[1] - 1)
    w, h = min((area * ratio) ** 0.5, width), min((area / ratio) ** 0.5, height)
    left, upper = draw[2] * (width - w), draw[3] * (height - h)
    return left, upper, left + w, upper + h


def to_array(image: Image.Image, box: Box, size: int) -> np.ndarray:
    """Resample the box to [size, size, 3], uint8."""
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box))


def to_tensor(arrays: list[np.ndarray]) -> Tensor:
    """Stack uint8 images to normalised float32 [B, 3, H, W]."""
    pixels = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255
    return (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


class Batch(NamedTuple):
    """One rank's share of a step."""

    images: Tensor  # [b, 3, H, W] float32
    mask: Tensor  # [b, N] bool, True = masked
    record: bytes  # sample ids and masks of the whole batch, for the log's checksum


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, length: int) -> np.ndarray:
    """The permutation of sample ids in one epoch."""
    return np.random.default_rng((seed, ORDER, epoch)).permutation(length)


class MaskedBatches(Dataset):
    """Item s is this rank's share of the batch of step s (counted from 1).

    Epochs follow each other without a gap: position p of the endless stream of samples is sample
    `p % len` of the permutation of epoch `p // len`. `args` are those of main_pretrain.py.
    """

    def __init__(self, images: Images, args: argparse.Namespace, run: Run) -> None:
        self.images, self.args = images, args
        self.cells = args.img_size // args.patch_size // args.mask_cell  # along a side
        share = args.batch_size // run.world_size
        self.rows = slice(run.rank * share, (run.rank + 1) * share)

    def sample_ids(self, step: int) -> np.ndarray:
        """Ids [batch_size] of the whole batch."""
        length, size = len(self.images), self.args.batch_size
        positions = range((step - 1) * size, step * size)
        ids = [epoch_order(self.args.seed, p // length, length)[p % length] for p in positions]
        return np.array(ids, dtype=np.int64)

    def view(self, index: int, draw: np.ndarray) -> np.ndarray:
        """One augmented image [H, W, 3], uint8, made with five uniform numbers."""
        image, scale = self.images[index], self.args.crop_scale
        box = centre_box(image) if scale >= 1 else random_box(image, draw, scale)
        array = to_array(image, box, self.args.img_size)
        return array[:, ::-1] if self.args.hflip and draw[4] < 0.5 else array

    def draw_masks(self, rng: np.random.Generator) -> np.ndarray:
        """Masks [batch_size, N] of square cells; every image masks the same number."""
        noise = rng.random((self.args.batch_size, self.cells**2))
        masked = round(self.args.mask_ratio * self.cells**2)
        cells = noise.argsort(axis=1).argsort(axis=1) < masked
        cells = cells.reshape(-1, self.cells, self.cells)
        mask = cells.repeat(self.args.mask_cell, axis=1).repeat(self.args.mask_cell, axis=2)
        return mask.reshape(self.args.batch_size, -1)

    def __getitem__(self, step: int) -> Batch:
        ids = self.sample_ids(step)
        rng = np.random.default_rng((self.args.seed, DRAWS, step))
        draws = rng.random((self.args.batch_size, 5))
        mask = self.draw_masks(rng)
        views = [self.view(i, d) for i, d in zip(ids[self.rows], draws[self.rows], strict=True)]
        record = ids.tobytes() + mask.tobytes()
        return Batch(to_tensor(views), torch.from_numpy(mask[self.rows]), record)


def load(batches: MaskedBatches, steps: range, pin_memory: bool) -> DataLoader:
    """The batches of `steps` in order, made ahead by `args.workers` processes (0: none)."""
    return DataLoader(
        batches,
        batch_size=None,
        sampler=steps,
        num_workers=batches.args.workers,
        pin_memory=pin_memory,
        generator=torch.Generator(),  # or the loader would draw from the global one
    )
