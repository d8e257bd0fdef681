"""Save what the glue sees at every step, by hooks of our own: `worker --before` runs this file.

`MTO_CAPTURE` names a folder; STEP.pt holds `tokens` (input of the first block, output of each) and
`mask`, as the recipe hands it over.
"""

import os
from pathlib import Path

import torch

from mto_tools import recipe

_folder = Path(os.environ["MTO_CAPTURE"])
_attach, _add = recipe.attach, recipe.add
_seen = {}


def _attached(model, *lists, **more):
    _attach(model, *lists, **more)
    for which, blocks in enumerate(lists):
        for depth, block in enumerate(blocks):
            block.register_forward_hook(_keep(which, depth))


def _keep(which, depth):
    def hook(block, inputs, output):
        if torch.is_grad_enabled() and block.training:
            if depth == 0:
                _seen[which] = [inputs[0].detach().clone()]
            _seen[which].append(output.detach().clone())

    return hook


def _added(loss, mask, *, step=None, **more):
    if int(os.environ.get("RANK", "0")) == 0 and step <= 2:
        kept = {"tokens": dict(_seen), "mask": mask.clone(), "loss": loss.item()}
        torch.save(kept, _folder / f"{step}.pt")
    return _add(loss, mask, step=step, **more)


recipe.attach, recipe.add = _attached, _added
