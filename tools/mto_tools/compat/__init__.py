"""Shims that let the recipes of 2021 and 2022 run, unchanged, on today's libraries.

    from mto_tools import compat; compat.activate("mae")

as the first line of an entry script, notebook or script of one's own. A recipe of another name gets
all `GENERIC` shims. It names those it needs besides, or those alone that it needs:

    compat.activate("toymim", "timm.vision_transformer")
    compat.activate("torch.six", "arrays.numpy_aliases")

Each shim is one named function: its docstring says which upstream line needs it, and it restores
what the old library did: same parameter groups, schedules and arithmetic. Nothing happens on
import.
"""

from __future__ import annotations

import contextlib
from importlib import import_module

# Which shims a recipe needs, as "module.function" in this package, in the order they run.
COMMON = (
    "torch.six",
    "arrays.numpy_aliases",
    "launcher.dashed_flag",
    "launcher.lone_slurm_process",
    "torch.argparse_namespace",
)
BEIT = (  # whose code BootMAE and ConMIM come from
    *COMMON,
    "launcher.group_of_one",
    "torch.numpy_scalars",
    "torch.tensorboardx",
    "timm.register_model",
    "timm.renamed_optimizers",
    "arrays.interp2d",
)
RECIPES: dict[str, tuple[str, ...]] = {
    "mae": (
        *COMMON,
        "timm.version",
        "timm.add_weight_decay",
        "timm.block",
        "timm.vision_transformer",
        "torchvision.get_image_size",
    ),
    "simmim": (
        *COMMON,
        "launcher.required_flag",
        "torch.yacs_node",
        "apex.amp",
        "timm.pil_interp",
        "timm.t_mul",
        "timm.lr_scale_once",
        "arrays.interp2d",
        "torchvision.picklable_lambda",
    ),
    "bootmae": (*BEIT, "launcher.required_flag"),
    "conmim": (*BEIT, "timm.novograd"),
}

# These change how a recipe is launched, or what its model computes: for those that name them.
BY_NAME = (
    "launcher.always_distributed",
    "launcher.group_of_one",
    "launcher.required_flag",
    "timm.vision_transformer",
)
# In a recipe of that time these do nothing, or what is meant.
GENERIC = tuple(
    dict.fromkeys(name for names in RECIPES.values() for name in names if name not in BY_NAME)
)

_active: set[str] = set()


def activate(*names: str) -> None:
    """Put shims in place, each once per process.

    A shim for a library that is not installed is left out: a recipe that needs it says so itself.

    Args:
        *names: Recipes, or shims as "module.function".

    Raises:
        ValueError: No shim has that name.
    """
    wanted = [n for name in names for n in ((name,) if "." in name else RECIPES.get(name, GENERIC))]
    if unknown := set(wanted).difference(GENERIC, BY_NAME):
        known = ", ".join(sorted({*GENERIC, *BY_NAME}))
        raise ValueError(f"no shim {min(unknown)!r}; known: {known}")
    for name in wanted:
        if name not in _active:
            _active.add(name)
            module, function = name.split(".")
            with contextlib.suppress(ModuleNotFoundError):
                getattr(import_module(f"{__name__}.{module}"), function)()
