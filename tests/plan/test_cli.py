"""`mto plan`: stdout, stderr, files, exit codes, and no torch for help."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mto_tools import cli

Run = Callable[..., tuple[int, str, str]]
NAME = "mae_vit_base_patch16-8x24gb.json"


@pytest.fixture
def mto(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line in a folder of its own; returns exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mto", *words])
        code: int | str | None = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code
        out, err = capsys.readouterr()
        return int(code or 0), out, err

    return run


def test_the_command_on_stdout_the_rest_on_stderr(mto: Run, tmp_path: Path) -> None:
    code, out, err = mto("plan", "mae", "--mto", "--rate", "200", "--bandwidth", "10")
    assert code == 0
    assert out.startswith("torchrun --standalone --nproc_per_node=8 ")
    assert out.count("\n") == 1
    assert f"--deepspeed_config {NAME} --mto" in out
    assert json.loads((tmp_path / NAME).read_text())["train_batch_size"] == 4096
    assert "activations" in err
    assert "█" in err
    assert "1,281,167 images / (200 images/s x 8 GPUs) = 13 min 21 s" in err
    assert "estimate" in err
    assert "deepspeed --no_local_rank --num_gpus=8" in err


def test_no_time_without_a_rate(mto: Run) -> None:
    _, _, err = mto("plan", "mae")
    assert "with --rate" in err
    assert "images/s" not in err
    _, out, _ = mto("plan", "mae", "--json")
    assert json.loads(out)["epoch"]["total"] is None


def test_json(mto: Run, tmp_path: Path) -> None:
    out_file = tmp_path / "sub" / "c.json"
    code, out, err = mto(
        *("plan", "conmim", "--nodes", "2", "--json", "--launcher", "deepspeed"),
        *("--out", str(out_file), "--model", "conmim_large_patch16_224"),
    )
    assert (code, err) == (0, "")
    plan = json.loads(out)
    assert plan["config"] == json.loads(out_file.read_text())
    assert plan["micro_batch"] * plan["accumulation"] * 16 == plan["total_batch"] == 2048
    assert sum(plan["memory"]["parts"].values()) == plan["memory"]["total"] <= plan["gpu_memory"]
    sent = plan["sent_per_step"]
    assert sent["total"] == sent["reductions"] * sent["per_reduction"] + sent["gather"]
    assert str(out_file) in plan["commands"]["deepspeed"]


def test_another_file_is_not_overwritten(mto: Run, tmp_path: Path) -> None:
    assert mto("plan", "mae")[0] == 0
    assert mto("plan", "mae")[0] == 0  # the same
    code, out, err = mto("plan", "mae", "--batch", "2048")
    assert (code, out) == (4, "")
    assert f"{NAME} exists" in err
    assert "--force" in err
    assert json.loads((tmp_path / NAME).read_text())["train_batch_size"] == 4096
    assert mto("plan", "mae", "--batch", "2048", "--force")[0] == 0
    assert json.loads((tmp_path / NAME).read_text())["train_batch_size"] == 2048


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["plan", "mae", "--gpus", "6"], 4, "use 4 or 8 GPUs in all"),
        (["plan", "mae", "--model", "mae_vit_huge_patch14", "--gpu-mem", "6"], 4, "does not fit"),
        (["plan", "beit"], 3, "no recipe 'beit'"),
        (["plan", "mae", "--precision", "float32"], 3, "no option for float32"),
        (["plan"], 2, "which recipe?"),
        (["plan", "mae", "--launcher", "slurm"], 2, "neither torchrun nor deepspeed"),
        (["plan", "mae", "--zero", "3"], 2, "--zero"),
    ],
)
def test_exit_codes(mto: Run, tmp_path: Path, words: list[str], code: int, says: str) -> None:
    found, out, err = mto(*words)
    assert (found, out) == (code, "")
    assert says in " ".join(err.replace("│", " ").split())
    assert not list(tmp_path.iterdir())


def test_help_and_plan_load_neither_torch_nor_deepspeed(tmp_path: Path) -> None:
    program = (
        "import sys; from mto_tools import cli\n"
        "for words in (['plan', '--help'], ['plan', 'mae']):\n"
        "    sys.argv = ['mto', *words]\n"
        "    try: cli.main()\n"
        "    except SystemExit as end: assert not end.code, end.code\n"
        "    assert not {'torch', 'deepspeed', 'numpy'} & set(sys.modules), words\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, capture_output=True)
