"""The printed commands: what upstream computes from their flags, and how they are launched."""

from __future__ import annotations

import shlex

import pytest

from mto_tools.plan.config import Place, before, commands, file_name, hostfile
from mto_tools.plan.planner import Plan, Request, make_plan
from mto_tools.plan.recipes import RECIPES

PLACE = Place(checkout="up", script="main.py", config="c.json")
EVERY = [(recipe.name, model) for recipe in RECIPES.values() for model in recipe.models]
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
    match plan.recipe.name:
        case "mae":  # main_pretrain.py: blr * eff_batch_size / 256
            total = int(given["--batch_size"]) * int(given["--accum_iter"]) * world
            return total, float(given["--blr"]) * total / 256
        case "simmim":  # main_simmim.py: BASE_LR * BATCH_SIZE * world / 512, times accumulation
            steps = int(given["--accumulation-steps"])
            rate = SIMMIM[plan.size.model] * int(given["--batch-size"]) * world / 512.0
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
def test_upstream_computes_the_recipe_s_batch_and_rate(
    name: str, model: str, gpus: int, nodes: int
) -> None:
    plan = make_plan(Request(name, model=model, gpus=gpus, nodes=nodes))
    assert plan.accumulation > 1 or gpus * nodes > 4 or name == "mini"
    for command in commands(plan, PLACE, mto=False).values():
        total, rate = total_and_rate(plan, arguments(command), gpus * nodes)
        assert total == {r.model: r.total for r in plan.recipe.sizes}[model]
        expected = {"mae": 2.4e-3, "conmim": 7.5e-4, "mini": 2e-3}.get(name)
        expected = expected or {"vit_base": 4e-4, "swin_base": 8e-4, "swin_large": 4e-4}.get(model)
        expected = expected or {"bootmae_base": 2.4e-3, "bootmae_large": 1.2e-3}[model]
        assert rate == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", RECIPES)
def test_the_configuration_reaches_the_recipe_and_mto_only_when_asked(name: str) -> None:
    plan = make_plan(Request(name))
    plain = commands(plan, PLACE, mto=False)["torchrun"]
    with_mto = commands(plan, PLACE, mto=True)["torchrun"]
    key = "DEEPSPEED.CONFIG" if name == "simmim" else "--deepspeed_config"
    assert arguments(plain)[key] == arguments(with_mto)[key] == "c.json"
    assert "mto" not in plain.lower()
    given = arguments(with_mto)
    assert given["MTO.ON"] == "True" if name == "simmim" else given["--mto"] == ""
    assert plan.micro == make_plan(Request(name)).micro


def test_one_node() -> None:
    plan = make_plan(Request("mae", gpus=4))
    found = commands(plan, PLACE, mto=False)
    assert found["torchrun"].startswith("torchrun --standalone --nproc_per_node=4 up/main.py ")
    assert found["deepspeed"].startswith("deepspeed --no_local_rank --num_gpus=4 up/main.py ")
    assert '--data_path "$IMAGENET"' in found["torchrun"]
    assert hostfile(plan) == before(plan, PLACE) == ""
    assert file_name(plan) == "mae_vit_base_patch16-4x24gb.json"


def test_several_nodes() -> None:
    plan = make_plan(Request("bootmae", nodes=2))
    found = commands(plan, PLACE, mto=False)
    words = shlex.split(found["torchrun"])
    assert {"--nnodes=2", "--nproc_per_node=8", "--rdzv_endpoint=$FIRST_NODE:29500"} < set(words)
    assert '"--rdzv_endpoint=$FIRST_NODE:29500"' in found["torchrun"]
    assert "--standalone" not in words
    assert {"--num_nodes=2", "--hostfile=hostfile"} < set(shlex.split(found["deepspeed"]))
    assert hostfile(plan) == "node1 slots=8\nnode2 slots=8\n"
    assert before(plan, PLACE) == "ln -s up/data data"
    assert file_name(plan) == "bootmae_base-2x8x24gb.json"


def test_what_a_shell_would_split_is_quoted() -> None:
    plan = make_plan(Request("simmim"))
    place = Place(checkout="my up", script="main.py", config="c d.json", data="/a b/{c}")
    words = shlex.split(commands(plan, place, mto=False)["torchrun"])
    assert "my up/main.py" in words
    assert words[words.index("--data-path") + 1] == "/a b/{c}/train"
    assert words[words.index("DEEPSPEED.CONFIG") + 1] == "c d.json"
    assert words[words.index("--cfg") + 1].startswith("my up/configs/vit_base__800ep/")
