"""Write scikit-learn's handwritten digits as a folder of images: real data without a network.

1797 images of 8 x 8 pixels with 17 grey levels (UCI Optical Recognition of Handwritten Digits),
enlarged to 32 x 32. Every fifth image of a class goes to val, so the split is always the same.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from runtime import REFUSED, stop


def write_labelled(out: Path, pixels: np.ndarray, labels: np.ndarray) -> None:
    """Write images [n, H, W], uint8, as 32 x 32, such as train/7/0123.png.

    Every fifth image of a class goes to val. A folder that holds other files is refused.
    """
    seen: Counter[int] = Counter()
    images = {}
    for i, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        split = "val" if seen[label] % 5 == 4 else "train"
        seen[label] += 1
        resized = Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC)
        images[f"{split}/{label}/{i:04d}.png"] = resized
    others = {p.relative_to(out).as_posix() for p in out.rglob("*.*")} - images.keys()
    if others:
        stop(f"{out} holds {min(others)}, which is not of this data; choose another --out", REFUSED)
    for name, image in images.items():
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)


def write_digits(out: Path) -> None:
    """Write all digits; refuse a folder that holds other files."""
    digits = load_digits()
    write_labelled(out, (digits.images * (255 / 16)).round().astype(np.uint8), digits.target)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write scikit-learn's digits as image folders")
    parser.add_argument("--out", type=Path, required=True, help="folder for train/ and val/")
    write_digits(parser.parse_args().out)
