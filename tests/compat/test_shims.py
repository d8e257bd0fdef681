"""Each shim restores what the old library did, and does nothing where the old API is there."""

from __future__ import annotations

import argparse
import importlib
import io
import os
import pickle
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import timm
import torch
from torch import nn

from mto_tools import compat

from ..forkserver import ForkServer

_ABSENT = object()


@pytest.fixture
def keep(monkeypatch):
    """Call with (object, attribute) to have it put back, or taken away again, after the test."""

    def remember(target: object, name: str) -> None:
        value = vars(target).get(name, _ABSENT)
        monkeypatch.setattr(target, name, value, raising=False)
        if value is _ABSENT:
            monkeypatch.delattr(target, name)

    return remember


def run(name: str) -> None:
    module, function = name.split(".")
    getattr(importlib.import_module(f"mto_tools.compat.{module}"), function)()


@pytest.mark.parametrize("name", ["torch.sixty", "dino.v2"])
def test_an_unknown_shim_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"'{name}'.*torch.six"):
        compat.activate("mae", name)


FIFTH = """
import os
from mto_tools import compat
compat.activate(*{names})
from torch._six import inf
assert inf == float("inf")
import timm, numpy as np
np.int, np.float
assert timm.__version__ == {version!r}, timm.__version__
assert "RANK" not in os.environ
compat.activate(*{names})
"""


@pytest.mark.parametrize(
    ("names", "version"),
    [
        (("a_fifth_upstream",), "0.3.2"),
        (("a_fifth_upstream", "timm.vision_transformer"), "0.3.2"),
        (("torch.six", "arrays.numpy_aliases"), timm.__version__),
    ],
)
def test_an_upstream_of_another_name_needs_no_line_of_python(
    names: tuple[str, ...], version: str, tmp_path: Path, mini_server: ForkServer
) -> None:
    script = FIFTH.format(names=names, version=version)
    process = mini_server.start("-c", script, out=tmp_path / "log")
    assert process.wait() == 0, (tmp_path / "log").read_text()


LAMBDA = """
import torchvision.transforms as T
from mto_tools import compat
compat.activate("torchvision.picklable_lambda")
from torch.utils.data import DataLoader
OFFSET = 1
class Data:
    def __init__(self):
        first = T.Lambda(lambda x, times=10: times * x + OFFSET)
        self.transform = T.Compose([first, T.Lambda(abs)])
    def __len__(self):
        return 2
    def __getitem__(self, index):
        return self.transform(-index)
if __name__ == "__main__":
    loader = DataLoader(Data(), num_workers=1, multiprocessing_context="{method}")
    assert [int(x) for x in loader] == [1, 9]
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_lambda_reaches_workers(tmp_path: Path, mini_server: ForkServer, method: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(LAMBDA.format(method=method))
    process = mini_server.start(script, out=tmp_path / "log")
    assert process.wait() == 0, (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("variables", "arguments", "hidden"),
    [
        ({}, [], True),
        ({"SLURM_NTASKS": "1"}, [], True),
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "1"}, [], True),
        ({"SLURM_NTASKS": "4"}, [], False),
        ({"MASTER_ADDR": "127.0.0.1"}, [], False),
        ({"SUBMITIT_EXECUTOR": "slurm"}, [], False),
        ({}, ["--dist_url", "file:///init"], False),
    ],
)
def test_a_lone_process_in_a_slurm_job_is_alone(
    monkeypatch, variables: dict[str, str], arguments: list[str], hidden: bool
) -> None:
    for name in [*os.environ]:
        if name.startswith(("SLURM_", "MASTER_", "RANK", "WORLD_SIZE", "SUBMITIT_")):
            monkeypatch.delenv(name)
    for name, value in ({"SLURM_PROCID": "0"} | variables).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["script", *arguments])
    run("launcher.lone_slurm_process")
    assert ("SLURM_PROCID" in os.environ) != hidden


VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture
def no_launcher(monkeypatch):
    for name in (*VARIABLES, "SLURM_PROCID", "OMPI_COMM_WORLD_RANK"):
        monkeypatch.delenv(name, raising=False)
    yield monkeypatch
    for name in VARIABLES:
        os.environ.pop(name, None)


def test_process_alone_is_a_group_of_one(no_launcher) -> None:
    run("launcher.group_of_one")
    torch.distributed.init_process_group("gloo", init_method="env://")
    try:
        assert torch.distributed.get_world_size() == 1
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("name", ["RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK"])
def test_launched_process_is_left_alone(no_launcher, name: str) -> None:
    no_launcher.setenv(name, "3")
    run("launcher.group_of_one")
    assert "MASTER_PORT" not in os.environ


def test_unpatched_bootmae_is_always_distributed(monkeypatch) -> None:
    monkeypatch.setattr(argparse.Namespace, "__setattr__", object.__setattr__)
    run("launcher.always_distributed")
    args = argparse.Namespace(distributed=None, rank=0)
    args.distributed, args.rank = False, 2
    assert (args.distributed, args.rank) == (True, 2)


def test_numpy_aliases(keep) -> None:
    for name in ("int", "float", "object"):
        keep(np, name)
    run("arrays.numpy_aliases")
    assert np.arange(3, dtype=np.float).dtype == np.float64  # type: ignore[attr-defined]
    assert np.ones(2).astype(np.int).dtype.kind == "i"  # type: ignore[attr-defined]


def test_tensorboardx_takes_logdir(tmp_path) -> None:
    pytest.importorskip("tensorboard")
    if "tensorboardX" in sys.modules or importlib.util.find_spec("tensorboardX"):
        pytest.skip("tensorboardX is there")
    try:
        run("torch.tensorboardx")
        from tensorboardX import SummaryWriter

        with SummaryWriter(logdir=str(tmp_path)) as writer:
            assert writer.log_dir == str(tmp_path)
    finally:
        sys.modules.pop("tensorboardX", None)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--local-rank=3", "--x"], ["--local_rank=3", "--x"]),
        (["--local-rank", "3"], ["--local_rank", "3"]),
        (["--local_rank=3"], ["--local_rank=3"]),
        (["--path", "a--local-rank"], ["--path", "a--local-rank"]),
    ],
)
def test_dashed_local_rank(monkeypatch, given: list[str], expected: list[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["script", *given])
    run("launcher.dashed_flag")
    assert sys.argv == ["script", *expected]


@pytest.mark.parametrize("given", [["--opts", "A", "1"], ["--local_rank=2"], ["--local_rank", "2"]])
def test_required_local_rank_comes_from_torchrun(monkeypatch, given: list[str]) -> None:
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr(sys, "argv", ["script", *given])
    parser = argparse.ArgumentParser()
    parser.add_argument("--local_rank", type=int, required=True)
    parser.add_argument("--opts", nargs="+")
    run("launcher.required_flag")
    assert parser.parse_args().local_rank == 2
    assert sys.argv.count("--local_rank") + sum("rank=" in a for a in sys.argv) == 1


def test_without_a_launcher_the_flag_stays_missing(monkeypatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(sys, "argv", ["script"])
    run("launcher.required_flag")
    assert sys.argv == ["script"]


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
    run("torch.numpy_scalars")
    for file in (now, then):
        file.seek(0)
        lr = torch.load(file)["param_groups"][0]["lr"]
        assert lr == 0.1
        assert isinstance(lr, np.float64)


class TestTorchLoad:
    def test_namespace(self, safe_globals, tmp_path) -> None:
        torch.save({"args": argparse.Namespace(lr=0.1)}, tmp_path / "c.pth")
        run("torch.argparse_namespace")
        assert torch.load(tmp_path / "c.pth")["args"].lr == 0.1

    def test_yacs_node_with_tensors_and_optimizer(self, safe_globals, keep, tmp_path) -> None:
        config = pytest.importorskip("yacs.config")
        node = config.CfgNode({"A": {"B": [1, (2, 3)], "C": {}}, "N": None})
        node.freeze()
        layer = nn.Linear(2, 2)
        optimizer = torch.optim.AdamW(layer.parameters())
        layer(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        state = {"model": layer.state_dict(), "optimizer": optimizer.state_dict(), "config": node}
        torch.save(state, tmp_path / "c.pth")
        keep(torch, "load")
        run("torch.yacs_node")
        for options in ({}, {"weights_only": False}):
            with (tmp_path / "c.pth").open("rb") as file:
                loaded = torch.load(file, map_location="cpu", **options)
            assert loaded["config"] == node
            assert loaded["config"].A.B == [1, (2, 3)]
            assert loaded["config"].is_frozen()
            assert type(loaded["config"].A) is type(node)
            assert torch.equal(loaded["model"]["weight"], layer.weight)
            assert type(loaded["model"]) is not type(node)
            optimizer.load_state_dict(loaded["optimizer"])

    def test_a_file_that_holds_code_is_refused(self, safe_globals, keep, tmp_path) -> None:
        config = pytest.importorskip("yacs.config")
        torch.save({"config": config.CfgNode(), "x": _Harmful(tmp_path / "hit")}, tmp_path / "c")
        keep(torch, "load")
        run("torch.yacs_node")
        with pytest.raises(pickle.UnpicklingError):
            torch.load(tmp_path / "c")
        assert not (tmp_path / "hit").exists()


class _Harmful:
    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_weight_decay_groups_keep_the_old_order(keep) -> None:
    import timm.optim.optim_factory as factory

    keep(factory, "add_weight_decay")
    run("timm.add_weight_decay")
    model = nn.ModuleDict({"a": nn.Linear(2, 3), "n": nn.LayerNorm(3), "b": nn.Linear(3, 1)})
    model["frozen"] = nn.Linear(1, 1).requires_grad_(False)
    free, decayed = factory.add_weight_decay(model, 0.05)
    ids = {id(p): name for name, p in model.named_parameters()}
    names = ["a.bias", "n.weight", "n.bias", "b.bias"]
    assert [ids[id(p)] for p in free["params"]] == names
    assert [ids[id(p)] for p in decayed["params"]] == ["a.weight", "b.weight"]
    assert (free["weight_decay"], decayed["weight_decay"]) == (0.0, 0.05)


def test_block_takes_the_default_scale_only(keep) -> None:
    import timm.models.vision_transformer as vit

    keep(vit, "Block")
    plain = vit.Block
    run("timm.block")
    torch.manual_seed(0)
    mine = vit.Block(16, 2, 4.0, qkv_bias=True, qk_scale=None, norm_layer=nn.LayerNorm)
    torch.manual_seed(0)
    theirs = plain(16, 2, 4.0, qkv_bias=True, norm_layer=nn.LayerNorm)
    x = torch.randn(1, 3, 16)
    assert torch.equal(mine(x), theirs(x))
    # The arithmetic of 0.3.2, by hand.
    head = mine.attn.qkv(mine.norm1(x)).reshape(1, 3, 3, 2, 8).permute(2, 0, 3, 1, 4)
    weights = (head[0] @ head[1].transpose(-2, -1) * 8**-0.5).softmax(-1)
    y = x + mine.attn.proj((weights @ head[2]).transpose(1, 2).reshape(1, 3, 16))
    y = y + mine.mlp.fc2(nn.functional.gelu(mine.mlp.fc1(mine.norm2(y))))
    torch.testing.assert_close(mine(x), y)
    with pytest.raises(ValueError, match="qk_scale"):
        vit.Block(16, 2, qk_scale=0.5)


def test_vision_transformer_leaves_pooling_to_the_recipe(keep) -> None:
    import timm.models.vision_transformer as vit

    keep(vit, "VisionTransformer")
    run("timm.vision_transformer")

    class Pooled(vit.VisionTransformer):
        def forward_features(self, x):
            return torch.full((x.shape[0], self.embed_dim), 2.0)

    model = Pooled(img_size=32, embed_dim=24, depth=1, num_heads=2, num_classes=5)
    expected = model.head(torch.full((3, 24), 2.0))
    assert torch.equal(model(torch.zeros(3, 3, 32, 32)), expected)
    assert 0.005 < model.cls_token.std() < 0.05


def test_image_size_is_width_then_height(keep) -> None:
    import torchvision.transforms.functional as functional
    from PIL import Image

    keep(functional, "_get_image_size")
    run("torchvision.get_image_size")
    assert list(functional._get_image_size(Image.new("RGB", (7, 5)))) == [7, 5]


def test_pil_interp(keep) -> None:
    import timm.data.transforms as transforms
    from PIL import Image

    keep(transforms, "_pil_interp")
    run("timm.pil_interp")
    assert transforms._pil_interp("bicubic") == Image.BICUBIC


class TestSchedules:
    def test_t_mul(self, keep) -> None:
        from timm.scheduler.cosine_lr import CosineLRScheduler

        keep(CosineLRScheduler, "__init__")
        optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
        with pytest.raises(TypeError):
            CosineLRScheduler(optimizer, t_initial=10, t_mul=1.0)
        run("timm.t_mul")
        schedule = CosineLRScheduler(optimizer, t_initial=10, t_mul=1.0, t_in_epochs=False)
        schedule.step_update(5)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5)

    def test_layer_decay_acts_once(self, keep) -> None:
        """SimMIM's way: `lr` holds the scale, from `lr` the schedule starts, `lr_scale` is a note.

        In warm-up and at the end, the old library gave every layer the same rate.
        """
        from timm.scheduler.cosine_lr import CosineLRScheduler
        from timm.scheduler.scheduler import Scheduler

        keep(Scheduler, "update_groups")
        run("timm.lr_scale_once")
        layer = nn.Linear(1, 1)
        groups = [
            {"params": [layer.weight], "lr": 1e-3 * 0.1, "lr_scale": 0.1},
            {"params": [layer.bias], "lr": 1e-3, "lr_scale": 1.0},
        ]
        optimizer = torch.optim.SGD(groups)
        options = {"lr_min": 1e-6, "warmup_t": 10, "warmup_lr_init": 1e-7, "t_in_epochs": False}
        schedule = CosineLRScheduler(optimizer, t_initial=100, cycle_limit=1, **options)

        def rates() -> list[float]:
            return [group["lr"] for group in optimizer.param_groups]

        assert rates() == [1e-7, 1e-7]
        schedule.step_update(5)
        assert rates() == pytest.approx([(1e-7 + 1e-4) / 2, (1e-7 + 1e-3) / 2])
        schedule.step_update(50)
        assert rates() == pytest.approx([(1e-4 + 1e-6) / 2, (1e-3 + 1e-6) / 2])
        schedule.step_update(100)
        assert rates() == [1e-6, 1e-6]


@pytest.mark.parametrize("name", ["Nadam", "RAdam"])
def test_renamed_optimizers_are_the_old_ones(keep, name: str) -> None:
    module = importlib.import_module(f"timm.optim.{name.lower()}")
    keep(module, name)
    run("timm.renamed_optimizers")
    assert issubclass(getattr(module, name), torch.optim.Optimizer)


def test_novograd_imports_and_says_what_to_use() -> None:
    name = "timm.optim.novograd"
    try:
        run("timm.novograd")
        novograd = importlib.import_module(name)
        with pytest.raises(RuntimeError, match="nvnovograd"):
            novograd.NovoGrad([nn.Parameter(torch.zeros(1))], lr=0.1)
    finally:
        sys.modules.pop(name, None)


def test_register_model_drops_what_old_models_do_not_take(keep) -> None:
    import timm
    import timm.models.registry as registry

    keep(registry, "register_model")
    run("timm.register_model")
    module = ModuleType("old_models")
    sys.modules["old_models"] = module
    try:
        space = {"register": registry.register_model, "__name__": "old_models"}
        space["build"] = nn.Identity
        code = "def mto_test_model(pretrained=False, **kwargs):\n    model = build()\n"
        exec(f"{code}    model.got = kwargs\n    return model", space)
        space["register"](space["mto_test_model"])
        assert timm.create_model("mto_test_model", pretrained=False, depth=3).got == {"depth": 3}
    finally:
        del sys.modules["old_models"]


class TestInterp2d:
    @pytest.fixture
    def interp2d(self, keep):
        from scipy import interpolate

        keep(interpolate, "interp2d")
        run("arrays.interp2d")
        return interpolate.interp2d

    def test_a_cubic_is_met_exactly_on_an_uneven_grid(self, interp2d) -> None:
        def surface(x, y):
            return x**3 - 2 * x * y**2 + 3 * y + 1

        x, y = np.array([-3.7, -2.1, -1.0, 0.0, 1.0, 2.1, 3.7]), np.array([-2.0, -1, 0, 1, 2.5])
        z = surface(x[None, :], y[:, None])
        new_x, new_y = np.linspace(-3, 3, 9), np.linspace(-2, 2, 4)
        found = interp2d(x, y, z, kind="cubic")(new_x, new_y)
        np.testing.assert_allclose(found, surface(new_x[None, :], new_y[:, None]), atol=1e-9)

    def test_outside_is_the_edge(self, interp2d) -> None:
        grid = np.arange(5.0)
        found = interp2d(grid, grid, np.add.outer(10 * grid, grid), kind="cubic")([9.0], [1.0, 2.0])
        np.testing.assert_allclose(found[:, 0], [14.0, 24.0])
