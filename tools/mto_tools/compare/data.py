"""The data set of a comparison: the built-in one, or the user's, checked before it is used."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from mto_tools.errors import MissingError
from mto_tools.upstreams.recipe import Data

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}


def start_folder(spec: Data, data: Path, checkout: Path) -> Path:
    """Where the recipe is started: beside the data if its list is there, else in the checkout."""
    listing = spec.listing.format(data=data, phase="train")
    beside = spec.started_beside_data and (data.parent / listing).is_file()
    return data.parent if beside else checkout


def count_images(spec: Data, data: Path, cwd: Path, upstream: str) -> int:
    """Count the images that a recipe started in `cwd` trains on in one epoch.

    Raises:
        MissingError: The list that names them is not there.
    """
    if not spec.listing:
        return sum(1 for _ in _images(data / spec.images))
    path = cwd / spec.listing.format(data=data, phase="train")
    if not path.is_file():
        beside = data.parent / path.relative_to(cwd) if spec.started_beside_data else None
        where = f", nor is {beside}" if beside else ""
        raise MissingError(
            f"{path}, a line for each image of {data}, is not there{where}",
            hint=f"mto compare {upstream}    (uses the built-in data), or write the list; "
            "docs/recipes.md says what is in it",
        )
    with path.open("rb") as file:
        return sum(1 for line in file if line.strip())


def check_data(data: Path, images: str, upstream: str) -> None:
    """Raise `MissingError` unless `data/images` holds an image somewhere below it."""
    folder = data / images
    mend = f"mto compare {upstream}    (uses the built-in data), or --data DIR of an ImageFolder"
    if not data.is_dir():
        raise MissingError(f"data folder {data} does not exist", hint=mend)
    if not folder.is_dir():
        raise MissingError(f"data folder {data} has no subfolder {images}/", hint=mend)
    if next(_images(folder), None) is None:
        raise MissingError(f"data folder {folder} holds no image", hint=mend)


def _images(folder: Path) -> Iterator[str]:
    for root, _, files in os.walk(folder, followlinks=True):
        for file in files:
            if Path(file).suffix.lower() in IMAGE_SUFFIXES:
                yield f"{root}/{file}"
