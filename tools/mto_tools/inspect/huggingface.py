"""A folder of Hugging Face's ViTMAE as a checkpoint of the official MAE."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mto_tools.checkpoint import Checkpoint, read_checkpoint
from mto_tools.errors import CorruptError, MissingError, MtoError

# Names as transformers 4 and the hub have them, and as transformers 5 does. First match wins.
_NAMES = (
    (r"^vit\.(encoder\.layer|layers)\.", "blocks."),
    (r"^decoder\.decoder_(layers|encoder\.layer)\.", "decoder_blocks."),  # 5.24 saves the latter
    (r"^vit\.embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^vit\.embeddings\.position_embeddings$", "pos_embed"),
    (r"^vit\.embeddings\.cls_token$", "cls_token"),
    (r"^vit\.layernorm\.", "norm."),
    (r"^decoder\.", ""),
)
_INSIDE = (
    (r"\.attention\.(attention\.query|q_proj)\.", ".attn.q."),
    (r"\.attention\.(attention\.key|k_proj)\.", ".attn.k."),
    (r"\.attention\.(attention\.value|v_proj)\.", ".attn.v."),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
)


def read_vit_mae(folder: Path, models: Mapping[str, str]) -> Checkpoint:
    """Read `config.json` and `model.safetensors` or `pytorch_model.bin`.

    Args:
        folder: As `save_pretrained` writes it.
        models: The official script's `--model` by `hidden_size`.

    Raises:
        MissingError: A file is missing.
        CorruptError: A file cannot be read.
        MtoError: It is another model than ViTMAE, or this recipe has no model like it.
    """
    if not models:
        raise MtoError(f"{folder} is a folder; this recipe's checkpoints are files")
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except FileNotFoundError:
        raise MissingError(
            f"{folder} has no config.json, so it is no folder of Hugging Face's ViTMAE",
            hint="name a checkpoint file, or a folder made by save_pretrained",
        ) from None
    except ValueError as error:
        raise CorruptError(f"{folder / 'config.json'}: {error}") from None
    if config.get("model_type") != "vit_mae":
        raise MtoError(f"{folder} holds a model {config.get('model_type')!r}, not 'vit_mae'")
    settings: dict[str, Any] = {
        "mask_ratio": config.get("mask_ratio", 0.75),
        "norm_pix_loss": config.get("norm_pix_loss", False),
        "input_size": config.get("image_size", 224),
    }
    if model := models.get(str(config.get("hidden_size", 768))):
        settings["model"] = model
    return Checkpoint(folder, convert(_weights(folder)), settings, None)


def convert(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Rename the tensors of a ViTMAEForPreTraining; join query, key and value, in this order."""
    import torch

    renamed = {_rename(name): value for name, value in weights.items()}
    found: dict[str, Any] = {}
    for name, value in renamed.items():
        if ".attn.q." in name:
            parts = [renamed.get(name.replace(".attn.q.", f".attn.{part}.")) for part in "qkv"]
            joined = torch.cat([part for part in parts if part is not None])
            found[name.replace(".attn.q.", ".attn.qkv.")] = joined
        elif ".attn.k." not in name and ".attn.v." not in name:
            found[name] = value
    return found


def _rename(name: str) -> str:
    name = next((re.sub(old, new, name) for old, new in _NAMES if re.search(old, name)), name)
    return next((re.sub(old, new, name) for old, new in _INSIDE if re.search(old, name)), name)


def _weights(folder: Path) -> dict[str, Any]:
    file = folder / "model.safetensors"
    if not file.is_file():
        if not (folder / "pytorch_model.bin").is_file():
            raise MissingError(f"{folder} has neither model.safetensors nor pytorch_model.bin")
        return read_checkpoint(folder / "pytorch_model.bin").weights
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except SafetensorError as error:
        raise CorruptError(f"{file}: {error}", hint="download it again; it was cut") from None
