import importlib.util
import math
from pathlib import Path

import pytest

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
