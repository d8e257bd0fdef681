"""The map of Figure 2, and RAUC (equation 8)."""

import math
from itertools import accumulate

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.nn.functional import layer_norm

from mto_core import affinity, rauc


@pytest.mark.parametrize("scale", ["raw", "sqrt_dim", "layernorm"])
def test_quadrants(scale):
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


def test_the_map_is_float32_under_autocast_and_of_half_tokens():
    tokens, mask = 4 * torch.randn(1, 8, 64), torch.arange(8).lt(3)[None]
    plain = affinity(tokens, mask)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(affinity(tokens, mask), plain, atol=0, rtol=0)
    assert affinity(tokens.half() * 40, mask).isfinite().all()  # logits of 1e6: fp16 overflows
    assert affinity(tokens.double(), mask).dtype == torch.float64


def test_a_map_of_what_does_not_fit_is_refused():
    tokens, mask = torch.ones(1, 4, 3), torch.ones(1, 4)
    with pytest.raises(ValueError, match=r"pass mask\.bool\(\)"):
        affinity(tokens, mask)
    with pytest.raises(ValueError, match="unknown scale 'log'"):
        affinity(tokens, mask.bool(), scale="log")


def test_equation_8_by_hand():
    # Baseline 60 -> 80 -> 90 over 0, 100, 300: area above 60 is 1000 + 5000.
    # Target 70 -> 90 -> 95: 2000 + 6500.
    baseline = [(0, 60), (100, 80), (300, 90)]
    target = [(0, 70), (100, 90), (300, 95)]
    assert rauc(baseline, target, 0, 300) == pytest.approx(8500 / 6000)


heights = st.integers(-1000, 1000)
curves = st.lists(st.tuples(st.integers(1, 50), heights), min_size=1, max_size=6)


@given(curves, curves, heights, heights, st.data())
def test_against_sums_over_unit_steps(first, second, y1, y2, data):
    """Epochs are whole, so a trapezoid sum over unit steps is exact."""

    def curve(steps, height):
        epochs = [0, *accumulate(dx for dx, _ in steps)]
        points = zip(epochs, [height, *(y for _, y in steps)], strict=True)
        return [*points, (epochs[-1] + 60, height)]

    baseline, target = curve(first, y1), curve(second, y2)
    last = min(baseline[-1][0], target[-1][0])
    start = data.draw(st.integers(0, last - 1))
    stop = data.draw(st.integers(start + 1, last))
    epochs = np.arange(start, stop + 1)
    own, other = (np.interp(epochs, *zip(*points, strict=True)) for points in (baseline, target))
    areas = [(y[1:] + y[:-1]).sum() / 2 - own[0] * (stop - start) for y in (own, other)]
    assume(abs(areas[0]) > 1e-3)
    found = rauc(baseline, target, start, stop)
    assert found == pytest.approx(areas[1] / areas[0], rel=1e-6, abs=1e-6)


GOOD = [(0, 1.0), (10, 2.0)]


@pytest.mark.parametrize(
    ("baseline", "target", "start", "stop", "message"),
    [
        (GOOD, GOOD, 0, 11, "baseline covers epochs 0 to 10"),
        (GOOD, [(2, 1.0), (10, 2.0)], 0, 10, "target covers epochs 2 to 10"),
        (GOOD, GOOD, 5, 5, "start < stop"),
        (GOOD, GOOD, 0, float("nan"), "start < stop"),
        ([(0, 1.0)], GOOD, 0, 1, "at least two points"),
        ([(0, 1.0), (0, 2.0)], GOOD, 0, 0.5, r"epochs that rise: \[0, 0\]"),
        (GOOD, [(0, 1.0), (10, float("nan"))], 0, 10, "not finite"),
        ([(0, 1.0), (10, 1.0)], GOOD, 0, 10, "RAUC is undefined"),
    ],
)
def test_bad_curves_are_refused(baseline, target, start, stop, message):
    with pytest.raises(ValueError, match=message):
        rauc(baseline, target, start, stop)
