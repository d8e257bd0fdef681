"""Memory and time of k-NN and linear probe on synthetic features, such as ImageNet has them.

    python benchmarks/evaluate.py                       # 1,281,167 x 768, 50,000 queries
    python benchmarks/evaluate.py --queries 500 --steps 1    # a part of it

Features are one Gaussian cloud for each class, written to a file in blocks. The baseline of memory
is the process before the first block: torch and numpy imported, labels and queries made.
"""

from __future__ import annotations

import argparse
import platform
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from mto_tools.evaluate import knn, probe
from mto_tools.evaluate.rows import Rows, create, write


def peak() -> float:
    """Largest resident memory of this process so far, in MiB; pages of mapped files count."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def fill(file: Path, labels: np.ndarray, centres: np.ndarray) -> None:
    """Write a feature for each label: its class's centre, and noise."""
    create(file, len(labels), centres.shape[1])
    for first in range(0, len(labels), 16_384):
        part = labels[first : first + 16_384]
        noise = np.random.default_rng((1, first)).standard_normal(
            (len(part), centres.shape[1]), dtype=np.float32
        )
        write(file, first, centres[part] + noise)


@contextmanager
def row(name: str, note: Callable[[], str]) -> Iterator[None]:
    """Print a row of the table."""
    began = time.perf_counter()
    yield
    print(f"| {name} | {time.perf_counter() - began:.0f} s | {peak():.0f} MiB | {note()} |")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--images", type=int, default=1_281_167)
    add("--queries", type=int, default=50_000)
    add("--size", type=int, default=768)
    add("--classes", type=int, default=1000)
    add("--steps", type=int, default=probe.STEPS, help="of L-BFGS")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--file", type=Path, help="the features; made if it is not there, and kept")
    args = parser.parse_args()

    shape = f"{args.images} x {args.size} float32, {args.images * args.size * 4 / 2**30:.2f} GiB"
    print(f"features {shape}; {args.queries} queries; {args.classes} classes; {args.device}")
    print(f"torch {torch.__version__}, numpy {np.__version__}, Python {platform.python_version()}")
    print(f"{platform.machine()}, {torch.get_num_threads()} threads\n")
    rng = np.random.default_rng(0)
    centres = 0.3 * rng.standard_normal((args.classes, args.size), dtype=np.float32)
    labels = rng.integers(0, args.classes, args.images)
    asked = rng.integers(0, args.classes, args.queries)
    noise = rng.standard_normal((args.queries, args.size), dtype=np.float32)
    queries = Rows(centres[asked] + noise)
    del noise
    print("| | time | peak memory so far | |\n|---|---|---|---|")
    with row("baseline", lambda: ""):
        pass
    said = ""
    with tempfile.TemporaryDirectory() as folder:
        file = args.file or Path(folder) / "train.npy"
        if not file.exists():
            with row("write the file", lambda: ""):
                fill(file, labels, centres)
        with row("k-NN", lambda: said):
            found = knn.predict(Rows(file), labels, queries, device=args.device)
            said = f"accuracy {(found == asked).mean():.3f}"
        with row("probe", lambda: said):
            fitted = probe.fit(
                *(Rows(file), labels, args.classes), steps=args.steps, device=args.device
            )
            found = fitted.predict(queries, device=args.device)
            said = f"accuracy {(found == asked).mean():.3f} after {fitted.steps} steps"


if __name__ == "__main__":
    main()
