"""What a configuration may say, and what it must."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

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


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"gradient_clipping": None}, "gradient_clipping"),
        ({"gradient_clipping": "auto"}, "gradient_clipping"),
        ({"gradient_clipping": -1.0}, "gradient_clipping"),
        ({"train_batch_size": None}, "train_batch_size"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps"),
        ({"train_micro_batch_size_per_gpu": 4.0}, "train_micro_batch_size_per_gpu"),
        ({"optimizer": {"type": "Adam"}}, "optimizer"),
        ({"fp16": {"enabled": True}}, "fp16"),
        ({"gradient_cliping": 1.0}, "gradient_cliping"),
        ({"zero_optimization": None}, "zero_optimization"),
        ({"zero_optimization__stage": 3}, "zero_optimization.stage"),
        ({"zero_optimization__reduce_bucket_size": "auto"}, "reduce_bucket_size"),
        ({"zero_optimization__offload_optimizer": {"device": "cpu"}}, "offload_optimizer"),
        ({"zero_optimization__round_robin_gradients": True}, "round_robin_gradients"),
    ],
)
def test_refused_by_itself(tmp_path: Path, changes: dict[str, Any], key: str) -> None:
    file = write(tmp_path, **changes)
    with pytest.raises(RefusedError) as caught:
        read_config(file)
    assert f"{file}: " in caught.value.message
    assert key in caught.value.message.partition(": ")[2]
    assert "mto plan" in str(caught.value), "a traceback shows what mends it"


@pytest.mark.parametrize(
    ("run", "key"),
    [
        ({"batch_size": 8}, "train_micro_batch_size_per_gpu"),
        ({"accumulation": 1}, "gradient_accumulation_steps"),
        ({"clip_grad": 5.0}, "gradient_clipping"),
        ({"world_size": 4}, "train_batch_size"),
    ],
)
def test_refused_beside_the_recipe(tmp_path: Path, run: dict[str, Any], key: str) -> None:
    config = read_config(write(tmp_path))
    config.agree(**RUN)
    config.agree(**RUN | {"accumulation": None})
    assert config.model_dump(by_alias=True, exclude_unset=True) == GOOD
    with pytest.raises(RefusedError, match=key):
        config.agree(**RUN | run)


@pytest.mark.parametrize(
    ("text", "error"), [(None, MissingError), ("{", CorruptError), ("[1]", CorruptError)]
)
def test_files_that_are_none(tmp_path: Path, text: str | None, error: type[Exception]) -> None:
    file = tmp_path / "bad.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(error, match=str(file)):
        read_config(file)
