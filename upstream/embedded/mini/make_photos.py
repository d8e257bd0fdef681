"""Write crops of photographs that scikit-image and scikit-learn bring with them: no network.

Each of the fourteen photographs is cut into tiles of 96 x 96 pixels; every fifth tile is for val,
the others for train, so no pixel is in both. Crops of 48 x 48 lie within a tile, eight pixels
apart, and as many of them are kept from each photograph. They have no labels: which photograph a
crop is of says nothing of features, so all lie in one folder, and the held-out loss is the score.
"""

from __future__ import annotations

import argparse
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image

from runtime import MISSING, REFUSED, stop

PHOTOS = {
    "sklearn.datasets.images": ("china.jpg", "flower.jpg"),
    "skimage.data": (
        *("astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "coins.png"),
        *("grass.png", "gravel.png", "hubble_deep_field.jpg", "moon.png", "motorcycle_left.png"),
        "rocket.jpg",
    ),
}
TILE, SIDE, STRIDE = 96, 48, 8  # pixels
KEPT = {"train": 300, "val": 40}  # crops of a photograph


def corners(size: tuple[int, int], split: str) -> list[tuple[int, int]]:
    """Left upper corners (x, y) of the crops of a photograph [W, H] that a split keeps."""
    width, height = size
    inside = range(0, TILE - SIDE + 1, STRIDE)
    found = [
        (column * TILE + x, row * TILE + y)
        for row in range(height // TILE)
        for column in range(width // TILE)
        if ((row + 2 * column) % 5 == 0) == (split == "val")  # a knight's move apart
        for y in inside
        for x in inside
    ]
    return [found[i] for i in np.linspace(0, len(found) - 1, KEPT[split]).astype(int)]


def write_photos(out: Path) -> None:
    """Write all crops, such as train/photos/coffee-0123.png; refuse a folder of other files."""
    names = [(package, name) for package, each in PHOTOS.items() for name in each]
    wanted = {
        f"{split}/photos/{Path(name).stem}-{i:04d}.png"
        for _, name in names
        for split, count in KEPT.items()
        for i in range(count)
    }
    others = {p.relative_to(out).as_posix() for p in out.rglob("*.*")} - wanted
    if others:
        stop(f"{out} holds {min(others)}, which is no crop; choose another --out", REFUSED)
    try:
        folders = {package: files(package) for package in PHOTOS}
    except ModuleNotFoundError as error:
        stop(f"{error}; pip install scikit-image scikit-learn", MISSING)
    for package, name in names:
        with (folders[package] / name).open("rb") as file, Image.open(file) as image:
            photo = image.convert("RGB")
        for split in KEPT:
            folder = out / split / "photos"
            folder.mkdir(parents=True, exist_ok=True)
            for i, (x, y) in enumerate(corners(photo.size, split)):
                photo.crop((x, y, x + SIDE, y + SIDE)).save(
                    folder / f"{Path(name).stem}-{i:04d}.png"
                )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write crops of photographs as image folders")
    parser.add_argument("--out", type=Path, required=True, help="folder for train/ and val/")
    write_photos(parser.parse_args().out)
