"""The printed commands: what upstream computes from their flags, and how they are launched."""

from __future__ import annotations

import shlex
from dataclasses import replace

import pytest
from rich.console import Console

from mto_tools.plan.config import LAUNCHERS, Start, command
from mto_tools.plan.planner import Plan
from mto_tools.plan.report import show

from .conftest import EVERY, NAMES, plan

STARTS = [Start("up", "main.py", "c.json", launcher=launcher) for launcher in LAUNCHERS]
SIMMIM = {"vit_base": 1e-4, "swin_base": 2e-4, "swin_large": 1e-4}  # BASE_LR of the YAML files


def arguments(command: str) -> dict[str, str]:
    """Options behind the script; "" for a flag without value."""
    words = shlex.split(command)
    words = words[words.index("up/main.py") + 1 :]
    found: dict[str, str] = {}
    for here, following in zip(words, [*words[1:], "--"], strict=True):
        if here.startswith("--"):
            found[here] = "" if following.startswith("--") else following
    if "--opts" in found:
        opts = words[words.index("--opts") + 1 :]
        found.update(zip(opts[::2], opts[1::2], strict=True))
    return found


def total_and_rate(plan: Plan, given: dict[str, str], world: int) -> tuple[int, float]:
    """Images per step and peak learning rate, by upstream's own formulas."""
    match plan.name:
        case "mae":  # main_pretrain.py: blr * eff_batch_size / 256
            total = int(given["--batch_size"]) * int(given["--accum_iter"]) * world
            return total, float(given["--blr"]) * total / 256
        case "simmim":  # main_simmim.py: BASE_LR * BATCH_SIZE * world / 512, times accumulation
            steps = int(given["--accumulation-steps"])
            rate = SIMMIM[plan.schedule.model] * int(given["--batch-size"]) * world / 512.0
            return int(given["--batch-size"]) * world * steps, rate * (steps if steps > 1 else 1)
        case "bootmae":  # run_pretraining.py: lr * total_batch_size / 256
            total = int(given["--batch_size"]) * int(given["--update_freq"]) * world
            return total, float(given["--lr"]) * total / 256
        case "conmim":  # lr as it is; micro batches from the configuration
            return int(given["--batch_size"]) * plan.accumulation * world, float(given["--lr"])
        case _:  # mini: --batch_size is the total
            assert int(given["--batch_size"]) % (world * int(given["--accum_steps"])) == 0
            return int(given["--batch_size"]), float(given["--lr"])


@pytest.mark.parametrize(("name", "model"), EVERY)
@pytest.mark.parametrize(("gpus", "nodes"), [(4, 1), (4, 2), (8, 4)])
def test_upstream_computes_the_planned_batch_and_rate(
    name: str, model: str, gpus: int, nodes: int
) -> None:
    found = plan(name, model=model, gpus=gpus, nodes=nodes)
    assert found.accumulation > 1 or gpus * nodes > 4 or name == "mini"
    for start in STARTS:
        given = arguments(command(found, start))
        total, rate = total_and_rate(found, given, gpus * nodes)
        assert total == found.total
        assert rate == pytest.approx(found.learning_rate, rel=1e-12)
        assert given.get("--warmup_epochs", "0") == str(found.facts.warmup_epochs)


@pytest.mark.parametrize("name", NAMES)
def test_the_configuration_reaches_the_recipe_and_mto_only_when_asked(name: str) -> None:
    plain, mto = (command(plan(name), replace(STARTS[0], mto=on)) for on in (False, True))
    key = "DEEPSPEED.CONFIG" if name == "simmim" else "--deepspeed_config"
    assert arguments(plain)[key] == arguments(mto)[key] == "c.json"
    assert "mto" not in plain.lower()
    given = arguments(mto)
    assert given["MTO.ON"] == "True" if name == "simmim" else given["--mto"] == ""


def test_one_node_and_several() -> None:
    torchrun, deepspeed = (command(plan("mae", gpus=4), start) for start in STARTS)
    assert torchrun.startswith("torchrun --standalone --nproc_per_node=4 up/main.py ")
    assert deepspeed.startswith("deepspeed --no_local_rank --num_gpus=4 up/main.py ")
    assert '--data_path "$IMAGENET"' in torchrun
    torchrun, deepspeed = (command(plan("mae", nodes=2), start) for start in STARTS)
    expected = {"--nnodes=2", "--nproc_per_node=8", "--rdzv_endpoint=$FIRST_NODE:29500"}
    assert expected < set(shlex.split(torchrun))
    assert '"--rdzv_endpoint=$FIRST_NODE:29500"' in torchrun
    assert "--standalone" not in torchrun
    assert {"--num_nodes=2", "--hostfile=hostfile"} < set(shlex.split(deepspeed))


def test_words_that_a_shell_would_split_are_quoted(capsys: pytest.CaptureFixture[str]) -> None:
    start = Start("my up", "main.py", "c d.json", data="/a b/{c}")
    words = shlex.split(command(plan("simmim"), start))
    assert "my up/main.py" in words
    assert words[words.index("--data-path") + 1] == "/a b/{c}/train"
    assert words[words.index("DEEPSPEED.CONFIG") + 1] == "c d.json"
    assert words[words.index("--cfg") + 1].startswith("my up/configs/vit_base__800ep/")
    for name, told in {"bootmae": True, "mae": False}.items():
        show(plan(name), start, Console())
        assert ("ln -s 'my up'/data data" in capsys.readouterr().out) is told
