"""Preset `paper` on mini's own models, against the paper's equations by hand, in float64."""

from __future__ import annotations

import math
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mto_core import MaskedTokenOptimization, MTOConfig, TokenTrace

from .test_parts import STYLES, inputs, make

EPS = MTOConfig().eps


def entropies(rows: NDArray[np.float64]) -> list[float]:
    """Of the softmax of each row, in nats."""
    found = []
    for row in rows:
        p = np.exp(row - row.max())
        p /= p.sum()
        found.append(-sum(x * math.log(x) for x in p if x > 0))
    return found


@pytest.mark.parametrize("style", STYLES)
def test_equations_2_3_6_and_7(mini: SimpleNamespace, style: str) -> None:
    model = make(mini, style)
    images, mask = inputs()
    blocks = model.decoder_blocks if style == "MAE" else model.blocks
    with torch.no_grad():
        for parameter in model.parameters():  # logits for which no term is next to nothing
            parameter *= 0.5
    with TokenTrace(blocks, num_prefix_tokens=1) as trace:
        loss, *_ = model(images, mask)
    mto = MaskedTokenOptimization(MTOConfig.preset("paper"))
    found = mto(trace.tokens_by_depth, mask, step=1, loss=loss)

    depths = [tokens.detach().double().numpy() for tokens in trace.tokens_by_depth]
    sparsity, singularity, ranking, heterogeneity = [], [], [], []
    for image, masked in enumerate(mask.numpy()):
        h = []
        for tokens in depths:
            x = tokens[image]
            h.append(np.mean(entropies(x[masked] @ x[~masked].T)))  # equation 2
        x = depths[0][image]
        sparsity.append(np.mean(entropies(x[~masked] @ x.T)))  # 3, as a mean over visible rows
        singularity.append(1 / (h[0] + EPS))  # 6
        # 7, with the sign that its text asks for: H falls with depth
        ranking.append(sum(math.log1p(math.exp(b - a)) for a, b in pairwise(h)))
        heterogeneity.append(h)
    assert len(depths) == len(blocks) + 1
    assert min(np.ptp(heterogeneity), np.mean(sparsity)) > 0.05, "there is something to measure"
    assert found.sparsity.item() == pytest.approx(np.mean(sparsity), rel=1e-5)
    assert found.singularity.item() == pytest.approx(np.mean(singularity), rel=1e-5)
    assert found.ranking.item() == pytest.approx(np.mean(ranking), rel=1e-5)
    assert found.heterogeneity.numpy() == pytest.approx(np.mean(heterogeneity, 0), rel=1e-4)
    assert MTOConfig.preset("paper").weights == dict.fromkeys(
        ("sparsity", "singularity", "ranking"), 1
    )
