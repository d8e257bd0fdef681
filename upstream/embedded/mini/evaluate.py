"""What the frozen encoder has learned: k-NN and linear probes on its mean patch token.

Draws from no global generator, so evaluating more or less often does not change a run.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

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
    k = min(k, len(x))
    by_rank = 1 - 1e-3 * np.arange(k)
    classifier = KNeighborsClassifier(
        k, metric="cosine", weights=lambda distance: np.tile(by_rank, (len(distance), 1))
    )
    return float(classifier.fit(x, y).score(x_val, y_val))


def probe(x: np.ndarray, y: np.ndarray, x_val: np.ndarray, y_val: np.ndarray) -> float:
    """Accuracy in 0..1 of a logistic regression on standardised features."""
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=200))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return float(classifier.fit(x, y).score(x_val, y_val))


def few_labels(labels: np.ndarray, draw: int) -> np.ndarray:
    """Ids of `FEW` samples per class (all of a smaller class), the same in every run."""
    rng = np.random.default_rng((FEW, draw))
    return np.concatenate(
        [rng.permutation(np.flatnonzero(labels == c))[:FEW] for c in np.unique(labels)]
    )


def evaluate(
    model: MaskedImageModel, train: data.Images, val: data.Images, img_size: int, limit: int = 5000
) -> dict[str, float]:
    """Score the encoder on val, with the labels of train, each at most `limit` images.

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


@torch.no_grad()
def save_images(
    path: Path, model: MaskedImageModel, val: data.Images, batches: data.MaskedBatches
) -> None:
    """Write a PNG of up to four images of val, a row for each, under masks fixed for all runs.

    From left to right: masked input, reconstruction with the visible patches as they are, target.
    """
    mask = torch.from_numpy(batches.draw_masks(np.random.default_rng(0))[:4])
    size, p, g = batches.args.img_size, model.patch_size, model.grid
    chosen = [val[i] for i in np.linspace(0, len(val) - 1, len(mask)).astype(int)]
    images = data.to_tensor([data.to_array(i, data.centre_box(i), size) for i in chosen])
    was_training = model.training
    model.eval()
    device = model.cls_token.device
    prediction = model.predict(images.to(device), mask.to(device)).float().cpu()
    model.train(was_training)

    target, hidden = model.patchify(images), mask.unsqueeze(-1)
    if model.norm_pix_loss:
        variance, mean = torch.var_mean(target, dim=-1, keepdim=True)
        prediction = prediction * (variance + 1e-6).sqrt() + mean
    columns = [target.masked_fill(hidden, 0), torch.where(hidden, prediction, target), target]
    cells = torch.stack(columns, dim=1).reshape(len(mask), 3, g, g, p, p, 3)
    pixels = cells.permute(0, 2, 4, 1, 3, 5, 6).reshape(len(mask) * size, 3 * size, 3)
    pixels = (pixels * torch.tensor(data.STD) + torch.tensor(data.MEAN)).clamp(0, 1) * 255
    Image.fromarray(pixels.round().byte().numpy()).save(path)
