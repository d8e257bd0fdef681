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
NAME = "mae-256x2x8-zero1.json"


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
    code, out, err = mto("plan", "mae", "--mto")
    assert code == 0
    assert out.startswith("torchrun --standalone --nproc_per_node=8 ")
    assert out.count("\n") == 1
    assert out.endswith(f"--deepspeed_config {NAME} --mto\n")
    assert json.loads((tmp_path / NAME).read_text())["train_batch_size"] == 4096
    assert "activations" in err
    assert "assumed" in err
    assert "baseline" not in err
    _, out, err = mto("plan", "mae")
    assert not out.endswith("--mto\n")
    assert "--mto" in err, "the baseline is said to be one"


def test_another_model_launcher_and_file(mto: Run, tmp_path: Path) -> None:
    file = tmp_path / "sub" / "c.json"
    words = ("--nodes", "2", "--launcher", "deepspeed", "--model", "conmim_large_patch16_224")
    code, out, err = mto("plan", "conmim", *words, "--out", str(file))
    assert code == 0
    assert json.loads(file.read_text())["train_batch_size"] == 2048
    assert "hostfile" in err
    assert out.startswith("deepspeed ")
    assert str(file) in out


def test_another_file_is_not_overwritten(mto: Run, tmp_path: Path) -> None:
    assert mto("plan", "mae")[0] == 0
    assert mto("plan", "mae")[0] == 0  # the same
    code, out, err = mto("plan", "mae", "--batch", "2048", "--out", NAME)
    assert (code, out) == (4, "")
    assert NAME in err
    assert "--force" in err
    assert json.loads((tmp_path / NAME).read_text())["train_batch_size"] == 4096
    assert mto("plan", "mae", "--batch", "2048", "--out", NAME, "--force")[0] == 0
    assert json.loads((tmp_path / NAME).read_text())["train_batch_size"] == 2048


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["plan", "mae", "--gpus", "6"], 4, "4 or 8 GPUs"),
        (["plan", "mae", "--model", "mae_vit_huge_patch14", "--gpu-mem", "6"], 4, "does not fit"),
        (["plan", "beit"], 3, "beit"),
        (["plan", "mae", "--model", "vit_tiny"], 3, "mae_vit_base_patch16"),
        (["plan"], 2, "NAME"),
        (["plan", "mae", "--launcher", "slurm"], 2, "slurm"),
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
