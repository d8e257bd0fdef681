"""Set before torch is imported: tests run two at a time, each on one core."""

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from .forkserver import ForkServer

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

HOME = Path(__file__).parents[1]


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
    """mini: the plain recipe, and the one that `mto apply mini` makes in a house of its own."""
    from mto_tools.upstreams.upstream import load_upstream

    house = tmp_path_factory.mktemp("house")
    (house / "mto_core").mkdir()
    shutil.copytree(HOME / "patches" / "mini", house / "patches" / "mini")
    upstream = load_upstream(HOME, "mini")
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(HOME / upstream.path, house / upstream.path, ignore=ignore)
    subprocess.run(
        [sys.executable, "-m", "mto_tools.cli", "apply", "mini"],
        env=os.environ | {"MTO_HOME": str(house)},
        check=True,
        timeout=60,
    )
    return {"plain": house / upstream.path, "patched": house / "upstream" / "mini"}


@pytest.fixture(scope="session")
def mini_server(fork_server: Callable[..., ForkServer]) -> ForkServer:
    """The server for mini: what the plain recipe imports, nothing of ours."""
    return fork_server(
        *("torch.distributed", "timm.models.vision_transformer", "torchvision.datasets"),
        *("sklearn.datasets", "sklearn.linear_model"),
    )


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
