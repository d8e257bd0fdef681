"""Packages that a recipe needs: those of recipe.toml, and modules that its scripts import."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tomlkit
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from mto_tools.upstreams.recipe import Recipe

OURS = {"mto_core", "mto_tools"}
PYPROJECT = Path(__file__).parents[3] / "pyproject.toml"


@dataclass(frozen=True)
class Package:
    """A distribution."""

    name: str
    version: str  # of the installed one; "" for none
    wanted: str = ""  # versions that pyproject.toml allows; "" for any
    extra: str = ""  # extra of pyproject.toml that brings it; "" for none

    @property
    def ok(self) -> bool:
        """It is installed, in a version that pyproject.toml allows."""
        wanted = SpecifierSet(self.wanted)
        return bool(self.version) and wanted.contains(self.version, prereleases=True)

    @property
    def install(self) -> str:
        """Command that installs it, in the folder of the mto clone."""
        if self.extra:
            return f"pip install -e '.[{self.extra}]'"
        return "pip install -e ." if self.wanted else f"pip install {self.name}"

    def __str__(self) -> str:
        found = f"{self.name} {self.version}" if self.version else f"no {self.name}"
        return found if self.ok or not self.version else f"{found}, needs {self.wanted}"


def package(name: str) -> Package:
    """Look at one distribution."""
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        version = ""
    for extra, requirement in required():
        if canonicalize_name(requirement.name) == canonicalize_name(name):
            return Package(name, version, str(requirement.specifier), extra)
    return Package(name, version)


def required() -> list[tuple[str, Requirement]]:
    """Requirements of pyproject.toml with their extra, "" for none; as installed, without a clone.

    The metadata of an editable install are as old as the last `pip install`.
    """
    if PYPROJECT.is_file():
        project = tomlkit.parse(PYPROJECT.read_text("utf-8")).unwrap()["project"]
        groups = {"": project["dependencies"], **project["optional-dependencies"]}
        return [(extra, Requirement(text)) for extra, group in groups.items() for text in group]
    found = map(Requirement, importlib.metadata.requires("mto-core") or ())
    extras = [(re.search(r"extra == [\"']([\w-]+)", str(one.marker)), one) for one in found]
    return [(extra[1] if extra else "", one) for extra, one in extras]


def missing_modules(recipe: Recipe, checkout: Path) -> list[str]:
    """Modules that the scripts in a checkout import, and that this Python does not find."""
    scripts = [checkout / script for script in recipe.scripts if (checkout / script).is_file()]
    found = {module for script in scripts for module in imports(script)}
    known = {"torch", *recipe.provided}
    return sorted(name for name in found - known if importlib.util.find_spec(name) is None)


def imports(script: Path) -> set[str]:
    """Names of the modules that a script imports, itself or through modules beside it.

    Imports that may fail, in a `try` or a function, do not count, nor does the standard library.
    Of a package beside it, all files count.
    """
    found: set[str] = set()
    files = [script]
    for file in files:  # grows
        for name in _imported(ast.parse(file.read_bytes())):
            own = [script.with_name(f"{name}.py"), *script.with_name(name).rglob("*.py")]
            own = [one for one in own if one.is_file()]
            files += [one for one in own if one not in files]
            found |= set() if own else {name}
    return found - OURS - sys.stdlib_module_names


def _imported(tree: ast.AST) -> Iterator[str]:
    """First words of dotted names."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield str(node.module).partition(".")[0]
        elif not isinstance(node, (ast.Try, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from _imported(node)
