"""A linear probe: multinomial logistic regression on standardised features, fitted in blocks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from mto_tools.evaluate.rows import Rows

C = 0.1  # inverse strength of the L2 penalty, as in scikit-learn
STEPS = 200
BLOCK = 16_384  # rows at a time


@dataclass(frozen=True)
class Probe:
    """A fitted probe: logits are ((x - mean) / scale) @ weight + bias."""

    mean: Tensor  # [D], and so on; all float64, on the CPU
    scale: Tensor
    weight: Tensor  # [D, classes]
    bias: Tensor  # [classes]
    steps: int  # of L-BFGS

    def predict(self, rows: Rows, *, device: torch.device | str = "cpu") -> NDArray[np.int64]:
        """Labels [m] of features [m, D]."""
        weight, bias = self.weight.to(device), self.bias.to(device)
        found = [
            (_standard(x, self.mean, self.scale, device, weight.dtype) @ weight + bias).argmax(1)
            for _, x in rows.blocks(BLOCK)
        ]
        return torch.cat(found).cpu().numpy()


def fit(
    rows: Rows,
    labels: NDArray[np.int64],
    classes: int,
    *,
    c: float = C,
    steps: int = STEPS,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    block: int = BLOCK,
) -> Probe:
    """Minimise the mean cross-entropy plus ||weight||^2 / (2 c n) by L-BFGS with line search.

    That is scikit-learn's `LogisticRegression(C=c)` after a `StandardScaler`.

    Args:
        rows: [n, D] features.
        labels: [n], 0 to classes - 1.
        classes: Outputs; a class without a label keeps its weights.
        c: Inverse strength of the penalty.
        steps: L-BFGS steps at most.
        device: Where logits are computed.
        dtype: Of logits and gradients within a block; default float64 on a CPU, else float32.
            Sums over blocks are float64.
        block: Rows at a time.
    """
    count, size = rows.shape
    mean, scale = standard(rows, block)
    dtype = dtype or (torch.float64 if torch.device(device).type == "cpu" else torch.float32)
    known = torch.from_numpy(labels)
    weight = torch.zeros(size, classes, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=steps,
        max_eval=2 * steps,
        tolerance_grad=1e-7,
        tolerance_change=1e-12,
        history_size=10,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        loss = (weight.detach() ** 2).sum() / (2 * c * count)
        weight.grad, bias.grad = weight.detach() / (c * count), torch.zeros_like(bias)
        w, b = (x.detach().to(device, dtype).requires_grad_() for x in (weight, bias))
        for place, x in rows.blocks(block):
            logits = _standard(x, mean, scale, device, dtype) @ w + b
            part = cross_entropy(logits, known[place].to(device), reduction="sum") / count
            gradients = torch.autograd.grad(part, (w, b))
            weight.grad += gradients[0].double().cpu()
            bias.grad += gradients[1].double().cpu()
            loss += part.detach().double().cpu()
        return loss

    optimizer.step(closure)
    taken = optimizer.state[weight].get("n_iter", 0)
    return Probe(mean, scale, weight.detach(), bias.detach(), taken)


def standard(rows: Rows, block: int = BLOCK) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [D] of each feature, float64; 1 for one that is constant.

    Blocks are merged by Chan's formula, which does not cancel.
    """
    count, mean, squares = 0, torch.zeros(()), torch.zeros(())
    for _, values in rows.blocks(block):
        x = torch.from_numpy(values).double()
        centre, total = x.mean(0), count + len(x)
        delta = centre - mean
        squares = squares + ((x - centre) ** 2).sum(0) + delta**2 * (count * len(x) / total)
        mean, count = mean + delta * (len(x) / total), total
    scale = (squares / count).sqrt()
    constant = scale <= 1e-12 * mean.abs().clamp(min=1e-300)
    return mean, torch.where(constant, torch.ones_like(scale), scale)


def _standard(
    x: NDArray[np.float32],
    mean: Tensor,
    scale: Tensor,
    device: torch.device | str,
    dtype: torch.dtype,
) -> Tensor:
    """A standardised block."""
    centred = torch.from_numpy(x).to(device, dtype) - mean.to(device, dtype)
    return centred / scale.to(device, dtype)
