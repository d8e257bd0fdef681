"""The process that the ranks of test_mini.py are forked from, as tests/mini/zygote.py says.

What it imports beforehand costs eight CPU-seconds, and there are up to eight ranks in a run.
"""

import gc
import importlib
import runpy
from pathlib import Path

import deepspeed

# Its shared-memory op would be compiled on first use, for a minute; gloo does as well.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
for name in (
    *("mto_tools.recipe", "mto_tools.ds.engine", "torch.distributed.launcher.api"),
    "deepspeed.runtime.zero.muon.muon_optimizer",  # every ZeRO optimizer imports it when made
    *("timm.models.vision_transformer", "torchvision.datasets", "sklearn.linear_model"),
):
    importlib.import_module(name)
gc.freeze()  # or a collection in a child would look through, and so copy, all of this
runpy.run_path(str(Path(__file__).parents[1] / "mini" / "zygote.py"), run_name="__main__")
