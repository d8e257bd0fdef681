"""The quadrant map of Figure 2."""

import math

import pytest
import torch
from torch.nn.functional import layer_norm

from mto_core.affinity import affinity


@pytest.mark.parametrize("scale", ["raw", "sqrt_dim", "layernorm"])
def test_quadrants(scale: str) -> None:
    tokens = torch.randn(3, 8, 5)
    mask = torch.tensor([[True, False] * 4, [False] * 8, [False, True, True, True] * 2])
    got = affinity(tokens, mask, scale=scale)
    for image in range(3):
        x = tokens[image].double()
        if scale == "layernorm":
            x = layer_norm(x, (5,))
        s = x @ x.T / (math.sqrt(5) if scale == "sqrt_dim" else 1)
        masked, visible = mask[image].nonzero().flatten(), (~mask[image]).nonzero().flatten()
        order = torch.cat((masked, visible))
        expected = s.softmax(-1)[order][:, order]
        torch.testing.assert_close(got[image], expected.float(), atol=1e-5, rtol=1e-5)


def test_is_float32_under_autocast_and_of_half_tokens() -> None:
    tokens, mask = 4 * torch.randn(1, 8, 64), torch.arange(8).lt(3)[None]
    plain = affinity(tokens, mask)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(affinity(tokens, mask), plain, atol=0, rtol=0)
    assert affinity(tokens.half() * 40, mask).isfinite().all()  # logits of 1e6: fp16 overflows
    assert affinity(tokens.double(), mask).dtype == torch.float64


def test_refuses() -> None:
    tokens, mask = torch.ones(1, 4, 3), torch.ones(1, 4)
    with pytest.raises(ValueError, match=r"pass mask\.bool\(\)"):
        affinity(tokens, mask)
    with pytest.raises(ValueError, match="unknown scale 'log'"):
        affinity(tokens, mask.bool(), scale="log")
