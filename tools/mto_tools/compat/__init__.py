"""Shims that let the recipes of 2021 and 2022 run, unchanged, on today's libraries.

    from mto_tools import compat; compat.activate("mae")

as the first line of an entry script. Each shim is one named function: its docstring says which
upstream line needs it, it does nothing where the old API is there, and it restores what the old
library did: same parameter groups, schedules and arithmetic. Nothing happens on import.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

# Which shims a recipe needs, as "module.function" in this package, in the order they run.
COMMON = (
    "torch_six.torch_six",
    "numpy_aliases.numpy_aliases",
    "tensorboardx.tensorboardx",
    "local_rank.dashed_flag",
    "torch_load.argparse_namespace",
)
RECIPES: dict[str, tuple[str, ...]] = {
    "mae": (
        *COMMON,
        "timm_0_3_2.version",
        "timm_0_3_2.add_weight_decay",
        "timm_0_3_2.block",
        "timm_0_3_2.vision_transformer",
        "torchvision_functional.get_image_size",
    ),
    "simmim": (
        *COMMON,
        "local_rank.required_flag",
        "torch_load.yacs_node",
        "apex.amp",
        "timm_data.pil_interp",
        "timm_scheduler.t_mul",
        "timm_scheduler.lr_scale_once",
        "scipy_interp2d.interp2d",
    ),
    "bootmae": (
        *COMMON,
        "one_process.environment",
        "local_rank.required_flag",
        "torch_load.numpy_scalars",
        "timm_registry.register_model",
        "timm_optim.renamed",
        "scipy_interp2d.interp2d",
    ),
    "conmim": (
        *COMMON,
        "one_process.environment",
        "torch_load.numpy_scalars",
        "timm_registry.register_model",
        "timm_optim.renamed",
        "timm_optim.novograd",
        "scipy_interp2d.interp2d",
    ),
}

_active: dict[str, list[str]] = {}


def activate(recipe: str) -> list[str]:
    """Put the shims of `recipe` in place, once per process.

    Returns:
        The shims that changed something; those whose old API is still there are left out.

    Raises:
        ValueError: No recipe has that name.
    """
    if recipe not in RECIPES:
        raise ValueError(f"no shims for recipe {recipe!r}; known: {', '.join(RECIPES)}")
    if recipe not in _active:
        _active[recipe] = [name for name in RECIPES[recipe] if shim(name)()]
    return _active[recipe]


def shim(name: str) -> Callable[[], bool]:
    """Return the shim called `module.function`; it returns whether it changed anything."""
    module, function = name.split(".")
    found: Callable[[], bool] = getattr(import_module(f"{__name__}.{module}"), function)
    return found
