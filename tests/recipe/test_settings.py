"""Settings: refused where they have no effect, inherited by processes that parse nothing."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pytest
import torch

from mto_tools import recipe
from mto_tools.errors import RefusedError
from mto_tools.recipe.settings import VARIABLE, resolve_settings

from ..forkserver import ForkServer
from .conftest import Tiny, Train, batch, flags, lines

CfgNode = pytest.importorskip("yacs.config").CfgNode


@pytest.fixture(params=["own", "parents"])
def parser(request: pytest.FixtureRequest) -> argparse.ArgumentParser:
    """A parser with the options, its own or, as in MAE's launcher, those of another."""
    own = argparse.ArgumentParser(add_help=False)
    recipe.add_arguments(own, preset="mae")
    return own if request.param == "own" else argparse.ArgumentParser(parents=[own])


@pytest.mark.parametrize("option", ["--mto_singularity=1", "--mto_log_every=5", "--mto_preset=mae"])
def test_options_without_the_switch_are_refused(
    option: str, parser: argparse.ArgumentParser, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        parser.parse_args([option])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert option.split("=")[0] in error
    assert "without --mto " in error


def test_options_without_the_switch_are_refused_in_a_yacs_node() -> None:
    with pytest.raises(RefusedError, match="sparsity.*MTO.ON True"):
        recipe.attach(Tiny(), Tiny().blocks, settings={"ON": False, "SPARSITY": 0.1})


def node(tmp_path: Path, text: str, *options: str) -> CfgNode:
    """A configuration with the node MTO, a YAML file and command-line options laid over it."""
    config = CfgNode({"TRAIN": CfgNode({"EPOCHS": 1})})
    recipe.add_node(config, "simmim")
    (tmp_path / "config.yaml").write_text(text)
    config = config.clone()
    config.merge_from_file(str(tmp_path / "config.yaml"))
    config.merge_from_list(list(options))
    config.freeze()
    return config


def test_yaml_s_on_is_a_switch_and_a_dumped_configuration_reads_back(tmp_path: Path) -> None:
    config = node(tmp_path, "MTO: {ON: True, SPARSITY: 0.5}\nTRAIN: {EPOCHS: 3}\n")
    assert (config.MTO.ON, config.MTO.SPARSITY, config.TRAIN.EPOCHS) == (True, 0.5, 3)
    again = node(tmp_path, config.dump())
    assert again == config
    assert type(again.MTO) is type(again) is CfgNode  # checkpoints pickle no class of ours


@pytest.mark.parametrize("text", ["MTO: True\n", "MTO: 1\n", "MTO: [ON]\n"])
def test_a_node_that_is_none_is_an_error_of_yacs(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match="MTO"):
        node(tmp_path, text)


@pytest.mark.parametrize(("given", "steps"), [("2", (2,)), ("(1,2)", (1, 2)), ("[3, 4]", (3, 4))])
def test_affinity_steps_of_a_yacs_node(tmp_path: Path, given: str, steps: tuple[int, ...]) -> None:
    config = node(tmp_path, "{}", "MTO.ON", "True", "MTO.AFFINITY_STEPS", given)
    assert resolve_settings(None, config.MTO).affinity_steps == steps


def step_once(model: Tiny) -> None:
    """One optimizer step of a script that has no MTO in it."""
    x, mask = batch()
    model(x, mask).backward()
    torch.optim.AdamW(model.parameters()).step()


def test_asked_and_not_attached_stops_at_the_first_step() -> None:
    model = Tiny()
    flags("--mto")
    with pytest.raises(RefusedError, match="mto.attach"):
        step_once(model)
    recipe.attach(model, model.blocks, num_prefix_tokens=1)
    step_once(model)


def test_parsing_again_decides_anew(parser: argparse.ArgumentParser) -> None:
    """In a notebook, whose first run had MTO."""
    parser.parse_args(["--mto", "--mto_sparsity", "0.3"])
    assert resolve_settings(None, None).sparsity == 0.3
    assert VARIABLE in os.environ
    parser.parse_args([])
    assert VARIABLE not in os.environ
    assert not resolve_settings(None, None).on
    step_once(Tiny())


def test_a_weight_beside_a_preset_s_calibration(
    parser: argparse.ArgumentParser, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    given = ["--mto", "--mto_preset", "bootmae", "--mto_sparsity", "0.3"]
    with pytest.raises(SystemExit):
        parser.parse_args(given)
    assert "calibrate=0" in capsys.readouterr().err
    parser.parse_args([*given, "--mto_calibrate", "0"])
    settings = [resolve_settings(None, None)]
    words = ("MTO.ON", "True", "MTO.PRESET", "bootmae", "MTO.SPARSITY", "0.3", "MTO.CALIBRATE", "0")
    settings.append(resolve_settings(None, node(tmp_path, "TRAIN: {EPOCHS: 3}\n", *words).MTO))
    for each in settings:
        assert (each.config().sparsity, each.config().calibrate) == (0.3, None)


def test_a_run_says_what_is_on(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    flags("--mto", "--mto_ranking", "0.25", "--mto_warmup_steps", "7")
    recipe.attach(Tiny(), Tiny().blocks, output_dir=tmp_path)
    said = capsys.readouterr().out
    assert all(part in said for part in ("mae", "sparsity 0.1", "ranking 0.25", "7", "mto.jsonl"))


ASKED = ("--steps", "4", "--mto", "--mto_log_every", "1", "--mto_sparsity", "0.5")
LAUNCH = """
import multiprocessing, sys
sys.path.insert(0, {recipe!r})
from main_pretrain import get_args_parser, main
parser = get_args_parser()  # the worker makes it anew, and parses nothing
if __name__ == "__main__":
    args = parser.parse_args()
    assert not [name for name in vars(args) if "mto" in name]
    worker = multiprocessing.get_context({method!r}).Process(target=main, args=(args,))
    worker.start()
    worker.join()
    sys.exit(worker.exitcode)
"""


@pytest.fixture(scope="module")
def direct(tmp_path_factory: pytest.TempPathFactory, train: Train) -> Path:
    return train(tmp_path_factory.mktemp("direct"), *ASKED)


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_worker_that_parses_nothing_trains_as_its_parent_was_asked(
    tmp_path: Path,
    recipes: dict[str, Path],
    small: list[str],
    direct: Path,
    mini_server: ForkServer,
    method: str,
) -> None:
    script, log = tmp_path / "launch.py", tmp_path / "log"
    script.write_text(LAUNCH.format(recipe=str(recipes["patched"]), method=method))
    process = mini_server.start(script, *small, *ASKED, out=log, cwd=tmp_path)
    assert process.wait() == 0, log.read_text()[-2000:]
    assert "sparsity 0.5" in log.read_text()
    assert lines(tmp_path / "out", "step_ms") == lines(direct, "step_ms")
