import argparse
import pathlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from mto_tools.checkpoint import digest, read_checkpoint
from mto_tools.errors import CorruptError, MissingError

WEIGHTS = {"mask_token": torch.zeros(1, 1, 4)}


def saved(folder: Path, **content: object) -> Path:
    torch.save(content, folder / "checkpoint.pth")
    return folder / "checkpoint.pth"


def test_a_namespace_becomes_a_dict(tmp_path: Path) -> None:
    args = argparse.Namespace(model="mae", out=pathlib.Path("/out"), rate=np.float64(0.5))
    found = read_checkpoint(saved(tmp_path, model=WEIGHTS, args=args, epoch=3))
    assert found.settings == {"model": "mae", "out": "/out", "rate": 0.5}
    assert found.progress == 3
    assert torch.equal(found.weights["mask_token"], WEIGHTS["mask_token"])


def test_a_yacs_node_becomes_a_dict(tmp_path: Path) -> None:
    yacs = pytest.importorskip("yacs.config", reason="needs yacs")
    node = yacs.CfgNode({"MODEL": {"TYPE": "vit", "DEPTHS": [2, 2]}})
    node.freeze()
    found = read_checkpoint(saved(tmp_path, model=WEIGHTS, config=node, epoch=0))
    assert found.settings == {"MODEL": {"TYPE": "vit", "DEPTHS": [2, 2]}}


def test_weights_alone(tmp_path: Path) -> None:
    found = read_checkpoint(saved(tmp_path, **WEIGHTS))
    assert list(found.weights) == ["mask_token"]
    assert (found.settings, found.progress) == ({}, None)


class Runs:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path(self.path),)


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    file, ran = saved(tmp_path, model=WEIGHTS, x=Runs(str(tmp_path / "ran"))), tmp_path / "ran"
    with pytest.raises(CorruptError, match=str(file)):
        read_checkpoint(file)
    assert not ran.exists()
    pickle.loads(pickle.dumps(Runs(str(ran))))  # an unsafe reader would have run it
    assert ran.exists()


@pytest.mark.parametrize("keep", [0, 10, 0.5, -1])
def test_a_cut_file(tmp_path: Path, keep: float) -> None:
    file = saved(tmp_path, model=WEIGHTS)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * keep) if 0 < keep < 1 else int(keep)])
    with pytest.raises(CorruptError, match=str(file)):
        read_checkpoint(file)


def test_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(MissingError):
        read_checkpoint(tmp_path / "none.pth")
    for content in ({"epoch": 3}, {"model": {}}):
        with pytest.raises(CorruptError, match="no weights"):
            read_checkpoint(saved(tmp_path, **content))
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CorruptError, match="list"):
        read_checkpoint(tmp_path / "list.pth")


def test_digest(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert digest(tmp_path / "a").startswith("ba7816bf 8f01cfea".replace(" ", ""))
