"""Write scikit-learn's handwritten digits as a folder of images: real data without a network.

python make_digits.py --out digits

1797 images of 8 x 8 pixels with 17 grey levels (UCI Optical Recognition of Handwritten Digits),
enlarged to 32 x 32. Every fifth image of a class goes to val, so the split is always the same.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from runtime import MISSING, REFUSED, stop

SIDE = 32


def digit_files() -> dict[str, Image.Image]:
    """All images by their path, such as train/7/0123.png."""
    digits = load_digits()
    files: dict[str, Image.Image] = {}
    seen = [0] * 10
    for i, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        split = "val" if seen[label] % 5 == 4 else "train"
        seen[label] += 1
        image = Image.fromarray((pixels * (255 / 16)).round().astype(np.uint8))
        files[f"{split}/{label}/{i:04d}.png"] = image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return files


def write_digits(out: Path) -> int:
    """Write the folder in one step and count its images; a folder with other content is refused."""
    files = digit_files()
    present = {p.relative_to(out).as_posix() for p in out.rglob("*") if not p.is_dir()}
    if present == files.keys():
        return len(files)
    if present or out.is_file():
        found = next(iter(sorted(present - files.keys())), "a part of them, or is a file")
        stop(f"will not write digits into {out}: it holds {found}; choose another --out", REFUSED)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=out.name) as temporary:
            for name, image in files.items():
                path = Path(temporary, "new", name)
                path.parent.mkdir(parents=True, exist_ok=True)
                image.save(path)
            Path(temporary, "new").replace(out)
    except OSError as error:
        stop(f"could not write digits into {out} ({error.strerror})", MISSING)
    return len(files)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write scikit-learn's digits as image folders")
    parser.add_argument("--out", type=Path, required=True, help="folder for train/ and val/")
    args = parser.parse_args()
    print(f"{args.out}: {write_digits(args.out)} images")
