"""Scores of features: k-NN, and linear probes with all, 1 % and ten labels a class."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from mto_tools.evaluate import knn, probe
from mto_tools.evaluate.rows import Rows

FEW, DRAWS = 10, 5  # labels a class; fixed choices of them, averaged


def scores(
    train: Rows,
    train_labels: NDArray[np.int64],
    val: Rows,
    val_labels: NDArray[np.int64],
    *,
    k: int = knn.NEIGHBOURS,
    device: torch.device | str = "cpu",
    watch: Callable[[int], None] = lambda _: None,
) -> dict[str, float]:
    """Accuracies on val in 0..1, by the keys of `result.SCORES`; the same in every run.

    `watch` gets the images of train that k-NN has compared.
    """
    classes = int(max(train_labels.max(), val_labels.max())) + 1

    def linear(chosen: NDArray[np.int64] | None) -> float:
        rows = train if chosen is None else train.take(chosen)
        labels = train_labels if chosen is None else train_labels[chosen]
        fitted = probe.fit(rows, labels, classes, device=device)
        return _accuracy(fitted.predict(val, device=device), val_labels)

    near = knn.predict(train, train_labels, val, k=k, device=device, watch=watch)
    few = [choose(train_labels, lambda n: min(n, FEW), draw) for draw in range(DRAWS)]
    return {
        "knn": _accuracy(near, val_labels),
        "probe": linear(None),
        "probe_1pct": linear(choose(train_labels, lambda n: max(1, round(n / 100)), 0)),
        "probe10": math.fsum(linear(one) for one in few) / DRAWS,
    }


def choose(labels: NDArray[np.int64], count: Callable[[int], int], draw: int) -> NDArray[np.int64]:
    """Numbers of some images of each class, sorted; the same for the same labels and draw."""
    rng = np.random.default_rng((FEW, draw))
    chosen = []
    for label in np.unique(labels):
        of_class = np.flatnonzero(labels == label)
        chosen.append(rng.permutation(of_class)[: count(len(of_class))])
    return np.sort(np.concatenate(chosen))


def _accuracy(predicted: NDArray[np.int64], labels: NDArray[np.int64]) -> float:
    return float((predicted == labels).mean())
