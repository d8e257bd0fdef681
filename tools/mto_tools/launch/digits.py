"""A few real images, laid out as a recipe expects ImageNet: the digits inside scikit-learn."""

from __future__ import annotations

import json
from pathlib import Path

from mto_tools.upstreams.recipe import Data

CLASSES = 8


def lay_out(data: Data, root: Path, per_class: int) -> Path:
    """Write `root/train/CLASS/*.png`, one more image of each class to `root/val`, and the lists.

    64 by 64 pixels, RGB, 8 classes; a recipe's relative lists stand beside `root`. Returns `root`.
    """
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for label in range(CLASSES):
        found = np.flatnonzero(digits.target == label)
        for number, index in enumerate(found[: per_class + 1]):
            folder = root / ("train" if number < per_class else "val") / f"digit{label}"
            folder.mkdir(parents=True, exist_ok=True)
            pixels = (digits.images[index] * (255 / 16)).astype(np.uint8)
            image = Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC)
            image.convert("RGB").save(folder / f"{index:04d}.png")
    write_lists(data, root)
    return root


def write_lists(data: Data, root: Path) -> None:
    """Write the recipe's lists of `root/PHASE/CLASS/*`; labels count the sorted class folders."""
    lists = {}
    for phase in ("train", "val") if data.listing else ():
        names = sorted(file.relative_to(root / phase) for file in (root / phase).glob("*/*"))
        classes = sorted({file.parent for file in names})
        lines = [data.line.format(file=f, label=classes.index(f.parent)) for f in names]
        lists[data.listing.format(data=root, phase=phase)] = "".join(f"{x}\n" for x in lines)
    if data.class_index:  # all labels get a folder; ours are the first ones
        folders = sorted(folder.name for folder in (root / "train").iterdir())
        folders += [f"none{label}" for label in range(len(folders), 1000)]
        index = {str(label): [folder, folder] for label, folder in enumerate(folders)}
        lists[data.class_index.format(data=root)] = json.dumps(index)
    for name, text in lists.items():
        file = root.parent / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
