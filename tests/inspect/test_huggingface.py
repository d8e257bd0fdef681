"""Names and refusals; tests/upstream compares tokens of the two models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mto_tools.errors import CorruptError, MissingError, MtoError
from mto_tools.inspect.huggingface import read_vit_mae

MODELS = {"4": "small"}
LAYER = {
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
}
ALONE = {
    "vit.embeddings.cls_token": "cls_token",
    "vit.embeddings.position_embeddings": "pos_embed",
    "vit.embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "vit.layernorm.bias": "norm.bias",
    "decoder.mask_token": "mask_token",
    "decoder.decoder_embed.weight": "decoder_embed.weight",
    "decoder.decoder_pos_embed": "decoder_pos_embed",
    "decoder.decoder_norm.weight": "decoder_norm.weight",
    "decoder.decoder_pred.bias": "decoder_pred.bias",
}
STACKS = {"vit.encoder.layer.1": "blocks.1", "decoder.decoder_layers.0": "decoder_blocks.0"}


NEW = {  # transformers 5
    "vit.encoder.layer.": "vit.layers.",
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}


def folder(root: Path, *, new: bool = False, **config: object) -> dict[str, torch.Tensor]:
    """Write a folder; return its tensors by their names in the official MAE."""
    names = dict(ALONE)
    for theirs, ours in STACKS.items():
        names |= {f"{theirs}.{a}.weight": f"{ours}.{b}.weight" for a, b in LAYER.items()}
    weights = {name: torch.randn(3) for name in names}
    expected = {names[name]: value for name, value in weights.items()}
    for theirs, ours in STACKS.items():
        parts = {p: torch.randn(4, 4) for p in ("value", "key", "query")}
        weights |= {f"{theirs}.attention.attention.{p}.weight": x for p, x in parts.items()}
        joined = torch.cat([parts["query"], parts["key"], parts["value"]])
        expected[f"{ours}.attn.qkv.weight"] = joined
    for old, other in NEW.items() if new else ():
        weights = {name.replace(old, other): value for name, value in weights.items()}
    save_file(weights, root / "model.safetensors")
    content = {"model_type": "vit_mae", "hidden_size": 4, "mask_ratio": 0.6, **config}
    (root / "config.json").write_text(json.dumps(content))
    return expected


@pytest.mark.parametrize("new", [False, True])
def test_names_and_settings(tmp_path: Path, new: bool) -> None:
    expected = folder(tmp_path, new=new, norm_pix_loss=True, image_size=32)
    found = read_vit_mae(tmp_path, MODELS)
    assert found.weights.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found.weights[name], value), name
    assert found.settings == {
        **{"model": "small", "mask_ratio": 0.6, "norm_pix_loss": True, "input_size": 32}
    }


def test_a_size_that_the_recipe_does_not_have_is_left_to_the_user(tmp_path: Path) -> None:
    folder(tmp_path, hidden_size=5)
    assert "model" not in read_vit_mae(tmp_path, MODELS).settings


def test_refusals(tmp_path: Path) -> None:
    folder(tmp_path)
    with pytest.raises(MtoError, match=str(tmp_path)):
        read_vit_mae(tmp_path, {})
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-5])
    with pytest.raises(CorruptError, match="safetensors"):
        read_vit_mae(tmp_path, MODELS)
    file.unlink()
    with pytest.raises(MissingError, match="pytorch_model.bin"):
        read_vit_mae(tmp_path, MODELS)
    folder(tmp_path, model_type="vit")
    with pytest.raises(MtoError, match="'vit'"):
        read_vit_mae(tmp_path, MODELS)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CorruptError, match=r"config\.json"):
        read_vit_mae(tmp_path, MODELS)
    (tmp_path / "config.json").unlink()
    with pytest.raises(MissingError, match=r"config\.json"):
        read_vit_mae(tmp_path, MODELS)
