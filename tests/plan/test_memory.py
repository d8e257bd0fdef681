"""The arithmetic, against autograd's saved bytes and by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mto_core import MaskedTokenOptimization, MTOConfig
from mto_tools.plan import memory
from mto_tools.plan.memory import GIB, estimate

from ..forkserver import ForkServer
from .conftest import FACTS, HOME

MEASURE = Path(__file__).with_name("measure.py")


@pytest.mark.parametrize("model", ["mae", "simmim"])
def test_mini_is_as_counted(model: str, mini_server: ForkServer, tmp_path: Path) -> None:
    log = tmp_path / "log"
    mini = HOME / "upstream" / "embedded" / "mini"
    assert mini_server.start(MEASURE, "mini", mini, model, out=log).wait() == 0, log.read_text()
    found, known = json.loads(log.read_text().splitlines()[-1]), FACTS["mini"].memory[model]
    assert (known.parameters, known.trainable) == (found["parameters"], found["trainable"])
    assert known.activations == pytest.approx(found["saved"], rel=0.15)


def test_mto_saves_what_is_set_aside() -> None:
    known = FACTS["simmim"].memory["vit_base"]

    def saved(batch: int) -> int:
        shape = (batch, known.tokens - 1, known.width)
        tokens = [torch.randn(shape, requires_grad=True) for _ in range(known.depths)]
        own = {t.untyped_storage().data_ptr() for t in tokens}
        mask = torch.rand(shape[:2]).argsort(1) < known.masked
        kept = []
        hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t)
        with hooks:
            MaskedTokenOptimization(MTOConfig.preset("simmim"))(tokens, mask)
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
        return sum(size for pointer, size in storages.items() if pointer not in own)

    each = (saved(4) - saved(2)) // 2 + 4 * known.tokens * known.width  # and one gradient
    assert 0.9 * known.mto <= each <= known.mto


def test_bucket_is_no_larger_than_the_model() -> None:
    sizes = [memory.bucket_size(n) for n in (1, 44_000_000, 111_000_000)]
    assert sizes == [10**7, 5 * 10**7, 5 * 10**7]


def test_conmim_vit_l_under_ddp_by_hand() -> None:
    """291.5 MB were counted in 16 bits; 24 blocks of 16 heads add 4 B x 197^2 each on CUDA."""
    known = FACTS["conmim"].memory["conmim_large_patch16_224"]
    assert known.activations == 291_539_812 + 4 * 24 * 16 * 197**2
    found = estimate(known, stage=0, micro=256, beside=8)
    assert found.sum("state") == (22 + 8) * 333_570_496
    taken = found.sum("state", "images") / GIB
    assert taken == pytest.approx(96.4, abs=0.05)
    assert found.card == round((taken + 1.5) / 0.9 + 0.5)
