"""Shims of BootMAE and ConMIM, whose scripts come from BEiT, and the images laid out for them."""

from __future__ import annotations

import argparse
import importlib
import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mto_tools import compat
from mto_tools.home import find_home
from mto_tools.launch.digits import lay_out
from mto_tools.upstreams.recipe import load_recipe
from mto_tools.upstreams.upstream import load_upstream

HOME = find_home()


def run(name: str) -> bool:
    return compat.shim(name)()


@pytest.fixture
def safe_globals():
    kept = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    yield
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(kept)


def test_learning_rates_of_numpy_are_read(safe_globals) -> None:
    optimizer = torch.optim.AdamW(nn.Linear(1, 1).parameters(), lr=np.float64(0.1))
    now = io.BytesIO()
    torch.save(optimizer.state_dict(), now, _use_new_zipfile_serialization=False)
    # numpy 1 wrote another name: the files of 2022 have it.
    then = io.BytesIO(now.getvalue().replace(b"numpy._core.multi", b"numpy.core.multi"))
    for file in (now, then):
        file.seek(0)
        with pytest.raises(Exception, match="numpy"):
            torch.load(file)
    run("torch_load.numpy_scalars")
    for file in (now, then):
        file.seek(0)
        lr = torch.load(file)["param_groups"][0]["lr"]
        assert lr == 0.1
        assert isinstance(lr, np.float64)


def test_renamed_optimizers_are_the_old_ones(monkeypatch) -> None:
    nadam = importlib.import_module("timm.optim.nadam")
    radam = importlib.import_module("timm.optim.radam")
    for module, name in ((nadam, "Nadam"), (radam, "RAdam")):
        if not hasattr(module, name):
            monkeypatch.setattr(module, name, None, raising=False)
            monkeypatch.delattr(module, name)
    changed = run("timm_optim.renamed")
    assert changed == hasattr(nadam, "NAdamLegacy")
    assert issubclass(nadam.Nadam, torch.optim.Optimizer)
    assert issubclass(radam.RAdam, torch.optim.Optimizer)
    assert not run("timm_optim.renamed")


def test_novograd_imports_and_says_what_to_use() -> None:
    name = "timm.optim.novograd"
    if importlib.util.find_spec(name):
        pytest.skip("timm has it")
    try:
        assert run("timm_optim.novograd")
        novograd = importlib.import_module(name)
        with pytest.raises(RuntimeError, match="nvnovograd"):
            novograd.NovoGrad([nn.Parameter(torch.zeros(1))], lr=0.1)
        assert not run("timm_optim.novograd")
    finally:
        sys.modules.pop(name, None)


def test_summary_writer_takes_logdir(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    if "tensorboardX" in sys.modules or importlib.util.find_spec("tensorboardX"):
        pytest.skip("tensorboardX is there")
    try:
        run("tensorboardx.tensorboardx")
        from tensorboardX import SummaryWriter

        for given in ({"logdir": str(tmp_path)}, {"log_dir": str(tmp_path)}):
            with SummaryWriter(**given) as writer:
                assert writer.log_dir == str(tmp_path)
    finally:
        sys.modules.pop("tensorboardX", None)


VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture
def no_launcher(monkeypatch):
    for name in (*VARIABLES, "SLURM_PROCID", "OMPI_COMM_WORLD_RANK"):
        monkeypatch.delenv(name, raising=False)
    yield monkeypatch
    for name in VARIABLES:
        os.environ.pop(name, None)


def test_process_alone_is_a_group_of_one(no_launcher) -> None:
    assert run("one_process.environment")
    torch.distributed.init_process_group("gloo", init_method="env://")
    try:
        assert torch.distributed.get_world_size() == 1
    finally:
        torch.distributed.destroy_process_group()
    assert not run("one_process.environment")


@pytest.mark.parametrize("name", ["RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK"])
def test_launched_process_is_left_alone(no_launcher, name: str) -> None:
    no_launcher.setenv(name, "3")
    assert not run("one_process.environment")
    assert "MASTER_PORT" not in os.environ


def test_unpatched_bootmae_is_always_distributed(monkeypatch) -> None:
    monkeypatch.setattr(argparse.Namespace, "__setattr__", object.__setattr__)
    assert run("namespace.always_distributed")
    args = argparse.Namespace(distributed=None, rank=0)
    args.distributed, args.rank = False, 2
    assert (args.distributed, args.rank) == (True, 2)


def test_images_as_bootmae_reads_them(tmp_path: Path) -> None:
    lay_out(load_recipe(load_upstream(HOME, "bootmae")).data, tmp_path / "images", 2)
    labels = json.loads((tmp_path / "data/imagenet_class_index.json").read_text())
    label = {folder: int(number) for number, (folder, _) in labels.items()}
    assert len(label) == 1000
    for phase, count in (("train", 16), ("val", 8)):
        names = (tmp_path / f"data/ILSVRC2012_name_{phase}.txt").read_text().split()
        assert len(names) == count
        assert all((tmp_path / "images" / phase / name).is_file() for name in names)
        assert {label[name.split("/")[0]] for name in names} == set(range(8))


def test_images_as_conmim_reads_them(tmp_path: Path) -> None:
    lay_out(load_recipe(load_upstream(HOME, "conmim")).data, tmp_path, 1)
    for phase in ("train", "val"):
        lines = (tmp_path / f"{phase}_map.txt").read_text().splitlines()
        assert len(lines) == 8
        for name, label in map(str.split, lines):
            assert (tmp_path / phase / name).is_file()
            assert name.startswith(f"digit{label}/")
