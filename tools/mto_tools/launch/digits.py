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
    lists = {}
    for phase in ("train", "val") if data.listing else ():
        names = sorted(file.relative_to(root / phase) for file in (root / phase).glob("*/*.png"))
        lines = [data.line.format(file=n, label=n.parent.name[len("digit") :]) for n in names]
        lists[data.listing.format(data=root, phase=phase)] = "".join(f"{x}\n" for x in lines)
    if data.class_index:  # all labels get a folder; ours are the first ones
        index = {str(label): [f"digit{label}", f"digit {label}"] for label in range(1000)}
        lists[data.class_index.format(data=root)] = json.dumps(index)
    for name, text in lists.items():
        file = root.parent / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root
