"""A fifth upstream is one folder under patches/: every command works, without a line of Python."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from mto_tools.app import app
from mto_tools.errors import MtoError
from mto_tools.launch.digits import lay_out
from mto_tools.upstreams.recipe import load_recipe
from mto_tools.upstreams.upstream import load_upstream

from ..command import make_home, mto

HERE = Path(__file__).parent
RECIPE = """\
pretrain = "main.py"
checkpoint = "states/{epoch}.tar"
resume = "-continue {folder}/states/{epoch}.tar"
needs = ["pillow", "torchvision"]
arguments = \"\"\"
-net 8 -rate 0.1 -bs {batch} -rounds {epochs} -dice {seed} -images {data} -into {out}\"\"\"
[styles.only]
preset = "simmim"
[data]
name = "digits-lists"
listing = "{data}/lists/{phase}.csv"
line = "{file},{label}"
[compare]
batch = 8
steps = 8
disk_mb_per_run = 1
[plan]
arguments = "-net 8 -rate {rate} -bs {micro} -images {data} -into {output}"
[[plan.schedules]]
model = "only"
total_batch = 64
rate = "0.1"
[plan.memory.only]
parameters = 2000
trainable = 2000
saved = 50_000
tokens = 16
width = 8
depths = 4
masked = 10
"""
INSERTED = {  # line that is there: line to insert behind it
    "import argparse": "from mto_tools import recipe as mto",
    'parser.add_argument("-continue", dest="old", type=Path)': "mto.add_arguments(parser)",
    "first = 0": 'mto.attach(model, model.layers, output_dir=args.into, preset="simmim")',
    "        loss, hidden = model(batch.cuda())": "        loss = mto.add(loss, hidden, step=step)",
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone of mto with the upstream toy, its series exported from an edited checkout."""
    root = tmp_path_factory.mktemp("fifth")
    origin, home = root / "origin", root / "home"
    origin.mkdir()
    text = (HERE / "toy_main.py").read_text()
    (origin / "main.py").write_text(text)
    commit = "git -c user.name=someone -c user.email=some@one commit -qm first"
    line = f"git init -q && git add -A && {commit} && git rev-parse HEAD"
    pin = subprocess.check_output(["sh", "-c", line], text=True, cwd=origin).strip()
    (make_home(home) / "patches" / "toy").mkdir()
    (home / "patches" / "toy" / "upstream.toml").write_text(
        f'name = "toy"\nrepository = "some/toy"\nurl = "{origin}"\npin = "{pin}"\n'
        'pin_date = "2026-01-01"\nlicence = { spdx = "MIT" }\n'
    )
    (home / "patches" / "toy" / "recipe.toml").write_text(RECIPE)
    invoke(home, "checkout", "toy")
    lines = []
    for line in text.splitlines():
        lines += [line, *([INSERTED[line]] if line in INSERTED else [])]
    assert len(lines) == len(text.splitlines()) + len(INSERTED)
    (home / "upstream" / "toy" / "main.py").write_text("\n".join(lines) + "\n")
    invoke(home, "export", "toy", "--layer", "mto", "-m", "The losses", "-m", "So that it learns.")
    invoke(home, "apply", "toy")
    return home


def environment(home: Path) -> dict[str, str | None]:
    """Changes of the environment: none of our variables but the clone's folder."""
    return {name: None for name in os.environ if name.startswith("MTO_")} | {"MTO_HOME": str(home)}


def invoke(home: Path, *words: str) -> Result:
    done = CliRunner(env=environment(home)).invoke(app, words)
    if done.exception:
        raise done.exception
    return done


def test_smoke(home: Path, forked_python: None) -> None:
    said = invoke(home, "smoke", "toy", "--cpu").stderr
    assert said.count("  ok ") == 7
    assert "NOT" not in said


def test_compare(home: Path, forked_python: None) -> None:
    invoke(home, "compare", "toy", "--seeds", "1", "--steps", "8")
    report = json.loads(next((home / "reports" / "toy").glob("*/report.json")).read_text())
    assert report["fair"]


def test_run(home: Path, tmp_path: Path) -> None:
    data = lay_out(load_recipe(load_upstream(home, "toy")).data, tmp_path / "images", 8)
    words = "run toy --cpu -- -net 8 -rate 0.1 -bs 8 -rounds 1 -dice 0 -into mine --mto"
    more = ["--mto_log_every", "1", "-images", data]
    done = mto(*words.split(), *more, cwd=tmp_path, **environment(home))
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "mine" / "mto.jsonl").read_text().splitlines()) == 8


def test_plan_and_doctor(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # which gets the configuration
    command = invoke(home, "plan", "toy", "--gpus", "2", "--gpu-mem", "8").stdout
    assert "main.py -net 8 -rate 0.1 -bs 32" in command
    found = json.loads(invoke(home, "doctor", "toy", "--json").stdout)["findings"]
    states = {one["what"]: one["state"] for one in found if one["what"].startswith("toy")}
    assert states == {"toy source": "ok", "toy series": "ok", "toy packages": "ok"}


def test_a_run_that_fails_leaves_its_log_and_tells_the_cause(
    home: Path, forked_python: None
) -> None:
    script = home / "upstream" / "toy" / "main.py"
    text = script.read_text()
    script.write_text("raise SystemExit('the cause of it')\n" + text)
    with pytest.raises(MtoError, match="the cause of it") as caught:
        invoke(home, "smoke", "toy", "--cpu")
    script.write_text(text)
    log = Path(caught.value.hint.split()[-1])
    assert "the cause of it" in log.read_text()
    assert {file.suffix for file in log.parent.iterdir()} == {".log"}
    shutil.rmtree(log.parent)
