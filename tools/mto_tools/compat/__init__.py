"""Shims that let the recipes of 2021 and 2022 run, unchanged, on today's libraries.

    from mto_tools import compat; compat.activate("mae")

as the first line of an entry script, notebook or script of one's own. A recipe of another name gets
`GENERIC`, all shims but those that also change how it is launched or what its model computes; name
these, or only those it needs:

    compat.activate("toymim", "timm_0_3_2.vision_transformer")
    compat.activate("torch_six.torch_six", "numpy_aliases.numpy_aliases")

Each shim is one named function: its docstring says which upstream line needs it, it does nothing
where the old API is there, and it restores what the old library did: same parameter groups,
schedules and arithmetic. Nothing happens on import.
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
    "one_process.slurm",
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
        "torchvision_transforms.picklable_lambda",
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

# What any recipe of that time may get: in other recipes these do nothing, or what is meant.
GENERIC = (
    *COMMON,
    "torch_load.yacs_node",
    "torch_load.numpy_scalars",
    "apex.amp",
    "timm_0_3_2.version",
    "timm_0_3_2.add_weight_decay",
    "timm_0_3_2.block",
    "timm_data.pil_interp",
    "timm_optim.renamed",
    "timm_optim.novograd",
    "timm_registry.register_model",
    "timm_scheduler.t_mul",
    "timm_scheduler.lr_scale_once",
    "scipy_interp2d.interp2d",
    "torchvision_functional.get_image_size",
    "torchvision_transforms.picklable_lambda",
)

_active: dict[str, bool] = {}  # by shim: whether it changed something


def activate(*names: str) -> list[str]:
    """Put shims in place, each once per process.

    Args:
        *names: Recipes, or shims as "module.function".

    Returns:
        The shims that changed something; those whose old API is still there are left out.

    Raises:
        ValueError: No shim has that name.
    """
    wanted: dict[str, None] = {}
    for name in names:
        wanted |= dict.fromkeys((name,) if "." in name else RECIPES.get(name, GENERIC))
    shims = {name: shim(name) for name in wanted}
    for name, put_in_place in shims.items():
        if name not in _active:
            _active[name] = put_in_place()
    return [name for name in wanted if _active[name]]


def shim(name: str) -> Callable[[], bool]:
    """Return the shim called `module.function`; it returns whether it changed anything.

    Raises:
        ValueError: No shim has that name.
    """
    known = {*GENERIC, *(name for names in RECIPES.values() for name in names)}
    if name not in known:
        raise ValueError(f"no shim {name!r}; known: {', '.join(sorted(known))}")
    module, function = name.split(".")
    found: Callable[[], bool] = getattr(import_module(f"{__name__}.{module}"), function)
    return found
