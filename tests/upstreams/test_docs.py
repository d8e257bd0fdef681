"""docs/recipes.md: its table is made from recipe.toml, its commands are those of the recipes."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from mto_tools.launch.command import Launch
from mto_tools.upstreams.recipe import Recipe, load_recipe
from mto_tools.upstreams.upstream import all_upstreams

from ..command import HOME, make_home, mto
from ..docs import check_table

PAGE = HOME / "docs" / "recipes.md"
RECIPES = {upstream.name: load_recipe(upstream) for upstream in all_upstreams(HOME)}
OURS = {"accumulation", "batch", "config", "micro", "output", "data"}


def test_the_table_is_that_of_recipe_toml() -> None:
    rows = [["recipe", "scripts", "batch, accumulation, rate", "models", "images", "MTO watches"]]
    for name, recipe in RECIPES.items():
        options = recipe.options
        given = [options.batch, options.accumulation or "none", options.rate]
        assert recipe.plan
        models = [
            f"`{s.model}` {s.total_batch} images, {s.rate}{f', {s.epochs} epochs' * bool(s.epochs)}"
            for s in recipe.plan.schedules
        ]
        listing = recipe.data.listing.format(data="$IMAGENET", phase="train")
        images = f"listed in `{listing}`" if listing else "ImageFolder"
        scripts = ", ".join(f"`{script}`" for script in recipe.scripts)
        shown = ", ".join(one if one == "none" else f"`{one}`" for one in given)
        rows.append([name, scripts, shown, "; ".join(models), images, recipe.traced])
    check_table("recipes.md", "recipes", rows)


def commands() -> list[tuple[str, str, list[str]]]:
    """Upstream, script ("" for the one that pre-trains) and arguments of each `mto run`."""
    found = []
    for block in re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.S):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("mto run ") and "..." not in line:
                words = shlex.split(line)
                ours, theirs = words[: words.index("--")], words[words.index("--") + 1 :]
                script = ours[ours.index("--script") + 1] if "--script" in ours else ""
                assert ours[ours.index("--nproc") + 1] == "8"
                found.append((ours[2], script, theirs))
    return found


def test_every_script_has_a_command_and_every_command_a_script() -> None:
    found = {(name, script or RECIPES[name].pretrain) for name, script, _ in commands()}
    wanted = {
        (n, script) for n, recipe in RECIPES.items() if n != "mini" for script in recipe.scripts
    }
    assert found == wanted


def options(words: list[str]) -> dict[str, str]:
    pairs = zip(words, [*words[1:], "--"], strict=True)
    return {a: "" if b.startswith("--") else b for a, b in pairs if a.startswith("--")}


@pytest.mark.parametrize(
    ("name", "words"), [(name, words) for name, script, words in commands() if not script]
)
def test_pre_training_has_the_recipe_s_batch_rate_and_length(name: str, words: list[str]) -> None:
    recipe: Recipe = RECIPES[name]
    given, facts = options(words), recipe.plan
    assert facts
    schedule = next(
        s for s in facts.schedules if s.model in words or s.flags.split("/")[-1] in " ".join(words)
    )
    accumulation = int(given.get(recipe.options.accumulation, 1))
    assert int(given[recipe.options.batch]) * accumulation * 8 == schedule.total_batch
    assert int(given[recipe.options.batch]) == schedule.images_per_gpu
    template = facts.arguments.replace("{flags}", schedule.flags)
    values = {"model": schedule.model, "rate": schedule.rate, "epochs": schedule.epochs}
    values |= {"warmup": facts.warmup_epochs, "checkout": f"$MTO/upstream/{name}", "arm": "mto"}
    for option, value in options(template.split()).items():
        if not any(f"{{{one}}}" in value for one in OURS) and option != "--opts":
            assert given.get(option) == value.format(**values), option
    assert facts.mto in " ".join(words)


PARSE_ONLY = """
import argparse, sys
from pathlib import Path
parse = argparse.ArgumentParser.parse_known_args
def parsed(self, *given, **more):
    args, rest = parse(self, *given, **more)
    gone = [x for x in vars(args).values() if str(x).endswith(".yaml") and not Path(x).is_file()]
    sys.exit(f"unknown: {rest + gone}" if rest + gone else 0)
argparse.ArgumentParser.parse_known_args = parsed
"""


@pytest.fixture(scope="module")
def clones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A house with the four upstreams patched."""
    if "MTO_UPSTREAM_URL" not in os.environ:
        pytest.skip("no source of the upstreams: set MTO_UPSTREAM_URL to a mirror or a template")
    names = [name for name in RECIPES if name != "mini"]
    home = make_home(tmp_path_factory.mktemp("home"), *names)
    done = mto("apply", *names, MTO_HOME=str(home))
    assert done.returncode == 0, done.stderr
    (home / "parse.py").write_text(PARSE_ONLY)
    return home


@pytest.mark.parametrize(("name", "script", "words"), commands())
def test_the_script_takes_the_command_as_written(
    clones: Path, forked_python: None, name: str, script: str, words: list[str]
) -> None:
    file = clones / "upstream" / name / (script or RECIPES[name].pretrain)
    given = [word.replace("$MTO", str(clones)) for word in words]
    how = Launch(name, RECIPES[name], file, given, before=[clones / "parse.py"])
    argv = how.argv()
    worker = argv[argv.index("mto_tools.launch.worker") :]  # without torchrun
    done = subprocess.run(
        [sys.executable, "-m", *worker],
        env={**os.environ, "RANK": "0", "LOCAL_RANK": "0"},
        capture_output=True,
        text=True,
        cwd=clones,
    )
    assert done.returncode == 0, done.stderr[-1000:]
