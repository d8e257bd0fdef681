"""Loss on held-out images, scores of the frozen encoder, pictures; no global generator is used."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torchvision.utils import save_image

import data
from models import MaskedImageModel

LIMIT = 5000  # images of train, and of val, that are scored
FEW = 10  # labels per class of the small probe
DRAWS = 5  # fixed choices of these labels, averaged


@torch.no_grad()
def features(
    model: MaskedImageModel, images: data.Images, img_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Features [n, D], float32, of at most `LIMIT` unmasked centre crops, and their labels [n]."""
    ids = np.linspace(0, len(images) - 1, min(LIMIT, len(images))).astype(int)
    rows = []
    for chunk in np.array_split(ids, -(-len(ids) // 256)):
        pixels = data.to_tensor([data.centre_crop(images[i], img_size) for i in chunk])
        rows.append(model.features(pixels.to(model.cls_token.device)).float().cpu())
    return torch.cat(rows).numpy(), np.array(images.targets)[ids]


@torch.no_grad()
def held_out_loss(model: MaskedImageModel, val: data.Images, batches: data.MaskedBatches) -> float:
    """The model's loss on at most `LIMIT` centre crops of val, lower is better.

    Masks depend on style and sizes, and neither on the seed of a run nor on its batch size.
    """
    ids = np.linspace(0, len(val) - 1, min(LIMIT, len(val))).astype(int)
    rng, device, total = np.random.default_rng(0), model.cls_token.device, 0.0
    for first in range(0, len(ids), batches.args.batch_size):
        mask = torch.from_numpy(batches.draw_masks(rng))
        chunk = ids[first : first + len(mask)]
        images = data.to_tensor([data.centre_crop(val[i], batches.args.img_size) for i in chunk])
        loss, _, _ = model(images.to(device), mask[: len(chunk)].to(device))
        total += loss.item() * len(chunk)
    return total / len(ids)


def few_labels(labels: np.ndarray, draw: int) -> np.ndarray:
    """Ids of `FEW` samples per class (all of a smaller class), the same in every run."""
    rng = np.random.default_rng((FEW, draw))
    return np.concatenate(
        [rng.permutation(np.flatnonzero(labels == c))[:FEW] for c in np.unique(labels)]
    )


def evaluate(
    model: MaskedImageModel, train: data.Images, val: data.Images, img_size: int
) -> dict[str, float]:
    """Score the encoder, in evaluation mode, on val with the labels of train.

    Returns:
        Nothing where train and val have no two classes in common. Else accuracies in 0..1: "knn"
        (10 nearest by cosine) and logistic regressions on standardised features: "probe" (all
        labels), "probe10" (10 per class, mean over fixed choices of them).
    """
    if not train.labelled(val):
        return {}
    x, y = features(model, train, img_size)
    scored = features(model, val, img_size)
    k = min(10, len(x))
    by_rank = 1 - 1e-3 * np.arange(k)  # ties go to the nearer
    knn = KNeighborsClassifier(k, metric="cosine", weights=lambda d: np.tile(by_rank, (len(d), 1)))
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=200))
    few = [few_labels(y, draw) for draw in range(DRAWS)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return {
            "knn": knn.fit(x, y).score(*scored),
            "probe": probe.fit(x, y).score(*scored),
            "probe10": sum(probe.fit(x[i], y[i]).score(*scored) for i in few) / DRAWS,
        }


@torch.no_grad()
def save_images(
    path: Path, model: MaskedImageModel, val: data.Images, batches: data.MaskedBatches
) -> None:
    """Write a PNG of up to four images of val, a row for each, under masks fixed for all runs.

    From left to right: masked input, reconstruction with the visible patches as they are, target.
    """
    mask = torch.from_numpy(batches.draw_masks(np.random.default_rng(0))[:4])
    ids = np.linspace(0, len(val) - 1, len(mask)).astype(int)
    images = data.to_tensor([data.centre_crop(val[i], batches.args.img_size) for i in ids])
    device = model.cls_token.device
    prediction = model.predict(images.to(device), mask.to(device))[0].float().cpu()

    target, hidden = model.patchify(images), mask.unsqueeze(-1)
    if model.norm_pix_loss:
        variance, mean = torch.var_mean(target, dim=-1, keepdim=True)
        prediction = prediction * (variance + 1e-6).sqrt() + mean
    columns = [target.masked_fill(hidden, 0), torch.where(hidden, prediction, target), target]
    layout = "column b (h w) (p q c) -> (b column) c (h p) (w q)"
    pixels = rearrange(columns, layout, h=model.grid, p=model.patch_size, c=3)
    save_image(pixels * data.STD + data.MEAN, path, nrow=3, padding=0)
