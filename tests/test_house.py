"""Imports go one way, those inside functions counted: read from the sources, nothing is run."""

from __future__ import annotations

import ast
import re
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

HOME = Path(__file__).parents[1]
# A room imports rooms to its left only. `cli` is the command, `upstreams` reads patches/NAME.
ROOMS = (
    *(
        "mto_core",
        "errors",
        "home",
        "flags",
        "checkpoint",
        "draw",
        "bars",
        "upstreams",
        "compat",
        "ds",
        "recipe",
        "patchset",
    ),
    *("launch", "doctor", "plan", "inspect", "evaluate", "study", "tune", "app", "cli"),
)
GIT_ONLY = {"errors", "home", "upstreams", "patchset"}  # and the command's face: no torch
INSERTED = {"recipe", "ds", "compat"}  # what a patched upstream may import


def sources() -> dict[str, Path]:
    """Every module of both packages, by its import name."""
    found = {}
    for root in (HOME / "mto_core", HOME / "tools" / "mto_tools"):
        for path in root.rglob("*.py"):
            name = ".".join(path.relative_to(root.parent).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


MODULES = sources()


def imported(name: str) -> set[str]:
    """What a module imports, anywhere in it: modules of ours and other packages' top names."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"{name}: relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names & MODULES.keys() or {node.module}
    return {word if word in MODULES else word.partition(".")[0] for word in found} - {name}


IMPORTS = {name: imported(name) for name in MODULES}


def room(name: str) -> str:
    package, _, rest = name.partition(".")
    return package if package == "mto_core" else rest.partition(".")[0]


def test_no_circle() -> None:
    graph = {name: others & MODULES.keys() for name, others in IMPORTS.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("circle of imports: " + " <- ".join(error.args[1]))


def test_rooms_are_ordered() -> None:
    assert {room(name) for name in MODULES} - {""} <= set(ROOMS), "a new room: place it in ROOMS"
    wrong = [
        f"{name} imports {other}"
        for name, others in IMPORTS.items()
        for other in others & MODULES.keys() - {"mto_tools"}
        if room(name) and ROOMS.index(room(other)) > ROOMS.index(room(name))
    ]
    assert not wrong, "\n".join(wrong)


def test_mto_core_needs_torch_and_einops_only() -> None:
    """And triton, which comes with torch for GPUs, where its kernels are defined."""
    for name, others in IMPORTS.items():
        if room(name) == "mto_core":
            allowed = {"torch", "einops", *sys.stdlib_module_names}
            allowed |= {"triton"} if name == "mto_core.kernels" else set()
            assert not {x for x in others if room(x) != "mto_core"} - allowed, name
            assert "mto_core.kernels" not in others or name == "mto_core.fused"


def test_git_and_torch_live_apart() -> None:
    for name, others in IMPORTS.items():
        if room(name) in GIT_ONLY:
            assert not others & {"torch", "torchvision", "timm", "numpy", "mto_core"}, name
        if room(name) != "patchset":
            assert "git" not in others, name


@pytest.mark.parametrize("patch", sorted(HOME.glob("patches/*/*.patch")), ids=lambda p: p.stem)
def test_a_patched_upstream_imports_what_it_may(patch: Path) -> None:
    text = patch.read_text("utf-8", "replace")
    found = re.findall(r"^\+\s*(?:import|from) mto_tools(?:\.(\w+)| import ([\w, ]+))", text, re.M)
    for dotted, listed in found:
        assert set(re.findall(r"\w+", dotted or re.sub(r" as \w+", "", listed))) <= INSERTED
    assert not re.search(r"^\+\s*(?:import|from) mto_core", text, re.M)
