"""Seed anew at the start of every epoch: then a resumed run and an unbroken one can be equal.

Upstream's checkpoints hold no generator states. Run by `worker --before`.
"""

import random

import numpy as np
import torch
from torch.utils.data import DistributedSampler

_iterate = DistributedSampler.__iter__


def _reseeded(self):
    seed = 1000 + 10 * self.epoch + self.rank
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    return _iterate(self)


DistributedSampler.__iter__ = _reseeded
