"""Save what the glue sees at every step, by hooks of our own: `worker --before` runs this file.

NAME.capture/STEP.pt, beside the record, holds `tokens` (input of the first block, output of each),
`mask`, as the recipe hands it over, and `strays`, modules with hooks that nobody asked to watch:
blocks of a teacher, say.
"""

import gc
import os
from pathlib import Path

import torch

from mto_tools import recipe

_folder = Path(os.environ["MTO_RECORD"]).with_suffix(".capture")
_folder.mkdir(exist_ok=True)
_attach, _add = recipe.attach, recipe.add
_seen = {}
_watched = []
_model = [None]


def _attached(model, *lists, **more):
    _attach(model, *lists, **more)
    _model[:] = [model]
    for which, blocks in enumerate(lists):
        for depth, block in enumerate(blocks):
            _watched.append(block)
            block.register_forward_hook(_keep(which, depth))


def _keep(which, depth):
    def hook(block, inputs, output):
        if torch.is_grad_enabled() and block.training:
            if depth == 0:
                _seen[which] = [inputs[0].detach().clone()]
            _seen[which].append(output.detach().clone())

    return hook


def _strays():
    watched = set(map(id, _watched))
    modules = [m for m in gc.get_objects() if issubclass(type(m), torch.nn.Module)]
    hooked = [m for m in modules if m._forward_hooks or m._forward_pre_hooks]
    return [type(m).__name__ for m in hooked if id(m) not in watched and m is not _model[0]]


def _added(loss, mask, *, step=None, **more):
    if int(os.environ.get("RANK", "0")) == 0 and step <= 2:
        kept = {"tokens": dict(_seen), "mask": mask.clone(), "loss": loss.item()}
        kept["strays"] = _strays()
        torch.save(kept, _folder / f"{step}.pt")
    return _add(loss, mask, step=step, **more)


recipe.attach, recipe.add = _attached, _added
