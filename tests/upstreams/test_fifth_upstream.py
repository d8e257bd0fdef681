"""A fifth upstream is one folder under patches/: every command works, without a line of Python."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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
    who = ["-c", "user.name=someone", "-c", "user.email=some@one"]
    for words in (["init", "-q"], ["add", "-A"], [*who, "commit", "-qm", "first"]):
        subprocess.run(["git", "-C", str(origin), *words], check=True)
    pin = subprocess.run(
        ["git", "-C", str(origin), "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    ).stdout.strip()
    (home / "mto_core").mkdir(parents=True)
    (home / "patches" / "toy").mkdir(parents=True)
    (home / "patches" / "toy" / "upstream.toml").write_text(
        f'name = "toy"\nrepository = "some/toy"\nurl = "{origin}"\npin = "{pin}"\n'
        'pin_date = "2026-01-01"\nlicence = { spdx = "MIT" }\n'
    )
    (home / "patches" / "toy" / "recipe.toml").write_text(RECIPE)
    mto(home, "checkout", "toy")
    lines = []
    for line in text.splitlines():
        lines += [line, *([INSERTED[line]] if line in INSERTED else [])]
    assert len(lines) == len(text.splitlines()) + len(INSERTED)
    (home / "upstream" / "toy" / "main.py").write_text("\n".join(lines) + "\n")
    mto(home, "export", "toy", "--layer", "mto", "-m", "The MTO losses", "-m", "So that it learns.")
    mto(home, "apply", "toy")
    return home


def mto(home: Path, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    names = {name: value for name, value in os.environ.items() if not name.startswith("MTO_")}
    done = subprocess.run(
        [sys.executable, "-m", "mto_tools.cli", *words],
        env={**names, "MTO_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
        cwd=home.parent,
    )
    assert done.returncode == code, f"{words}: {done.stdout}{done.stderr}"
    return done


@pytest.mark.timeout(900)
def test_smoke(home: Path) -> None:
    out = home.parent / "smoked"
    assert "NOT" not in mto(home, "smoke", "toy", "--cpu", "--keep", str(out)).stderr
    lines = (out / "resumed" / "mto.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [5, 6, 7, 8]


@pytest.mark.timeout(900)
def test_run_compare_plan_and_doctor(home: Path) -> None:
    mto(home, "compare", "toy", "--seeds", "1", "--steps", "8")
    report = json.loads(next((home / "reports" / "toy").glob("*/report.json")).read_text())
    assert report["fair"]
    data = home / "data" / "digits-lists" / "images"
    given = ["-net", "8", "-rate", "0.1", "-bs", "8", "-rounds", "1", "-dice", "0"]
    places = ["-images", str(data), "-into", "mine"]
    mto(home, "run", "toy", "--cpu", "--", *given, *places, "--mto", "--mto_log_every", "1")
    assert len((home.parent / "mine" / "mto.jsonl").read_text().splitlines()) == 8
    command = mto(home, "plan", "toy", "--gpus", "2", "--gpu-mem", "8").stdout
    assert "main.py -net 8 -rate 0.1 -bs 32" in command
    found = json.loads(mto(home, "doctor", "toy", "--json").stdout)["findings"]
    states = {one["what"]: one["state"] for one in found if one["what"].startswith("toy")}
    assert states == {"toy source": "ok", "toy series": "ok", "toy packages": "ok"}


def test_a_run_that_fails_leaves_its_log_and_tells_the_cause(home: Path) -> None:
    script = home / "upstream" / "toy" / "main.py"
    text = script.read_text()
    script.write_text("raise SystemExit('the cause of it')\n" + text)
    said = mto(home, "smoke", "toy", "--cpu", code=1).stderr
    script.write_text(text)
    assert "the cause of it" in said
    log = Path(re.search(r"hint:.* (/\S+\.log)", said)[1])  # type: ignore[index]
    assert "the cause of it" in log.read_text()
    assert {file.suffix for file in log.parent.iterdir()} == {".log"}
    shutil.rmtree(log.parent)
