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
from einops import repeat
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder

from runtime import Run

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)  # the usual ones, of ImageNet
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
ORDER, DRAWS = 0, 1  # streams of random numbers


class BrokenImageError(OSError):
    """An image file cannot be decoded."""


class Images(ImageFolder):
    """The decoded images of ROOT/<class>/*."""

    def __getitem__(self, index: int) -> Image.Image:
        file, _ = self.samples[index]
        try:
            return self.loader(file)
        except Exception as error:  # PIL has another kind for each format
            raise BrokenImageError(f"cannot decode {file} ({type(error).__name__})") from None

    def labelled(self, others: Images) -> bool:
        """Whether both have the same classes, and more than one."""
        return self.classes == others.classes and len(self.classes) > 1

    def fingerprint(self) -> str:
        """Number of files and CRC-32 of their names."""
        names = [Path(file).relative_to(self.root).as_posix() for file, _ in self.samples]
        return f"{len(names)} images, names {zlib.crc32('/'.join(names).encode()):08x}"


def centre_crop(image: Image.Image, size: int) -> np.ndarray:
    """The largest centred square as [size, size, 3], uint8."""
    return np.asarray(ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC))


def random_box(
    size: tuple[int, int], draw: np.ndarray, min_scale: float
) -> tuple[float, float, float, float]:
    """A random part of an image [W, H]: area in [min_scale, 1], aspect ratio in [3/4, 4/3].

    `draw` holds four uniform numbers in [0, 1): area, ratio, left, upper. The result holds left,
    upper, right and lower, in pixels.
    """
    width, height = size
    area = (min_scale + (1 - min_scale) * draw[0]) * width * height
    ratio = (4 / 3) ** (2 * draw[1] - 1)
    w, h = min((area * ratio) ** 0.5, width), min((area / ratio) ** 0.5, height)
    left, upper = draw[2] * (width - w), draw[3] * (height - h)
    return left, upper, left + w, upper + h


def to_tensor(arrays: list[np.ndarray]) -> Tensor:
    """Stack uint8 images to normalised float32 [B, 3, H, W]."""
    return (torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255 - MEAN) / STD


class Batch(NamedTuple):
    """One rank's share of a step."""

    images: Tensor  # [b, 3, H, W] float32
    mask: Tensor  # [b, N] bool, True = masked
    record: bytes  # sample ids and masks of the whole batch, for the log's checksum
    seed: int  # of the global generator, from which drop path draws, differently on every rank


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
        self.images, self.args, self.rank = images, args, run.rank
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
        image, side, scale = self.images[index], self.args.img_size, self.args.crop_scale
        if scale >= 1:
            crop = centre_crop(image, side)
        else:
            box = random_box(image.size, draw, scale)
            crop = np.asarray(image.resize((side, side), Image.Resampling.BICUBIC, box=box))
        return crop[:, ::-1] if self.args.hflip and draw[4] < 0.5 else crop

    def draw_masks(self, rng: np.random.Generator) -> np.ndarray:
        """Masks [batch_size, N] of square cells; every image masks the same number."""
        cell = self.args.mask_cell
        side = self.args.img_size // self.args.patch_size // cell
        noise = rng.random((self.args.batch_size, side**2))
        cells = noise.argsort(axis=1).argsort(axis=1) < round(self.args.mask_ratio * side**2)
        return repeat(cells, "b (h w) -> b (h i w j)", h=side, i=cell, j=cell)

    def __getitem__(self, step: int) -> Batch:
        ids = self.sample_ids(step)
        rng = np.random.default_rng((self.args.seed, DRAWS, step))
        draws = rng.random((self.args.batch_size, 5))
        mask = self.draw_masks(rng)
        views = [self.view(i, d) for i, d in zip(ids[self.rows], draws[self.rows], strict=True)]
        record = ids.tobytes() + mask.tobytes()
        seed = int(rng.integers(2**32)) + self.rank
        return Batch(to_tensor(views), torch.from_numpy(mask[self.rows]), record, seed)
