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
from packaging.utils import canonicalize_name

from mto_tools.upstreams.recipe import Recipe

OURS = "mto-core"
PYPROJECT = Path(__file__).parents[3] / "pyproject.toml"


@dataclass(frozen=True)
class Package:
    """A distribution.

    Attributes:
        name: As on an index.
        version: Of the installed one; "" for none.
        wanted: Versions that pyproject.toml allows; "" for any.
        extra: Extra of pyproject.toml that brings it; "" for none.
    """

    name: str
    version: str
    wanted: str = ""
    extra: str = ""

    @property
    def ok(self) -> bool:
        """It is installed, in a version that pyproject.toml allows."""
        requirement = Requirement(f"{self.name}{self.wanted}")
        return bool(self.version) and requirement.specifier.contains(self.version, prereleases=True)

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
    wanted = [
        one for one in required() if canonicalize_name(one[1].name) == canonicalize_name(name)
    ]
    if not wanted:
        return Package(name, version)
    extra, requirement = wanted[0]
    return Package(name, version, str(requirement.specifier), extra)


def required() -> list[tuple[str, Requirement]]:
    """Requirements of pyproject.toml with their extra, "" for none; as installed, without a clone.

    The metadata of an editable install are as old as the last `pip install`.
    """
    if PYPROJECT.is_file():
        project = tomlkit.parse(PYPROJECT.read_text("utf-8")).unwrap()["project"]
        groups = {"": project["dependencies"], **project["optional-dependencies"]}
        return [(extra, Requirement(text)) for extra, group in groups.items() for text in group]
    found = []
    for text in importlib.metadata.requires(OURS) or ():
        requirement = Requirement(text)
        extra = re.search(r"extra == [\"']([\w-]+)", str(requirement.marker or ""))
        found.append((extra[1] if extra else "", requirement))
    return found


def missing_modules(recipe: Recipe, checkout: Path) -> list[str]:
    """Modules that the scripts in a checkout import, and that this Python does not find."""
    known = {"torch", *recipe.provided}
    found = {module for script in recipe.scripts for module in imports(checkout / script, checkout)}
    return sorted(name for name in found - known if importlib.util.find_spec(name) is None)


def imports(script: Path, root: Path) -> set[str]:
    """Names of the modules that a script of `root` imports, itself or through its own modules.

    Imports that may fail, in a `try` or a function, do not count, nor does the standard library.
    """
    found: set[str] = set()
    seen: set[Path] = set()
    todo = [script]
    while todo:
        file = todo.pop()
        if file in seen or not file.is_file():
            continue
        seen.add(file)
        for name, level in _imported(ast.parse(file.read_bytes())):
            parts = [part for part in name.split(".") if part]
            folder = file.parents[level - 1] if level else root
            own = [*_files(folder, parts)]
            if own or level:
                todo += own
            elif parts[0] not in sys.stdlib_module_names:
                found.add(parts[0])
    return found - {"mto_core", "mto_tools"}


def _imported(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Dotted names with their level; `from a import b` gives `a.b`, which may be a module."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            yield from ((f"{base}.{alias.name}", node.level) for alias in node.names)
        elif not isinstance(node, (ast.Try, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from _imported(node)


def _files(folder: Path, parts: list[str]) -> Iterator[Path]:
    """Files of a package's own that importing a dotted name runs."""
    for length in range(1, len(parts) + 1):
        place = folder.joinpath(*parts[:length])
        files = [place.with_name(f"{place.name}.py"), place / "__init__.py"]
        yield from (file for file in files if file.is_file())
