"""k-NN classification as in DINO: cosine similarity, votes weighted by exp(similarity / T)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from mto_tools.evaluate.rows import Rows

NEIGHBOURS = 20
TEMPERATURE = 0.07
BANK, QUERIES = 16_384, 2_048  # rows at a time: a block of similarities has 128 MiB


def predict(
    bank: Rows,
    labels: NDArray[np.int64],
    queries: Rows,
    *,
    k: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
    device: torch.device | str = "cpu",
    block: tuple[int, int] = (BANK, QUERIES),
    watch: Callable[[int], None] = lambda _: None,
) -> NDArray[np.int64]:
    """Predict a label for each query. The bank is read once, in blocks; queries stay in memory.

    Args:
        bank: [n, D] features with labels.
        labels: [n], 0 to the number of classes - 1.
        queries: [m, D].
        k: Neighbours that vote; at most n.
        temperature: T.
        device: Where similarities are computed, in float32.
        block: Rows of the bank, and queries, at a time.
        watch: Gets the number of rows of the bank that are done.

    Returns:
        [m]; of two classes with equal votes, the smaller label.
    """
    asked = [normalize(torch.from_numpy(rows).float()) for _, rows in queries.blocks(block[1])]
    best = [(torch.empty(len(x), 0), torch.empty(len(x), 0, dtype=torch.int64)) for x in asked]
    known = torch.from_numpy(labels)
    for place, rows in bank.blocks(block[0]):
        block_bank = normalize(torch.from_numpy(rows).to(device).float())
        block_labels = known[place]
        for number, query in enumerate(asked):
            similarity = query.to(device) @ block_bank.T
            near = similarity.topk(min(k, similarity.shape[1]), dim=1)
            found = (near.values.cpu(), block_labels[near.indices.cpu()])
            best[number] = _merge(best[number], found, k)
        watch(place.stop)
    classes = int(labels.max()) + 1
    return torch.cat([_vote(*one, classes, temperature) for one in best]).numpy()


def _merge(
    one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], k: int
) -> tuple[Tensor, Tensor]:
    """The k most similar of both, as similarities and labels [m, k]."""
    similarity, label = (torch.cat(pair, dim=1) for pair in zip(one, other, strict=True))
    near = similarity.topk(min(k, similarity.shape[1]), dim=1)
    return near.values, label.gather(1, near.indices)


def _vote(similarity: Tensor, label: Tensor, classes: int, temperature: float) -> Tensor:
    """Labels [m]. The nearest has weight 1: the vote is the same, and float64 never overflows."""
    weight = ((similarity - similarity[:, :1]).double() / temperature).exp()
    votes = torch.zeros(len(label), classes, dtype=torch.float64).scatter_add_(1, label, weight)
    return votes.argmax(dim=1)
