"""What a configuration may say, and what it must."""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path
from typing import Any

import pytest

from mto_tools import ds
from mto_tools.ds.config import read_config
from mto_tools.errors import CorruptError, MissingError, RefusedError

GOOD: dict[str, Any] = {
    "train_batch_size": 64,
    "train_micro_batch_size_per_gpu": 4,
    "gradient_accumulation_steps": 2,
    "gradient_clipping": 0.0,
    "zero_optimization": {"stage": 1, "reduce_bucket_size": 1000},
    "zero_allow_untested_optimizer": True,
}
RUN: dict[str, Any] = {"batch_size": 4, "accumulation": 2, "clip_grad": 0.0, "world_size": 8}


def write(folder: Path, **changes: Any) -> Path:
    content = copy.deepcopy(GOOD)
    for path, value in changes.items():
        *parents, key = path.split("__")
        place = content
        for parent in parents:
            place = place[parent]
        if value is None:
            del place[key]
        else:
            place[key] = value
    file = folder / "ds.json"
    file.write_text(json.dumps(content))
    return file


def test_a_good_one_agrees_with_its_recipe(tmp_path: Path) -> None:
    config = read_config(write(tmp_path))
    config.agree(**RUN)
    config.agree(**RUN | {"accumulation": None})
    assert (config.total, config.stage) == (64, 1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gradient_clipping": None}, "left out, DeepSpeed clips at 1.0"),
        ({"gradient_clipping": "auto"}, "gradient_clipping is 'auto'"),
        ({"gradient_clipping": True}, "must be a number"),
        ({"gradient_clipping": -1.0}, "must be a number"),
        ({"train_batch_size": None}, "train_batch_size must be a positive whole number"),
        ({"train_batch_size": "auto"}, "train_batch_size is 'auto'"),
        ({"gradient_accumulation_steps": 0}, "must be a positive whole number"),
        ({"train_micro_batch_size_per_gpu": 4.0}, "must be a positive whole number"),
        ({"optimizer": {"type": "Adam"}}, "optimizer must go: the recipe's own"),
        ({"scheduler": {"type": "WarmupLR"}}, "scheduler must go"),
        ({"fp16": {"enabled": True}}, "fp16 must go: it would hold the weights"),
        ({"bf16": {"enabled": True}}, "bf16 must go"),
        ({"torch_autocast": {"enabled": True}}, "the recipe's own autocast and loss scale"),
        ({"prescale_gradients": True}, "prescale_gradients must go: it may change"),
        ({"gradient_cliping": 1.0}, "gradient_cliping must go"),
        ({"managed_gradient_accumulation": False}, "managed_gradient_accumulation must go"),
        ({"zero_optimization": None}, "stage must be 1 or 2, not None"),
        ({"zero_optimization__stage": 3}, "not 3: stage 3 shards the weights"),
        ({"zero_optimization__stage": True}, "stage must be 1 or 2"),
        ({"zero_optimization__reduce_bucket_size": "auto"}, "reduce_bucket_size is 'auto'"),
        ({"zero_optimization__offload_optimizer": {"device": "cpu"}}, "offload is not supported"),
        ({"zero_optimization__round_robin_gradients": True}, "round_robin_gradients must go"),
    ],
)
def test_refused_by_itself(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    file = write(tmp_path, **changes)
    with pytest.raises(RefusedError) as caught:
        read_config(file)
    assert words in caught.value.message
    assert str(file) in caught.value.message
    assert "mto plan" in str(caught.value), "a traceback shows what mends it"


@pytest.mark.parametrize(
    ("run", "words"),
    [
        ({"batch_size": 8}, "train_micro_batch_size_per_gpu is 4, but the recipe was started wi"),
        ({"accumulation": 1}, "gradient_accumulation_steps is 2, but"),
        ({"clip_grad": 5.0}, "gradient_clipping is 0, but the recipe was started with 5"),
        ({"world_size": 4}, "train_batch_size is 64, but 4 images x 2 micro batches x 4 proc"),
    ],
)
def test_refused_beside_the_recipe(tmp_path: Path, run: dict[str, Any], words: str) -> None:
    config = read_config(write(tmp_path))
    with pytest.raises(RefusedError, match=words):
        config.agree(**RUN | run)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="must be a file on this machine"):
        read_config(tmp_path / "none.json")
    for text in ("{", "[1]"):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(CorruptError, match="JSON"):
            read_config(tmp_path / "bad.json")


def parsed(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    ds.add_arguments(parser)
    return parser.parse_args(argv)


def test_without_the_flag_every_call_is_the_identity() -> None:
    assert vars(parsed()) == {}
    things = object(), object(), object()
    started = ds.start(*things, batch_size=1, accumulation=1, clip_grad=None)
    assert all(one is other for one, other in zip(started, things, strict=True))
    assert ds.start(
        *things, batch_size=1, accumulation=1, clip_grad=None, settings=ds.defaults()
    ) == tuple(things)
    loader = [1, 2, 3]
    assert ds.whole_steps(loader) is loader
    assert (ds.accumulation(), ds.grad_norm("norm")) == (1, "norm")
    assert ds.accumulate(None) is False  # type: ignore[arg-type]
    ds.gather(things[1])


def test_the_flag_leaves_no_trace_and_brings_accumulation(tmp_path: Path) -> None:
    assert vars(parsed("--deepspeed", "--deepspeed_config", str(write(tmp_path)))) == {}
    assert ds.accumulation() == 2
    whole = ds.whole_steps(list(range(7)))
    assert (len(whole), list(whole)) == (6, [0, 1, 2, 3, 4, 5])
    parsed()
    assert ds.accumulation() == 1


def test_a_process_group_is_asked_for(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed", exc_type=ImportError)
    import torch

    parsed("--deepspeed_config", str(write(tmp_path)))
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(MissingError, match="needs a process group") as caught:
        ds.start(model, optimizer, None, batch_size=4, accumulation=2, clip_grad=None)
    assert "torchrun" in caught.value.hint
    parsed()
