"""The file of results: written, read; a foreign one is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from mto_tools.errors import CorruptError, MissingError
from mto_tools.evaluate.result import Evaluation, path_of

ONE = Evaluation(
    checkpoint="/run/a.pth",
    digest="0" * 64,
    progress=3.0,
    recipe="mini",
    model="Classifier",
    data="/d: 2 classes",
    images_train=4,
    images_val=2,
    scores={"knn": 0.5},
    versions={"torch": "2"},
    made="2026-01-01T00:00:00+00:00",
)


def test_is_whole_beside_its_checkpoint(tmp_path: Path) -> None:
    file = path_of(tmp_path / "0.pth")
    ONE.save(file)
    assert Evaluation.load(file) == ONE
    assert [x.name for x in (tmp_path / "evaluations").iterdir()] == ["0.pth.json"]


def test_what_is_none_is_told(tmp_path: Path) -> None:
    file = tmp_path / "evaluations" / "a.json"
    with pytest.raises(MissingError, match=r"a\.json"):
        Evaluation.load(file)
    file.parent.mkdir()
    for text in ("", "{", "[]", '{"checkpoint": 1}'):
        file.write_text(text)
        with pytest.raises(CorruptError, match=r"a\.json") as caught:
            Evaluation.load(file)
        assert str(file) in caught.value.hint
