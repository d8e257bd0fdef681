"""Masked Token Optimization losses for masked image modeling (arXiv 2404.08330).

trace = TokenTrace(model.blocks, num_prefix_tokens=1)
mto = MaskedTokenOptimization(MTOConfig.preset("simmim"))
with trace:
    loss = model(images, mask)
loss = loss + mto(trace.tokens_by_depth, mask).total
"""

from mto_core.config import MTOConfig
from mto_core.entropy import row_entropy
from mto_core.losses import heterogeneity, ranking_loss, singularity_loss, sparsity_loss
from mto_core.metrics import affinity, rauc
from mto_core.module import MaskedTokenOptimization, MTOTerms
from mto_core.trace import TokenTrace, TraceError

__version__ = "0.1.0"

__all__ = [
    "MTOConfig",
    "MTOTerms",
    "MaskedTokenOptimization",
    "TokenTrace",
    "TraceError",
    "affinity",
    "heterogeneity",
    "ranking_loss",
    "rauc",
    "row_entropy",
    "singularity_loss",
    "sparsity_loss",
]
