import importlib.util
import math
from pathlib import Path

import pytest
import torch

from mto_core import MaskedTokenOptimization, MTOConfig

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("name", ["hf_vitmae", "timm_vit"])
def test_an_example_trains_with_five_lines(name):
    if name == "hf_vitmae":
        pytest.importorskip("transformers", reason="transformers is not installed")
    source = EXAMPLES / f"{name}.py"
    assert sum(line.endswith("# MTO") for line in source.read_text().splitlines()) == 5
    spec = importlib.util.spec_from_file_location(name, source)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    log = module.main(steps=8)
    assert log[0]["mto/total"] == 0.0  # warm-up
    assert log[-1]["mto/total"] > 0
    assert log[-1]["loss"] < log[0]["loss"]
    assert all(math.isfinite(value) for entry in log for value in entry.values())
    first = [value for key, value in log[0].items() if key.startswith("mto/heterogeneity/")]
    assert len(first) >= 4
    assert all(0 < h <= math.log(16) for h in first)


@pytest.mark.parametrize("logged", [True, False])
def test_the_documented_tensorboard_lines_write_all_scalars(logged, tmp_path):
    board = pytest.importorskip("torch.utils.tensorboard", reason="tensorboard is not installed")
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    text = (EXAMPLES.parent / "docs" / "method.md").read_text()
    lines = text.split("TensorBoard:\n\n```python\n")[1].split("```")[0]
    tokens = [torch.randn(2, 16, 4, requires_grad=True) for _ in range(3)]
    mask = torch.arange(16).lt(9).repeat(2, 1)
    mto = MaskedTokenOptimization(MTOConfig.preset("simmim"))
    terms = mto(tokens, mask, diagnostics=logged)
    with board.SummaryWriter(str(tmp_path)) as writer:
        exec(lines, {"terms": terms, "writer": writer, "step": 7})
    found = events.EventAccumulator(str(tmp_path)).Reload()
    read = {name: found.Scalars(name)[-1] for name in found.Tags()["scalars"]}
    assert {name: event.value for name, event in read.items()} == pytest.approx(terms.scalars())
    assert {event.step for event in read.values()} == {7}
    assert ("mto/heterogeneity/02" in read) == logged
