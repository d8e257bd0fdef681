from __future__ import annotations

import math

import pytest
import torch

from mto_tools.inspect.measure import MEASURES, measure


def by_hand(x: torch.Tensor, mask: torch.Tensor) -> dict[str, float]:
    """Pair by pair, for the tokens [N, D] of one image."""
    masked, visible = ([t for t, m in zip(x, mask, strict=True) if m == kind] for kind in (1, 0))
    cosines = [float(a @ b / a.norm() / b.norm()) for a in masked for b in visible]
    entropy = []
    for a in masked:
        p = [math.exp(float(a @ b)) for b in visible]
        entropy.append(-sum(q / sum(p) * math.log(q / sum(p)) for q in p))
    itself, onto = [], []
    for a in visible:
        total = sum(math.exp(float(a @ b)) for b in x)
        itself.append(math.exp(float(a @ a)) / total)
        onto.append(sum(math.exp(float(a @ b)) for b in masked) / total)

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    return {
        "heterogeneity": mean(entropy),
        "similarity": mean(cosines),
        "masked_norm": mean([float(a.norm()) for a in masked]),
        "visible_norm": mean([float(a.norm()) for a in visible]),
        "diagonal_mass": mean(itself),
        "masked_mass": mean(onto),
    }


def test_all_measures_by_hand() -> None:
    torch.manual_seed(0)
    x, mask = torch.randn(11, 9, 4), torch.rand(11, 9) < 0.5
    mask[:, 0], mask[:, 1:3] = True, False
    found = measure(x, mask)
    assert tuple(found) == MEASURES
    for image in range(len(x)):
        for name, value in by_hand(x[image].double(), mask[image]).items():
            assert float(found[name][image]) == pytest.approx(value, rel=1e-10), name


def test_an_image_without_a_mask_has_no_measures() -> None:
    mask = torch.tensor(
        [[False] * 4, [True] * 4, [True, True, True, False], [True, True, False, False]]
    )
    for values in measure(torch.randn(4, 4, 3), mask).values():
        assert values.isnan().tolist() == [True, True, True, False]
