"""The command lines that start upstream scripts, and what is said where there is none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from mto_tools.app import app
from mto_tools.errors import MissingError
from mto_tools.launch.command import Launch
from mto_tools.launch.digits import lay_out
from mto_tools.launch.process import start
from mto_tools.launch.small import RECORD
from mto_tools.launch.smoke import differences
from mto_tools.upstreams.recipe import Recipe, load_recipe
from mto_tools.upstreams.upstream import load_upstream

from ..command import HOME, make_home, mto


def recipe(name: str) -> Recipe:
    return load_recipe(load_upstream(HOME, name))


@pytest.fixture(autouse=True)
def no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MTO_HOME", raising=False)


def launch(name: str, script: Path, **how: object) -> Launch:
    return Launch(name=name, recipe=recipe(name), script=script, **how)  # type: ignore[arg-type]


@pytest.fixture
def script(tmp_path: Path) -> Path:
    file = tmp_path / "main_pretrain.py"
    file.write_text("pass\n")
    return file


def test_on_a_gpu_the_script_itself_is_started(script: Path) -> None:
    one = launch("mae", script, arguments=["--x", "1"]).argv()
    assert one == [sys.executable, str(script), "--x", "1"]
    many = launch("mae", script, arguments=["--x"], processes=8).argv()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    assert many == [*torchrun, "--nproc_per_node=8", str(script), "--x"]
    assert "--nproc_per_node=1" in launch("simmim", script).argv(), "distributed even alone"
    assert "--cpu" in launch("mae", script, cpu=True).argv()
    assert "--cpu" not in launch("mini", script, cpu=True).argv(), "it finds out by itself"


def test_run_passes_torchrun_s_options_on(tmp_path: Path) -> None:
    """A real torchrun, which makes a group of the one machine that is there."""
    mini_is(tmp_path, "import os\nprint(os.environ['WORLD_SIZE'])\n")
    options = ["--nnodes", "1:1", "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]
    done = mto("run", "mini", *options, "--rdzv-id", "7", "--nproc", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "".join(done.stdout.split()) == "22"  # two writers of one pipe


@pytest.mark.parametrize("tasks", [{}, {"SLURM_STEP_NUM_TASKS": "2"}])
def test_a_lone_process_is_no_slurm_task(tmp_path: Path, tasks: dict[str, str]) -> None:
    mini_is(tmp_path, "import os\nprint('SLURM_PROCID' in os.environ)\n")
    done = mto("run", "mini", cwd=tmp_path, SLURM_PROCID="0", SLURM_NTASKS="8", **tasks)
    assert done.stdout.split() == [str(bool(tasks))]


@pytest.mark.parametrize("name", ["MTO_SETTINGS", "MTO_DEEPSPEED_CONFIG"])
def test_run_lets_settings_through_and_a_baseline_gets_none(
    script: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "of another run")
    assert name not in launch("mae", script).environment()
    assert launch("mae", script).environment(inherit=True)[name] == "of another run"


def test_an_option_of_the_script_belongs_behind_the_dashes(tmp_path: Path) -> None:
    mini_is(tmp_path, "import sys; print(sys.argv[1:])\n")
    done = mto("run", "mini", "--mto", cwd=tmp_path)
    assert done.returncode == 2
    assert "mto run NAME -- --mto" in " ".join(done.stderr.replace("│", " ").split())
    done = mto("run", "mini", "--", "--mto", cwd=tmp_path)
    assert done.stdout.strip() == "['--mto']"


def test_a_missing_script_of_a_checkout_names_those_that_are_there(script: Path) -> None:
    missing = script.with_name("main_pretrian.py")
    with pytest.raises(MissingError, match=str(missing)) as caught:
        launch("mae", missing).check()
    assert f"--script one of: {script.name}" in caught.value.hint


def mini_is(home: Path, text: str) -> None:
    """Make a clone of mto in which mini is checked out, as this one script."""
    script = make_home(home, "mini") / "upstream" / "mini" / "main_pretrain.py"
    script.parent.mkdir()
    script.write_text(text)


@pytest.mark.parametrize(
    "command", [["run", "mae", "--", "--x"], ["smoke", "simmim", "--style", "swin"]]
)
def test_without_an_upstream_commands_exit_with_3(tmp_path: Path, command: list[str]) -> None:
    make_home(tmp_path, command[1])
    done = mto(*command, cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert f"make apply-{command[1]}" in done.stderr
    assert str(tmp_path / "upstream" / command[1]) in done.stderr


def test_a_record_tells_which_generators_were_drawn_from(
    tmp_path: Path, forked_python: None
) -> None:
    script = tmp_path / "main.py"
    script.write_text(
        "import random, sys, numpy, torch\n"
        "numpy.random.seed(0)\n"
        "torch.manual_seed(0)\n"
        "exec(sys.argv[1])\n"
        "torch.ones(1, requires_grad=True).sum().backward()\n"
    )
    found = []
    for number, draw in enumerate(["", "", "random.random()", "numpy.random.rand()"]):
        file = tmp_path / f"{number}.record"
        argv = launch("mae", script, arguments=[draw], before=[RECORD], seed=0).argv()
        subprocess.run(argv, env={**os.environ, "MTO_RECORD": str(file)}, check=True)
        found.append(json.loads(file.read_text().splitlines()[0])["rng"])
    assert found[0] == found[1]
    assert len(set(found)) == 3


def test_a_cuda_script_runs_on_the_cpu(script: Path) -> None:
    """Every device call the recipes make, below `torch.distributed.launch`, which adds a flag."""
    script.write_text(_CUDA_ONLY)
    made = launch("simmim", script, arguments=["--opts", "A"], cpu=True, unpatched=True, seed=0)
    argv = [part.replace("distributed.run", "distributed.launch") for part in made.argv()]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "argv": ["--local_rank=0", "--opts", "A"],
        "random": 0.8444218515250481,  # Python's generator with seed 0
        "devices": ["cpu"] * 6,
        "backend": "gloo",
        "sibling": "found",
    }


_CUDA_ONLY = """
import json, random, sys
from pathlib import Path
if __name__ == "__main__":
    value = random.random()
    Path(__file__).with_name("sibling.py").write_text("WORD = 'found'")
    import sibling
    import torch, torch.distributed as dist
    torch.cuda.set_device(0)
    dist.init_process_group(backend="nccl", init_method="env://", world_size=1, rank=0)
    dist.barrier()
    made = [
        torch.ones(1).cuda(non_blocking=True),
        torch.tensor([1.0], dtype=torch.float64, device="cuda"),
        torch.zeros(1, device=torch.device("cuda", 0)),
        torch.ones(1).to("cuda:0", non_blocking=True),
        next(torch.nn.Linear(1, 1).cuda().parameters()),
        next(torch.nn.Linear(1, 1).to(device="cuda").parameters()),
    ]
    model = torch.nn.parallel.DistributedDataParallel(
        torch.nn.Linear(1, 1).cuda(), device_ids=[0], broadcast_buffers=False
    )
    with torch.cuda.amp.autocast():
        loss = model(made[0]).sum()
    scaler = torch.cuda.amp.GradScaler()
    scaler.scale(loss).backward()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.max_memory_allocated() / 1024
    print(json.dumps({
        "argv": sys.argv[1:], "random": value, "devices": [str(t.device) for t in made],
        "backend": dist.get_backend(), "sibling": sibling.WORD,
    }))
"""


def test_options_in_each_recipes_manner() -> None:
    given = {"sparsity": 0.1}
    assert recipe("mae").options.mto(given) == ["--mto", "--mto_sparsity", "0.1"]
    assert recipe("simmim").options.mto(given) == ["MTO.ON", "True", "MTO.SPARSITY", "0.1"]


def test_images_as_bootmae_reads_them(tmp_path: Path) -> None:
    lay_out(recipe("bootmae").data, tmp_path / "images", 2)
    image = Image.open(next((tmp_path / "images" / "train").glob("digit3/*.png")))
    assert (image.size, image.mode) == ((64, 64), "RGB")
    labels = json.loads((tmp_path / "data/imagenet_class_index.json").read_text())
    assert len(labels) == 1000
    assert labels["3"][0] == "digit3"
    for phase, count in (("train", 16), ("val", 8)):
        names = (tmp_path / f"data/ILSVRC2012_name_{phase}.txt").read_text().split()
        assert len(names) == count
        assert all((tmp_path / "images" / phase / name).is_file() for name in names)


def test_images_as_conmim_reads_them(tmp_path: Path) -> None:
    lay_out(recipe("conmim").data, tmp_path, 1)
    for phase in ("train", "val"):
        lines = (tmp_path / f"{phase}_map.txt").read_text().splitlines()
        assert len(lines) == 8
        for name, label in map(str.split, lines):
            assert (tmp_path / phase / name).is_file()
            assert name.startswith(f"digit{label}/")


def test_differences_see_one_bit_and_not_the_output_folder(tmp_path: Path) -> None:
    value = {"model": {"w": torch.tensor([1.0, 2.0])}, "args": {"out": "/a/b", "lr": 0.1}}
    torch.save(value, tmp_path / "a")
    torch.save({**value, "args": {"out": "/c/d", "lr": 0.1}}, tmp_path / "b")
    assert differences(tmp_path / "a", tmp_path / "b") == []
    value["model"]["w"] = torch.nextafter(value["model"]["w"], torch.tensor(9.0))
    torch.save(value, tmp_path / "c")
    assert differences(tmp_path / "a", tmp_path / "c") == ["checkpoint.model.w"]
    torch.save({**value, "extra": 1}, tmp_path / "d")
    assert differences(tmp_path / "a", tmp_path / "d") == ["checkpoint.model.w", "checkpoint.extra"]


def test_a_failure_below_torchrun_shows_the_cause_and_not_its_footer(script: Path) -> None:
    script.write_text("raise RuntimeError('the cause of it')\n")
    made = launch("simmim", script, seed=0)
    log = script.with_name("log")
    run = start(made.argv(), cwd=script.parent, log=log, environment=made.environment())
    assert run.wait() == 1
    assert "ChildFailedError" in log.read_text()
    assert "RuntimeError: the cause of it" in run.cause()
    assert "ChildFailedError" not in run.cause()


def test_smoke_mini(recipes: dict[str, Path], forked_python: None) -> None:
    """`mto smoke mini`: a recipe that counts steps and goes on with what its folder holds."""
    home = recipes["patched"].parents[1]
    words = ["smoke", "mini", "--style", "simmim", "--cpu", "--workers", "1"]
    done = CliRunner(env={"MTO_HOME": str(home)}).invoke(app, words)
    assert done.exit_code == 0, done.exception
    assert done.stderr.count("  ok ") == 7
    assert "NOT" not in done.stderr
