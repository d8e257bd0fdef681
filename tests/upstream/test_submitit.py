"""MAE's own launcher: its jobs unpickle their arguments and parse no command line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import Runs

submitit = pytest.importorskip("submitit")
RECIPE = "mae"
LAUNCH = """
import sys
from pathlib import Path
shared = Path(sys.argv.pop(1))
import submitit_pretrain as launcher
launcher.get_shared_folder = lambda: shared  # upstream's is that of one cluster
launcher.main()
"""
EVERY_PROCESS = "from mto_tools.launch.cpu import pretend_cuda\npretend_cuda()\n"
MODELS = """
import functools, importlib.util
found = importlib.util.spec_from_file_location("real_models_mae", {file!r})
real = importlib.util.module_from_spec(found)
found.loader.exec_module(real)
mae_tiny = functools.partial(
    real.MaskedAutoencoderViT, embed_dim=32, depth=1, num_heads=2,
    decoder_embed_dim=32, decoder_depth=2, decoder_num_heads=2,
)
"""


def launch(runs: Runs, folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Submit a job of one step to submitit's local executor; its files come to `folder`."""
    folder.mkdir()
    (folder / "launch.py").write_text(LAUNCH)
    (folder / "sitecustomize.py").write_text(EVERY_PROCESS)
    models = MODELS.format(file=str(runs.patched / "models_mae.py"))
    (folder / "models_mae.py").write_text(models)  # in front of upstream's: a small model more
    given = runs.recipe.pretrain(runs.patched, runs.runner.data(4), folder / "job", 1)
    given = [argument for argument in given if not argument.startswith("--output_dir")]
    path = os.pathsep.join([str(folder), str(runs.patched)])
    return subprocess.run(
        [
            *(sys.executable, str(folder / "launch.py"), str(folder), *given, *flags),
            *("--model=mae_tiny", "--ngpus=1", "--nodes=1", f"--job_dir={folder / 'job'}"),
        ],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        cwd=folder,
        check=False,
    )


def finished(folder: Path, launched: subprocess.CompletedProcess[str]) -> submitit.LocalJob:
    assert launched.returncode == 0, launched.stderr[-2000:]
    job = submitit.LocalJob(folder / "job", re.findall(r"^(\d+)$", launched.stdout, re.M)[-1])
    job.wait()
    return job


def test_the_job_trains_as_its_launcher_was_asked(runs: Runs, tmp_path: Path) -> None:
    flags = ("--mto", "--mto_sparsity", "0.5", "--mto_log_every", "1")
    job = finished(tmp_path / "on", launch(runs, tmp_path / "on", *flags))
    assert job.exception() is None, job.stderr()
    said = job.stdout()
    assert "mto is on: preset mae" in said
    assert "sparsity 0.5" in said
    lines = [json.loads(line) for line in (tmp_path / "on/job/mto.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert lines[0]["weights"]["sparsity"] == 0.5


def test_without_the_flag_the_job_is_the_plain_recipe(runs: Runs, tmp_path: Path) -> None:
    job = finished(tmp_path / "off", launch(runs, tmp_path / "off"))
    assert job.exception() is None, job.stderr()
    assert "mto is on" not in job.stdout()
    assert not list((tmp_path / "off" / "job").glob("mto*"))


def test_deepspeed_is_asked_for_in_the_job(runs: Runs, tmp_path: Path) -> None:
    """A missing file is refused by the launcher; a job of one process says why it cannot start."""
    missing = launch(runs, tmp_path / "missing", "--deepspeed_config", "nowhere.json")
    assert missing.returncode == 2
    assert "nowhere.json" in missing.stderr
    config = tmp_path / "zero.json"
    content = {"train_batch_size": 2, "train_micro_batch_size_per_gpu": 2}
    content |= {"gradient_accumulation_steps": 1, "gradient_clipping": 0.0}
    config.write_text(json.dumps(content | {"zero_optimization": {"stage": 1}}))
    job = finished(
        tmp_path / "zero", launch(runs, tmp_path / "zero", f"--deepspeed_config={config}")
    )
    assert "MissingError" in str(job.exception())
