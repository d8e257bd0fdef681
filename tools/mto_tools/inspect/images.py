"""The images that all checkpoints are shown, laid out as the recipe reads them."""

from __future__ import annotations

import random
from pathlib import Path

from mto_tools.errors import MissingError
from mto_tools.launch.digits import write_lists
from mto_tools.upstreams.recipe import Data


def find_images(data: Path) -> list[Path]:
    """Images of `data/val`, else `data/train`, else `data`: folders of classes, as an ImageFolder.

    Raises:
        MissingError: There is none.
    """
    from torchvision.datasets.folder import IMG_EXTENSIONS

    for folder in (data / "val", data / "train", data):
        files = sorted(folder.glob("*/**/*"))
        found = [file for file in files if file.suffix.lower() in IMG_EXTENSIONS]
        if found:
            return found
    raise MissingError(
        f"{data} holds no images: neither val/CLASS/*, nor train/CLASS/*, nor CLASS/*, with an "
        "ending that torchvision reads",
        hint="--data DIR with a folder of images for each class, or leave --data out",
    )


def choose(found: list[Path], count: int, seed: int) -> list[Path]:
    """Draw `count` images.

    Raises:
        MissingError: There are fewer.
    """
    if len(found) < count:
        raise MissingError(
            f"{count} images are asked for, but {found[0].parents[1]} holds {len(found)}",
            hint=f"--images {len(found)}",
        )
    return sorted(random.Random(seed).sample(found, count))


def stage(spec: Data, files: list[Path], root: Path) -> Path:
    """Lay out links to the files in `root/train/CLASS/`, with the recipe's lists; return `root`."""
    classes = sorted({file.parent for file in files})
    for number, file in enumerate(files):
        # The scripts know 1000 classes, and do not use them.
        folder = root / spec.images / f"class{classes.index(file.parent) % 1000:03d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:06d}{file.suffix}").symlink_to(file.absolute())
    write_lists(spec, root)
    return root
