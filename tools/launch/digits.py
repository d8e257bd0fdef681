"""A few real images, laid out as each recipe expects ImageNet: the digits inside scikit-learn."""

from __future__ import annotations

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
