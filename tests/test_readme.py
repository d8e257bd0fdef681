"""The pages say what is so: links, commands, code, pins; make's targets install what they need."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mto_tools.upstreams.upstream import all_upstreams

from .command import HOME, mto

PAGES = [HOME / "README.md", HOME / "CONTRIBUTING.md", *sorted(HOME.glob("docs/*.md"))]
README = PAGES[0].read_text()
needs_make = pytest.mark.skipif(not shutil.which("make"), reason="there is no make")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(program: str) -> list[tuple[str, list[str]]]:
    """Every command of the program in the pages' shell blocks: page, words."""
    found = []
    for page in PAGES:
        for block in blocks(page.read_text(), "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                while words and re.match(r"\w+=", words[0]):
                    words.pop(0)
                if words and words[0] == program:
                    found.append((page.name, words[1:]))
    return found


def run(*command: object, **how: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=False, **how
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    links = re.findall(r"\]\(([^)\s]+)\)|(?:src|srcset)=\"([^\"]+)\"", text)
    for link in (a or b for a, b in links):
        file, _, anchor = link.partition("#")
        if "://" in link:
            continue
        target = page.parent / file if file else page
        assert target.exists(), link
        if anchor:
            titles = re.findall(r"^#+ (.*)", target.read_text(), re.MULTILINE)
            known = [re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in titles]
            assert anchor in known, link


@needs_make
@pytest.mark.parametrize("target", sorted({
    next(word for word in words if "=" not in word) for _, words in commands("make")
}))  # fmt: skip
def test_make_has_every_target(target: str) -> None:
    done = run("make", "-n", target.replace("NAME", "mae"), cwd=HOME)
    assert done.returncode == 0, done.stderr


@cache
def help_of(command: str) -> str:
    done = mto(command, "--help", COLUMNS="200", NO_COLOR="1")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("page", "words"), commands("mto"), ids=lambda word: " ".join(word[:2]))
def test_mto_has_every_command_and_option(page: str, words: list[str]) -> None:
    own = words[: words.index("--")] if "--" in words else words
    for option in (word for word in own[1:] if word.startswith("--")):
        assert re.search(rf"{option}\b", help_of(own[0])), (page, option)
    assert help_of(own[0])


def test_the_code_runs() -> None:
    five_lines, decoder = blocks(README, "python")
    mask = torch.arange(9).repeat(2, 1) < 5
    for line in ("", decoder):
        layers = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        model = SimpleNamespace(blocks=layers, decoder_blocks=layers)
        code = five_lines.replace("model(images, mask)", "model.blocks(images).square().mean()")
        if line:
            code = re.sub(r"trace = .*\n", line, code)
        images = torch.randn(2, 10, 8, requires_grad=True)
        names = {"model": model, "images": images, "mask": mask}
        exec(code, names)
        names["loss"].backward()
        assert images.grad is not None


def test_the_table_has_the_pins() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([\w/-]+), `(\w+)` \|", README, re.MULTILINE)
    ours = {up.name: up for up in all_upstreams(HOME) if "/" in up.repository}
    assert {row[0] for row in rows} == ours.keys() - {"mini"}
    for name, repository, pin in rows:
        assert ours[name].repository == repository
        assert ours[name].pin.startswith(pin)


def test_the_paper_is_cited_alike() -> None:
    yaml = pytest.importorskip("yaml")
    cited = yaml.safe_load((HOME / "CITATION.cff").read_text())["preferred-citation"]
    for author in cited["authors"]:
        assert f"{author['family-names']}, {author['given-names']}" in README
        assert f"{author['given-names']} {author['family-names']}" in README
    assert README.count(cited["title"]) == 2


@needs_make
@pytest.mark.parametrize(("target", "extras"), [
    ("demo", "tools,photos"),
    ("apply-mae", "tools,recipes"),
    ("smoke-mae", "tools,recipes"),
    ("compare-mae", "tools,recipes"),
    ("plan-mae", "tools,recipes,deepspeed"),
    ("test", "tools,recipes,deepspeed,slurm,dev"),
])  # fmt: skip
def test_a_target_installs_what_it_needs(target: str, extras: str, tmp_path: Path) -> None:
    done = run("make", "-n", target, f"VENV={tmp_path / 'new'}", cwd=HOME)
    assert f".[{extras}]" in done.stdout


@needs_make
def test_the_clone_in_which_make_stands_wins(tmp_path: Path) -> None:
    """Its environment may hold an editable install of another clone."""
    for folder in ("mto_core", "tools", "patches/mini", "upstream/embedded"):
        shutil.copytree(HOME / folder, tmp_path / folder)
    shutil.copy(HOME / "Makefile", tmp_path)
    done = run("make", "status", "VENV=off", f"PYTHON={sys.executable}", cwd=tmp_path)
    assert "mini" in done.stdout, done.stderr
    assert "simmim" not in done.stdout


def test_every_dependency_has_a_floor() -> None:
    """`make test-floor` installs the lowest version of each."""
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")
    project = tomllib.loads((HOME / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    needs = [*project["dependencies"], *(need for extra in extras for need in extra)]
    assert [need for need in needs if not re.fullmatch(r"[a-z0-9-]+>=[0-9.]+", need)] == []
