"""Set before torch is imported: tests run two at a time, each on one core."""

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from .command import make_home, mto
from .forkserver import ForkServer

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if not Path("/dev/nvidiactl").exists():  # read once, where triton is imported
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` run where there is one."""
    for item in items:
        if item.get_closest_marker("gpu"):
            import torch

            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="no GPU"))


@pytest.fixture(scope="session")
def fork_server() -> Iterator[Callable[..., ForkServer]]:
    """Give the server that has these modules imported, started at its first use."""
    with ExitStack() as stack:
        servers: dict[tuple[str, ...], ForkServer] = {}

        def get(*modules: str, **env: str) -> ForkServer:
            if modules not in servers:
                servers[modules] = stack.enter_context(ForkServer(*modules, env=env))
            return servers[modules]

        yield get


@pytest.fixture(scope="session")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """mini: the plain recipe, and the one that `mto apply mini` makes in a clone of its own."""
    home = make_home(tmp_path_factory.mktemp("home"), "mini")
    done = mto("apply", "mini", MTO_HOME=str(home))
    assert done.returncode == 0, done.stderr
    return {"plain": home / "upstream/embedded/mini", "patched": home / "upstream/mini"}


@pytest.fixture(scope="session")
def mini_server(fork_server: Callable[..., ForkServer]) -> ForkServer:
    """The server for mini: what the plain recipe imports, nothing of ours."""
    return fork_server(
        *("torch.distributed", "timm.models.vision_transformer", "torchvision.datasets"),
        *("sklearn.datasets", "sklearn.linear_model"),
    )


@pytest.fixture
def forked_python(mini_server: ForkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts that mto starts come from the server; `-I` starts the guard, which stays real."""
    python, client = tmp_path / "python", " ".join(mini_server.command)
    python.write_text(
        f'#!/bin/sh\n[ "$1" = -I ] && exec {sys.executable} "$@"\nexec {client} "$@"\n'
    )
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))


@pytest.fixture(scope="session")
def rank_server(fork_server: Callable[..., ForkServer]) -> ForkServer:
    """The server for ranks: what torchrun, mini and, where it is installed, DeepSpeed import."""
    modules = [
        *("torch.distributed", "torch.distributed.launcher.api", "mto_tools.recipe"),
        *("timm.models.vision_transformer", "torchvision.datasets"),
    ]
    if importlib.util.find_spec("deepspeed"):  # every ZeRO optimizer imports muon when made
        modules += ["mto_tools.ds.engine", "deepspeed.runtime.zero.muon.muon_optimizer"]
    return fork_server(*modules, DS_ACCELERATOR="cpu", CUDA_VISIBLE_DEVICES="")


@pytest.fixture(scope="session")
def run_ranks(rank_server: ForkServer) -> Callable[[Path, list[list[object]]], None]:
    """Run a script per rank, with a log in the folder; all are gone afterwards."""

    def run(folder: Path, commands: list[list[object]]) -> None:
        logs = [folder / f"{rank}.log" for rank in range(len(commands))]
        ranks = [
            rank_server.start(*map(str, command), out=log)
            for command, log in zip(commands, logs, strict=True)
        ]
        try:
            codes = [rank.wait() for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()
        assert not any(codes), "\n".join(log.read_text()[-3000:] for log in logs)

    return run
