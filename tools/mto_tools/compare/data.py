"""The data set of a comparison: the built-in one, or the user's, checked before it is used."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, model_validator

from mto_tools.errors import MissingError

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}


class DataSpec(BaseModel):
    """The data set that is used when none is named, and how to tell that one is there.

    The built-in one is made by a script of the checkout, or laid out by `mto_tools.launch.digits`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    make: list[str] = []  # script of the checkout and its arguments
    layout: Literal["", "image_folder", "map_files", "wnid_lists"] = ""
    per_class: int = 8  # training images of each of the 8 classes, with `layout`
    images: str = "train"  # folder inside the data set that must hold an image
    # File with a line per image, where the recipe reads no more than it names: "{data}/..." in the
    # data set, or relative to the folder that the recipe is started in.
    listing: str = ""

    @model_validator(mode="after")
    def _made_in_one_way(self) -> DataSpec:
        if bool(self.make) == bool(self.layout):
            raise ValueError("needs either make or layout")
        return self


def start_folder(spec: DataSpec, data: Path, checkout: Path) -> Path:
    """Where the recipe is started: beside the data if its list is there, else in the checkout."""
    relative = spec.listing and "{data}" not in spec.listing
    return data.parent if relative and (data.parent / spec.listing).is_file() else checkout


def count_images(spec: DataSpec, data: Path, cwd: Path, upstream: str) -> int:
    """Count the images that a recipe started in `cwd` trains on in one epoch.

    Raises:
        MissingError: The list that names them is not there.
    """
    if not spec.listing:
        return sum(1 for _ in _images(data / spec.images))
    path = cwd / spec.listing.format(data=data)
    if not path.is_file():
        where = "" if "{data}" in spec.listing else f", nor is {data.parent / spec.listing}"
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
