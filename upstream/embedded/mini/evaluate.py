"""What the frozen encoder has learned: k-NN and linear probes on its mean patch token.

Draws from no global generator, so evaluating more or less often does not change a run.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch

import data
from models import MaskedImageModel

FEW = 10  # labels per class of the small probe
DRAWS = 5  # fixed choices of these labels, averaged


@torch.no_grad()
def features(
    model: MaskedImageModel, images: data.Images, ids: np.ndarray, img_size: int, batch: int = 256
) -> np.ndarray:
    """Features [len(ids), D], float32, of the unmasked centre crops."""
    device = model.cls_token.device
    was_training = model.training
    model.eval()
    rows = []
    for chunk in np.array_split(ids, -(-len(ids) // batch)):
        arrays = [data.to_array(images[i], data.centre_box(images[i]), img_size) for i in chunk]
        rows.append(model.features(data.to_tensor(arrays).to(device)).float().cpu())
    model.train(was_training)
    return torch.cat(rows).numpy()


def knn(x: np.ndarray, y: np.ndarray, x_val: np.ndarray, y_val: np.ndarray, k: int = 10) -> float:
    """Accuracy in 0..1 of the majority of the k nearest by cosine; ties go to the nearer."""
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    x_val = x_val / np.linalg.norm(x_val, axis=1, keepdims=True)
    near = np.argsort(-(x_val @ x.T), axis=1, kind="stable")[:, :k]
    votes = np.zeros((len(x_val), int(y.max()) + 1))
    rank_weight = 1 - 1e-3 * np.arange(near.shape[1])
    for column, weight in zip(near.T, rank_weight, strict=True):
        votes[np.arange(len(votes)), y[column]] += weight
    return float((votes.argmax(axis=1) == y_val).mean())


def probe(x: np.ndarray, y: np.ndarray, x_val: np.ndarray, y_val: np.ndarray) -> float:
    """Accuracy in 0..1 of a logistic regression on standardised features."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    mean, std = x.mean(axis=0), x.std(axis=0) + 1e-6
    classifier = LogisticRegression(C=0.1, max_iter=200)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        classifier.fit((x - mean) / std, y)
    return float(classifier.score((x_val - mean) / std, y_val))


def few_labels(labels: np.ndarray, draw: int) -> np.ndarray:
    """Ids of `FEW` samples per class (all of a smaller class), the same in every run."""
    rng = np.random.default_rng((FEW, draw))
    return np.concatenate(
        [rng.permutation(np.flatnonzero(labels == c))[:FEW] for c in np.unique(labels)]
    )


def evaluate(
    model: MaskedImageModel,
    train: data.Images,
    val: data.Images,
    img_size: int,
    limit: int = 5000,
) -> dict[str, float]:
    """Score the encoder on val, with the labels of train.

    Args:
        limit: Use at most so many images of each split, evenly spaced.

    Returns:
        Accuracies in 0..1: "knn" (k = 10), "probe" (all labels), "probe10" (10 labels per class,
        mean over five fixed choices of them).
    """
    ids = [np.linspace(0, len(s) - 1, min(limit, len(s))).astype(int) for s in (train, val)]
    x, x_val = (features(model, s, i, img_size) for s, i in zip((train, val), ids, strict=True))
    y, y_val = train.labels[ids[0]], val.labels[ids[1]]
    few = [few_labels(y, draw) for draw in range(DRAWS)]
    return {
        "knn": knn(x, y, x_val, y_val),
        "probe": probe(x, y, x_val, y_val),
        "probe10": sum(probe(x[i], y[i], x_val, y_val) for i in few) / DRAWS,
    }
