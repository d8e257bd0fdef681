"""Hugging Face's ViTMAE against the official MAE."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch

from mto_core import heterogeneity
from mto_tools import compat
from mto_tools.inspect.huggingface import read_vit_mae
from mto_tools.upstreams.recipe import load_recipe
from mto_tools.upstreams.upstream import load_upstream

from .conftest import apply


@pytest.fixture
def models_mae(home: Path) -> Iterator[ModuleType]:
    folder = str(apply(home, "mae").checkout)
    compat.activate(*load_recipe(load_upstream(home, "mae")).compat)
    sys.path.insert(0, folder)
    yield importlib.import_module("models_mae")
    sys.path.remove(folder)
    for name in [name for name, module in sys.modules.items() if folder in str(module)]:
        del sys.modules[name]


@pytest.mark.parametrize("safe", [True, False])
def test_a_vit_mae_is_the_official_model(
    models_mae: ModuleType, tmp_path: Path, safe: bool
) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"intermediate_size": 128, "image_size": 32, "patch_size": 8}
    sizes |= {"decoder_hidden_size": 24, "decoder_num_hidden_layers": 2}
    sizes |= {"decoder_num_attention_heads": 3, "decoder_intermediate_size": 96}
    theirs = transformers.ViTMAEForPreTraining(
        transformers.ViTMAEConfig(**sizes, layer_norm_eps=1e-6, mask_ratio=0.5)
    ).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    theirs.save_pretrained(tmp_path)
    if not safe:
        (tmp_path / "model.safetensors").unlink()
        torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    found = read_vit_mae(tmp_path, {"32": "tiny"})
    assert found.settings == {
        **{"model": "tiny", "mask_ratio": 0.5, "norm_pix_loss": False, "input_size": 32}
    }
    ours = models_mae.MaskedAutoencoderViT(
        **{"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4},
        **{"decoder_embed_dim": 24, "decoder_depth": 2, "decoder_num_heads": 3},
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
    ).eval()
    ours.load_state_dict(found.weights)
    tokens: list[torch.Tensor] = []
    ours.decoder_blocks[0].register_forward_pre_hook(lambda _, args: tokens.append(args[0]))
    for block in ours.decoder_blocks:
        block.register_forward_hook(lambda *given: tokens.append(given[2]))
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        torch.manual_seed(1)
        _, _, mask = ours(images, mask_ratio=0.5)
        torch.manual_seed(1)  # the mask is the official model's first draw
        noise = torch.rand(3, 16)
        seen: list[torch.Tensor] = []
        layers = theirs.decoder.decoder_layers
        layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        for layer in layers:
            layer.register_forward_hook(
                lambda *given: seen.append(given[2][0] if isinstance(given[2], tuple) else given[2])
            )
        output = theirs(images, noise=noise)
    assert torch.equal(output.mask, mask)
    assert len(tokens) == len(seen) == 3
    for mine, other in zip(tokens, seen, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)
        h = [heterogeneity(x[:, 1:], mask.bool()) for x in (mine, other)]
        torch.testing.assert_close(*h, rtol=1e-4, atol=1e-5)
        assert float(h[0].max()) < math.log(8)
