"""Small checkpoints of mini, and the prober that looks at them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mto_tools.home import find_home
from mto_tools.inspect.images import choose, find_images
from mto_tools.inspect.run import Prober
from mto_tools.upstreams.recipe import load_recipe
from mto_tools.upstreams.upstream import load_upstream

from ..mini.conftest import TINY, mini, tiny_data

__all__ = ["mini", "tiny_data"]

IMAGES, SEED = 10, 3


def settings(mini: SimpleNamespace, *flags: str) -> Any:
    """Arguments of mini for a tiny model, complete."""
    args = mini.main_pretrain.get_args_parser().parse_args(["--data_path", ".", *TINY, *flags])
    mini.main_pretrain.check(args, mini.runtime.Run(torch.device("cpu")))
    return args


def build(mini: SimpleNamespace, args: Any, seed: int = 0) -> torch.nn.Module:
    """A model with random weights, also where mini starts from zero."""
    torch.manual_seed(seed)
    model = {"mae": mini.models.MAE, "simmim": mini.models.SimMIM}[args.style](args)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model


@pytest.fixture
def save(mini: SimpleNamespace, tmp_path: Path) -> Callable[..., Path]:
    """Write a checkpoint of a tiny model; `without` leaves its settings out."""

    def write(name: str, *flags: str, seed: int = 0, without: bool = False) -> Path:
        args = settings(mini, *flags)
        content = {"model": build(mini, args, seed).state_dict(), "step": 7}
        torch.save(content if without else {**content, "args": vars(args)}, tmp_path / name)
        return tmp_path / name

    return write


@pytest.fixture
def prober(recipes: dict[str, Path], tiny_data: Path, forked_python: None) -> Prober:
    recipe = load_recipe(load_upstream(find_home(), "mini"))
    assert recipe.inspect
    files = choose(find_images(tiny_data), IMAGES, SEED)
    return Prober("mini", recipe, recipe.inspect, recipes["patched"], files, SEED)
