"""docs/patches.md is followed to the letter: every command is run, every output compared.

Where an output changes on purpose, run this with WRITE_DOCS=1, which writes what came out into the
document, and read the diff.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from itertools import zip_longest
from pathlib import Path

import pytest

DOCUMENT = Path(__file__).parents[2] / "docs/patches.md"
URL = "https://github.com/someone/toymim.git"
TRAIN = """\
import argparse

import torch


class Toy(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Linear(8, 8)
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(2))

    def forward(self, images, ratio=0.5):
        mask = torch.rand(images.shape[:2]) < ratio
        tokens = self.embed(images) * ~mask[..., None]
        for block in self.blocks:
            tokens = block(tokens)
        return ((tokens - images) ** 2)[mask].mean(), mask


def get_parser():
    parser = argparse.ArgumentParser("toymim")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--output_dir", default="out")
    return parser


def main(args):
    torch.manual_seed(0)
    model = Toy()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for step in range(args.steps):
        images = torch.randn(4, 16, 8)
        loss, mask = model(images)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(step, loss.item())


if __name__ == "__main__":
    main(get_parser().parse_args())
"""
VERSIONS = {"v1.0": TRAIN, "v1.1": '"""A toy."""\n\n' + TRAIN}
VERSIONS["v2.0"] = VERSIONS["v1.1"].replace("model(images)", "model(images, ratio=0.6)")


def commands(block: str) -> list[str]:
    """The commands of a console block, `> ` lines joined to the `$ ` line before them."""
    found: list[str] = []
    for line in block.splitlines():
        if line.startswith("$ "):
            found.append(line[2:])
        elif line.startswith("> ") and found:
            found[-1] += "\n" + line[2:]
    return found


def prompt(command: str) -> str:
    return "$ " + command.replace("\n", "\n> ") + "\n"


@pytest.mark.timeout(300)
def test_the_document_is_true(tmp_path, raw, own_git_configuration, fork_server) -> None:
    origin = tmp_path / "origin"
    origin.mkdir()
    raw(origin, "init", "-q", "-b", "main", ".")
    (origin / "LICENSE").write_text("MIT License\n")
    for tag, text in VERSIONS.items():
        (origin / "train.py").write_text(text)
        raw(origin, "add", "-A")
        raw(origin, "commit", "-qm", f"toymim {tag}")
        raw(origin, "tag", tag)
    raw(origin, "reset", "-q", "--hard", "v1.0")
    own_git_configuration.write_text(f'[url "file://{origin}"]\n insteadOf = {URL}\n')
    home = tmp_path / "mto"
    (home / "mto_core").mkdir(parents=True)
    (home / "patches").mkdir()
    tools = tmp_path / "bin"
    tools.mkdir()
    python = fork_server("torch", "mto_tools.app", "mto_tools.recipe").command
    (tools / "mto").write_text(f'#!/bin/sh\nexec {shlex.join(python)} -m mto_tools.cli "$@"\n')
    (tools / "mto").chmod(0o755)
    env = {
        **os.environ,
        "PATH": f"{tools}:{os.environ['PATH']}",
        "MTO_HOME": str(home),
        "COLUMNS": "100",
        "LC_ALL": "C.UTF-8",
    }
    document = DOCUMENT.read_text()
    parts = re.split(r"(?ms)^```console\n(.*?)^```\n", document)
    asked = [commands(block) for block in parts[1::2]]
    script = "".join(f"echo %%%%\n{command}\n" for block in asked for command in block)
    run = subprocess.run(
        ["bash", "-c", script],
        cwd=home,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    out = re.sub(r" +$", "", run.stdout.replace(str(home), "~/mto"), flags=re.MULTILINE)
    answers = iter(out.split("%%%%\n")[1:])
    shown = ["".join(prompt(command) + next(answers) for command in block) for block in asked]
    if os.environ.get("WRITE_DOCS"):
        fences = [f"```console\n{block}```\n" for block in shown]
        both = zip_longest(parts[::2], fences, fillvalue="")
        DOCUMENT.write_text("".join(text + fence for text, fence in both))
    else:
        assert parts[1::2] == shown
    # What the story leaves behind is a recipe that runs, with MTO and without.
    status = subprocess.run(["mto", "apply", "toymim"], env=env, cwd=home, check=False)
    assert status.returncode == 0
    script = str(home / "upstream/toymim/train.py")
    plain, on = (
        subprocess.run(
            [*python, script, "--output_dir", str(tmp_path / "out"), *flags],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        for flags in ([], ["--mto", "--mto_sparsity", "0.1", "--mto_log_every", "1"])
    )
    assert (plain.returncode, on.returncode) == (0, 0), plain.stderr + on.stderr
    assert plain.stdout != on.stdout
    assert (tmp_path / "out/mto.jsonl").read_text().count("\n") == 2


def test_every_exit_code_is_documented() -> None:
    from mto_tools import errors

    text = DOCUMENT.read_text()
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, errors.MtoError):
            assert f"\n| {kind.exit_code} | " in text
