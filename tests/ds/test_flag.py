"""`--deepspeed_config`: where it reaches, where it leaves no trace, where it is refused."""

from __future__ import annotations

import argparse
import json
import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mto_tools import ds
from mto_tools.errors import MissingError, RefusedError

from ..forkserver import ForkServer

CONTENT = {
    "train_batch_size": 8,
    "train_micro_batch_size_per_gpu": 4,
    "gradient_accumulation_steps": 2,
    "gradient_clipping": 0.0,
    "zero_optimization": {"stage": 1},
}
STEP = """
from mto_tools import ds
import torch
weight = torch.nn.Parameter(torch.ones(1))
weight.grad = torch.ones(1)
torch.optim.SGD([weight]).step()
"""


def parsed(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    ds.add_arguments(parser)
    return parser.parse_args(argv)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    file = tmp_path / "ds.json"
    file.write_text(json.dumps(CONTENT))
    yield file
    parsed()


def test_without_the_flag_every_call_is_the_identity() -> None:
    assert vars(parsed()) == {}
    things = object(), object(), object()
    options = {"batch_size": 1, "accumulation": 1, "clip_grad": None}
    assert ds.start(*things, **options) == things
    assert ds.start(*things, **options, settings=ds.defaults()) == things
    loader = [1, 2, 3]
    assert ds.whole_steps(loader) is loader
    assert (ds.accumulation(), ds.grad_norm("norm")) == (1, "norm")
    assert ds.accumulate(None) is False  # type: ignore[arg-type]
    ds.gather(things[1])


def test_the_flag_leaves_no_trace_and_brings_accumulation(file: Path) -> None:
    assert vars(parsed("--deepspeed_config", str(file))) == {}
    assert ds.accumulation() == 2
    whole = ds.whole_steps(list(range(7)))
    assert (len(whole), list(whole)) == (6, [0, 1, 2, 3, 4, 5])
    parsed()
    assert ds.accumulation() == 1


@pytest.mark.parametrize("content", [None, "{", "{}"])
def test_a_file_that_is_none_is_an_error_of_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None
) -> None:
    if content:
        (tmp_path / "bad.json").write_text(content)
    with pytest.raises(SystemExit) as caught:
        parsed("--deepspeed_config", str(tmp_path / "bad.json"))
    assert caught.value.code == 2
    assert str(tmp_path / "bad.json") in capsys.readouterr().err
    assert ds.accumulation() == 1


@pytest.mark.parametrize("kind", ["spawn", "submitit"])
def test_it_reaches_processes_that_parse_nothing(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    parsed("--deepspeed_config", "ds.json")
    if kind == "submitit":
        executor = pytest.importorskip("submitit").LocalExecutor(tmp_path / "jobs")
        executor.update_parameters(timeout_min=2)
        assert executor.submit(ds.accumulation).result() == 2
        return
    with multiprocessing.get_context(kind).Pool(1) as pool:
        assert pool.apply(ds.accumulation) == 2


@pytest.mark.parametrize("parses", [True, False])
def test_a_script_that_never_starts_deepspeed_is_stopped_at_its_first_step(
    file: Path, parses: bool, mini_server: ForkServer
) -> None:
    parsed("--deepspeed_config", str(file))
    own = "import argparse, mto_tools.ds as d\np = argparse.ArgumentParser()\n"
    own += "d.add_arguments(p)\np.parse_args()\n"
    script = (own if parses else "") + STEP
    log = file.with_name("log")
    code = mini_server.start("-c", script, out=log).wait()
    assert (code == 0) is parses, "a process that parses decides for itself"
    assert (str(file) in log.read_text()) is not parses
    with pytest.raises(RefusedError, match=str(file)):
        exec(STEP, {})
    parsed()
    exec(STEP, {})


def test_a_process_group_is_asked_for(file: Path) -> None:
    pytest.importorskip("deepspeed", exc_type=ImportError)
    parsed("--deepspeed_config", str(file))
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(MissingError) as caught:
        ds.start(model, optimizer, None, batch_size=4, accumulation=2, clip_grad=None)
    assert "torchrun" in caught.value.hint
