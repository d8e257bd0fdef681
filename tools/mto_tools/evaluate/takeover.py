"""Stop a fine-tuning script before its first step, and use its model: `worker --before` runs this.

The model is complete at its first call in training mode: built, loaded, on its device. The last
data set of which a DataLoader was made is val; its transform is used. mto_tools.evaluate.extract
has the rest.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from mto_tools.errors import MtoError, from_os_error
from mto_tools.evaluate.extract import FAILED, REQUEST, Request, extract
from mto_tools.evaluate.images import BrokenImageError

_request = Request.model_validate_json(os.environ[REQUEST])
_transforms: list[Any] = []
_init = DataLoader.__init__


def _small_loader(self: Any, dataset: Any, *args: Any, **more: Any) -> None:
    """The staged images are few: they are loaded in this process."""
    _transforms.append(getattr(dataset, "transform", None))
    alone = {"num_workers": 0, "persistent_workers": False, "prefetch_factor": None}
    _init(self, dataset, *args, **{**more, **{key: alone[key] for key in alone if key in more}})


def _before_call(module: nn.Module, _: Any) -> None:
    model = module.module if isinstance(module, DistributedDataParallel) else module
    if not model.training or _request.head.split(".")[0] not in dict(model.named_children()):
        return
    hook.remove()
    DataLoader.__init__ = _init  # type: ignore[method-assign]
    transform = _transforms[-1] if _transforms else None
    try:
        if transform is None:
            raise MtoError(f"{sys.argv[0]} made no data set of val with a transform")
        extract(model, transform, _request)
    except BaseException as error:
        traceback.print_exc()
        if isinstance(error, BrokenImageError):
            error = MtoError(str(error), hint="mend or remove the image")
        elif isinstance(error, OSError):
            error = from_os_error(error)
        if isinstance(error, MtoError):
            told = {"message": error.message, "hint": error.hint, "kind": type(error).__name__}
            (_request.out / FAILED).write_text(json.dumps(told))
        sys.stdout.flush()
        os._exit(1)  # the script may catch what is raised here
    if dist.is_initialized():
        dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)


DataLoader.__init__ = _small_loader  # type: ignore[method-assign]
hook = register_module_forward_pre_hook(_before_call)
