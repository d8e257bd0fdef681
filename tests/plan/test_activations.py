"""The counted footprints: counted again where that is cheap, and against arithmetic."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mto_core.module import SAVED_LOGITS_SHARE
from mto_tools.plan.activations import KEPT, footprint

MEASURE = Path(__file__).with_name("measure.py")
MINI = Path(__file__).parents[2] / "upstream" / "embedded" / "mini"


@pytest.mark.parametrize("model", ["mae", "simmim"])
@pytest.mark.parametrize("flags", [[], ["--float32"]], ids=["bfloat16", "float32"])
def test_mini_is_as_counted(model: str, flags: list[str]) -> None:
    pytest.importorskip("timm")
    command = [sys.executable, str(MEASURE), "mini", str(MINI), model, *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    known = footprint("mini", model)
    assert (known.parameters, known.trainable) == (found["parameters"], found["trainable"])
    saved = known.activations_float32 if flags else known.activations
    assert saved == pytest.approx(found["saved"], rel=0.15)
    assert known.macs == pytest.approx(found["macs"], rel=0.01)


@pytest.mark.parametrize(
    ("model", "encoder", "decoder_tokens", "pixels"),
    [
        ("mae_vit_base_patch16", (50, 768, 12), 197, 768),
        ("mae_vit_large_patch16", (50, 1024, 24), 197, 768),
        ("mae_vit_huge_patch14", (65, 1280, 32), 257, 588),
    ],
)
def test_mae_is_what_its_blocks_save(
    model: str, encoder: tuple[int, int, int], decoder_tokens: int, pixels: int
) -> None:
    """Per token and channel, in bytes, fused attention under 16-bit autocast.

    Two LayerNorms keep the float32 residual (8) and their outputs in 16 bits (4); q, k, v and what
    attention gives (8); the MLP's hidden layer before and after GELU, four times as wide (16).
    """
    block = 8 + 4 + 8 + 16
    tokens, width, blocks = encoder
    own = block * (tokens * width * blocks + decoder_tokens * 512 * 8)
    loss = 3 * 4 * decoder_tokens * pixels  # prediction, target and difference
    assert footprint("mae", model).activations == pytest.approx(own + loss, rel=0.15)


def test_the_share_of_kept_logits_is_that_of_mto_core() -> None:
    assert KEPT == SAVED_LOGITS_SHARE
