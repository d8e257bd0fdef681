"""A few real images, laid out as each recipe expects ImageNet: the digits inside scikit-learn."""

from __future__ import annotations

import json
from pathlib import Path

CLASSES = 8


def image_folder(root: Path, per_class: int, validation: int = 1) -> Path:
    """Write `root/train/CLASS/*.png` and `root/val/CLASS/*.png`: 64 by 64 pixels, RGB, 8 classes.

    Args:
        root: Folder to fill; what is there already is kept.
        per_class: Training images of each class.
        validation: Validation images of each class.

    Returns:
        `root`.
    """
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for label in range(CLASSES):
        found = np.flatnonzero(digits.target == label)
        for number, index in enumerate(found[: per_class + validation]):
            folder = root / ("train" if number < per_class else "val") / f"digit{label}"
            folder.mkdir(parents=True, exist_ok=True)
            pixels = (digits.images[index] * (255 / 16)).astype(np.uint8)
            image = Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC)
            image.convert("RGB").save(folder / f"{index:04d}.png")
    return root


def wnid_lists(root: Path, per_class: int) -> Path:
    """Images as BootMAE reads them: lists in `data/` of the folder it is started in, `root`'s own.

    `data/imagenet_class_index.json` gives all 1000 labels their folder; ours are the first ones.
    """
    image_folder(root, per_class)
    lists = root.parent / "data"
    lists.mkdir(exist_ok=True)
    index = {str(label): [f"digit{label}", f"digit {label}"] for label in range(1000)}
    (lists / "imagenet_class_index.json").write_text(json.dumps(index))
    for phase in ("train", "val"):
        names = "".join(f"{name}\n" for name in _names(root / phase))
        (lists / f"ILSVRC2012_name_{phase}.txt").write_text(names)
    return root


def map_files(root: Path, per_class: int) -> Path:
    """Images as ConMIM reads them: `train_map.txt` and `val_map.txt` with a path and a label."""
    image_folder(root, per_class)
    for phase in ("train", "val"):
        lines = [f"{name} {name[len('digit')]}\n" for name in _names(root / phase)]
        (root / f"{phase}_map.txt").write_text("".join(lines))
    return root


def _names(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.glob("*/*.png"))
