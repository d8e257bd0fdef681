"""Memory of a recipe without DeepSpeed, under upstream's own DDP: everything on every GPU."""

from __future__ import annotations

from mto_tools.plan.activations import Footprint, footprint
from mto_tools.plan.estimate import CONTEXT, GIB, MARGIN, NCCL

# Images per GPU and micro batch in the commands of docs/recipes.md, or of upstream where a model is
# named there in passing.
IMAGES = {
    ("mae", "mae_vit_base_patch16"): 64,
    ("mae", "mae_vit_large_patch16"): 64,
    ("mae", "mae_vit_huge_patch14"): 64,
    ("simmim", "vit_base"): 128,
    ("simmim", "swin_base"): 128,
    ("simmim", "swin_large"): 128,
    ("bootmae", "bootmae_base"): 256,
    ("bootmae", "bootmae_large"): 128,
    ("conmim", "conmim_small_patch16_224"): 256,
    ("conmim", "conmim_base_patch16_224"): 256,
    ("conmim", "conmim_large_patch16_224"): 256,
}
# Bytes per trainable parameter: gradient, DDP's bucket for it, Adam's two moments, and the copy
# that autocast makes of the weight.
TRAINED = 4 + 4 + 8 + 2


def state(model: Footprint) -> int:
    """Bytes that do not grow with the batch."""
    return 4 * model.parameters + TRAINED * model.trainable + model.other_bytes


def per_image(model: Footprint) -> int:
    """Bytes of one image: saved for the backward pass, alive besides at its peak, and MTO's."""
    return model.activations + model.transient + model.mto


def card(taken: int) -> int:
    """GiB of the smallest card, with what `mto plan` assumes for CUDA, NCCL and fragmentation."""
    return -int(-(taken + CONTEXT + NCCL) / (1 - MARGIN) // GIB)


def table() -> str:
    """All models of the four upstreams, as a Markdown table."""
    lines = [
        ["model", "state", "per image", "images", "together", "card of"],
        ["---"] * 6,
    ]
    for (recipe, name), images in IMAGES.items():
        model = footprint(recipe, name)
        taken = state(model) + images * per_image(model)
        cells = [f"{state(model) / GIB:.1f} GiB", f"{per_image(model) / 2**20:.0f} MiB"]
        cells += [str(images), f"{taken / GIB:.1f} GiB", f"{card(taken)} GB"]
        lines.append([f"{recipe} `{name}`", *cells])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
