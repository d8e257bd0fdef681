"""Count what autograd saves per image for real upstream models, on a CPU.

    measure.py NAME CHECKOUT MODEL

prints one JSON object: parameters, trainable, saved (bytes per image under bfloat16 autocast,
distinct storages without parameters, difference between two batch sizes).
For another upstream: call `saved` on its model and loss.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

CONFIGS = {
    "vit_base": "vit_base__800ep/simmim_pretrain__vit_base__img224__800ep.yaml",
    "swin_base": "swin_base__800ep/simmim_pretrain__swin_base__img192_window6__800ep.yaml",
    "swin_large": "swin_large__800ep/simmim_pretrain__swin_large__img192_window12__800ep.yaml",
}


def build(name: str, checkout: Path, model: str) -> tuple[Any, Callable[[int], Any]]:
    """The recipe's model, and its loss on so many random images."""
    import torch

    sys.path.insert(0, str(checkout))
    from mto_tools import compat
    from mto_tools.launch.cpu import pretend_cuda

    pretend_cuda()
    if name != "mini":
        compat.activate(name)
    torch.manual_seed(0)
    if name == "mini":
        from main_pretrain import get_args_parser
        from models import MAE, SimMIM

        args = get_args_parser().parse_args(["--data_path", ""])
        net = (MAE if model == "mae" else SimMIM)(args)

        def mini(size: int) -> Any:
            return net(torch.randn(size, 3, 32, 32), torch.rand(size, 64).argsort(1) < 48)[0]

        return net, mini
    if name == "mae":
        import models_mae
        import timm  # noqa: F401  # a shim answers for its version

        net = models_mae.__dict__[model](norm_pix_loss=True)
        return net, lambda size: net(torch.randn(size, 3, 224, 224), mask_ratio=0.75)[0]
    if name == "simmim":
        from config import _C
        from models import build_model

        config = _C.clone()
        config.set_new_allowed(True)
        config.merge_from_file(str(checkout / "configs" / CONFIGS[model]))
        net = build_model(config, is_pretrain=True)
        side = config.DATA.IMG_SIZE
        patch = config.MODEL.SWIN.PATCH_SIZE if config.MODEL.TYPE == "swin" else 16

        def simmim(size: int) -> Any:
            cells = (torch.rand(size, side // 32, side // 32) < 0.6).float()
            mask = cells.repeat_interleave(32 // patch, 1).repeat_interleave(32 // patch, 2)
            return net(torch.randn(size, 3, side, side), mask)

        return net, simmim
    from timm.models import create_model

    more = {"drop_path_rate": 0.0, "drop_block_rate": None, "use_shared_rel_pos_bias": True}
    more |= {"pretrained": False, "use_abs_pos_emb": False}
    if name == "bootmae":
        import models  # noqa: F401

        net = create_model(model, init_values=0, **more)

        def bootmae(size: int) -> Any:
            images, shuffle = torch.randn(size, 3, 224, 224), torch.rand(size, 196).argsort(1)
            pixels, features = net(images, 147, shuffle)[:2]
            mask = torch.rand(pixels.shape)
            loss = (mask * (pixels - torch.randn_like(pixels)) ** 2).mean()
            norm = torch.nn.functional.layer_norm(features, features.shape[-1:])
            return loss + (norm - torch.randn_like(norm)).square().mean()

        return net, bootmae
    import modeling_pretrain  # noqa: F401

    projector = {"use_mlp_projectors": True}
    net = create_model(model, init_values=0.1, **projector, **more)

    def conmim(size: int) -> Any:
        images, mask = torch.randn(size, 3, 224, 224), torch.rand(size, 196).argsort(1) < 147
        flags = {"return_all_tokens": True, "only_return_before_head": True, **projector}
        feat = net(images, bool_masked_pos=mask, **flags)
        feat = torch.nn.functional.normalize(feat, p=2, dim=-1)
        other = torch.nn.functional.normalize(torch.randn(feat.shape), p=2, dim=-1)
        logits = (feat @ other.mT / 0.1)[mask]
        labels = torch.arange(196).expand(size, -1)[mask]
        return torch.nn.functional.cross_entropy(logits, labels)

    return net, conmim


def saved(net: Any, loss: Callable[[int], Any], size: int) -> int:
    """Bytes of the distinct storages that autograd packs, without the parameters'."""
    import torch

    own = {p.untyped_storage().data_ptr() for p in net.parameters()}
    found: dict[int, int] = {}
    kept = []

    def pack(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor)  # or its memory would be counted again for another
        return tensor

    net.train()
    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16):
        out = loss(size)
    del out
    return sum(found.values())


def main() -> None:
    name, checkout, model = sys.argv[1], Path(sys.argv[2]).resolve(), sys.argv[3]
    net, loss = build(name, checkout, model)
    one, two = (saved(net, loss, size) for size in (2, 4))
    found = {
        "parameters": sum(p.numel() for p in net.parameters()),
        "trainable": sum(p.numel() for p in net.parameters() if p.requires_grad),
        "saved": (two - one) // 2,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
