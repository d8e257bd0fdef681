"""`mto evaluate` on mini, with real processes: features, scores, cache, refusals."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner, Result

from mto_tools.app import app
from mto_tools.checkpoint import read_checkpoint
from mto_tools.errors import CorruptError, MissingError, MtoError, RefusedError
from mto_tools.evaluate.extract import Request, check_weights
from mto_tools.evaluate.features import Maker
from mto_tools.evaluate.images import scan
from mto_tools.evaluate.result import Evaluation, path_of
from mto_tools.home import find_home
from mto_tools.upstreams.recipe import load_recipe
from mto_tools.upstreams.upstream import load_upstream

from ..mini.conftest import RECIPE, TINY, mini, tiny_data

__all__ = ["mini", "tiny_data"]  # fixtures


@pytest.fixture
def model(mini: SimpleNamespace) -> nn.Module:
    torch.manual_seed(0)
    given = mini.main_pretrain.get_args_parser().parse_args(["--data_path", "", *TINY])
    mini.main_pretrain.check(given, mini.runtime.Run(torch.device("cpu")))
    made = mini.models.SimMIM(given)
    made.settings = vars(given) | {"style": "simmim"}
    return made.eval()


@pytest.fixture
def checkpoint(model: nn.Module, tmp_path: Path) -> Path:
    file = tmp_path / "run" / "checkpoint-000005.pth"
    file.parent.mkdir()
    torch.save({"model": model.state_dict(), "args": model.settings, "step": 5}, file)
    return file


@pytest.fixture
def data(tiny_data: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_data, tmp_path / "images"))


@pytest.fixture
def evaluate(data: Path, tmp_path: Path, forked_python: None) -> Callable[..., Result]:
    def call(*words: object, name: str = "mini", repo: Path = RECIPE) -> Result:
        fixed = ["evaluate", name, "--data", data, "--repo", repo, "--workers", 0, "--cpu"]
        cache = ["--cache", tmp_path / "cache"]
        return CliRunner().invoke(app, [str(x) for x in (*fixed, *cache, *words)])

    return call


def entries(tmp_path: Path) -> list[Path]:
    cache = tmp_path / "cache"
    return sorted(cache.iterdir()) if cache.is_dir() else []


def test_features_are_the_encoders_and_scores_are_kept(
    evaluate: Callable[..., Result],
    checkpoint: Path,
    model: nn.Module,
    mini: SimpleNamespace,
    data: Path,
    tmp_path: Path,
) -> None:
    first = evaluate(checkpoint)
    assert first.exit_code == 0, first.exception
    assert f"rm -r {tmp_path / 'cache'}" in first.stderr
    (entry,) = entries(tmp_path)
    for split in ("train", "val"):
        files = sorted((data / split).glob("*/*.png"), key=lambda x: (x.parent.name, x.name))
        crops = [mini.data.centre_crop(Image.open(file).convert("RGB"), 8) for file in files]
        with torch.no_grad():
            expected = model.features(mini.data.to_tensor(crops)).numpy()
        np.testing.assert_allclose(np.load(entry / f"{split}.npy"), expected, atol=1e-5)
    found = Evaluation.load(path_of(checkpoint))
    assert (found.progress, found.images_train, found.images_val) == (5, 30, 12)
    assert found.scores["probe"] == 1  # one class is bright on the left, the other on the right
    assert all(0 <= x <= 1 for x in found.scores.values())

    shutil.rmtree(tmp_path / "cache")
    assert evaluate(checkpoint).exit_code == 0
    assert not entries(tmp_path), "the result was read, nothing was made"
    assert Evaluation.load(path_of(checkpoint)) == found

    other = evaluate(checkpoint, "--k", 3, "--no-cache")
    assert other.exit_code == 0, other.exception
    assert "k-NN changed" in other.stderr
    assert not entries(tmp_path)
    assert "rm -r" not in other.stderr


def test_two_processes_share_the_images_and_count_them(
    forked_python: None, checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    recipe = load_recipe(load_upstream(find_home(), "mini"))
    given = {1: 7, 2: 4}  # images at a time; each of two ranks has 15 and 6 images, of 30 and 12
    made = []
    for processes, batch in given.items():
        out, seen = tmp_path / str(processes), list[int]()
        out.mkdir()
        maker = Maker("mini", recipe, RECIPE, (), processes, True, batch, workers=0)
        maker.make(read_checkpoint(checkpoint), scan(data, 1), out, seen.append)
        assert seen == sorted(seen)
        assert seen[-1] == 42
        made.append([np.load(out / f"{split}.npy") for split in ("train", "val")])
    for one, other in zip(*made, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_a_broken_image_ends_it_without_a_cache_entry(
    evaluate: Callable[..., Result], checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    file = data / "train" / "class1" / "3.png"
    file.write_bytes(file.read_bytes()[:40])
    error = evaluate(checkpoint).exception
    assert isinstance(error, MtoError)
    assert str(file) in error.message
    assert error.hint
    assert not entries(tmp_path)
    assert not path_of(checkpoint).exists()


def test_what_cannot_be_evaluated_is_told_before_a_start(
    evaluate: Callable[..., Result], checkpoint: Path, tmp_path: Path
) -> None:
    cut = tmp_path / "cut.pth"
    cut.write_bytes(checkpoint.read_bytes()[:500])
    (tmp_path / "main_finetune.py").write_text("")
    cases = [
        (evaluate(cut), CorruptError, "cut.pth"),
        (evaluate(tmp_path / "no.pth"), MissingError, "no.pth"),
        (evaluate(checkpoint, repo=tmp_path / "none"), MissingError, "main_finetune.py"),
        (evaluate(checkpoint, name="mae", repo=tmp_path), MissingError, "vit_base_patch16"),
        (evaluate(checkpoint, "--k", 31), MissingError, "30 images"),
    ]
    for result, kind, said in cases:
        assert type(result.exception) is kind, result.output
        assert said in result.exception.message
        assert result.exception.hint


def test_results_of_another_recipe_are_not_overwritten(
    evaluate: Callable[..., Result], checkpoint: Path
) -> None:
    file = checkpoint.parent / "evaluations" / f"{checkpoint.name}.json"
    fields = {"checkpoint": "", "digest": "", "progress": None, "model": "", "data": ""}
    counts = {"images_train": 0, "images_val": 0, "scores": {}, "versions": {}, "made": ""}
    Evaluation(**fields, **counts, recipe="mae").save(file)
    before = file.read_bytes()
    assert isinstance(evaluate(checkpoint).exception, RefusedError)
    assert file.read_bytes() == before


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 5), nn.Linear(5, 2)
        self.table = nn.Parameter(torch.randn(9, 2))


def test_weights_that_the_script_left_random_are_an_error(tmp_path: Path) -> None:
    model = Classifier()
    saved = {f"encoder.{name}": x for name, x in model.state_dict().items() if "head" not in name}
    settings = {
        "data": tmp_path,
        "out": tmp_path,
        "counts": tmp_path,
        "batch": 1,
        "workers": 0,
        "head": "head",
    }

    def request(weights: dict[str, torch.Tensor], resized: tuple[str, ...] = ()) -> Request:
        torch.save({"model": weights}, tmp_path / "a.pth")
        file = tmp_path / "a.pth"
        return Request(checkpoint=file, fresh=(), resized=resized, **settings)

    check_weights(model, request(saved))
    smaller = {**saved, "encoder.table": torch.randn(4, 2)}
    check_weights(model, request(smaller, ("table",)))
    for spoiled, resized in (
        ({**saved, "encoder.body.weight": torch.randn(5, 4)}, ()),
        ({**saved, "encoder.body.weight": torch.randn(6, 4)}, ("table",)),  # another model
        (smaller, ()),
        ({**saved, "encoder.table": torch.randn(9, 2)}, ("table",)),  # of that size, but not read
    ):
        with pytest.raises(CorruptError, match=r"a\.pth: 1 parameters"):
            check_weights(model, request(spoiled, resized))


LIMITED = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
from mto_tools.evaluate.rows import create
create(Path(sys.argv[1]), 1000, 100)
"""


def test_room_is_claimed_before_a_feature_is_made(tmp_path: Path) -> None:
    file = tmp_path / "train.npy"
    done = subprocess.run([sys.executable, "-c", LIMITED, file], capture_output=True, text=True)
    assert done.returncode == 1
    assert "OSError" in done.stderr
    assert str(file) in done.stderr
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
