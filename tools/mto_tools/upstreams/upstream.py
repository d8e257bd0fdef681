"""What `patches/NAME/upstream.toml` says: where an upstream comes from and what is pinned."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mto_tools.errors import CorruptError, MissingError
from mto_tools.patchset.git import OID

LAYERS = ("compat", "mto", "deepspeed")
_PATCH = re.compile(r"(\d{4})-(compat|mto|deepspeed)(-[a-z0-9]+)*\.patch")
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
_TEXTS = ("name", "repository", "url", "pin", "pin_date", "source", "path", "notes")


@dataclass(frozen=True)
class Licence:
    """The upstream's licence: SPDX expression, and what a person should know besides."""

    spdx: str
    note: str = ""


@dataclass(frozen=True)
class Upstream:
    """One pinned upstream.

    Attributes:
        home: Root of the mto clone.
        name: Folder name under `patches/` and `upstream/`.
        repository: "owner/name" as on the public host; "" for an embedded upstream.
        url: Default source; "" for an embedded upstream.
        pin: Full OID of the base commit.
        pin_date: Day of that commit, YYYY-MM-DD.
        licence: Licence of the upstream's code.
        entry: Scripts a user starts, relative to the clone.
        source: "git", or "embedded" for a recipe kept inside the mto clone.
        path: Folder of an embedded recipe, relative to `home`.
        notes: For a person.
        layers: What each layer of the series adds, for a person.
    """

    home: Path
    name: str
    pin: str
    pin_date: str
    licence: Licence
    repository: str = ""
    url: str = ""
    entry: tuple[str, ...] = ()
    source: str = "git"
    path: str = ""
    notes: str = ""
    layers: dict[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where pin, lock and series stand."""
        return self.home / "patches" / self.name

    @property
    def checkout(self) -> Path:
        """Where the clone stands unless `--repo` says otherwise."""
        return self.home / "upstream" / self.name

    def patch_files(self) -> list[Path]:
        """Return the series in order.

        Raises:
            CorruptError: A file name does not follow `000N-<layer>-<slug>.patch`, a number is
                missing or double, or a layer stands before one it builds on.
        """
        files = sorted(self.folder.glob("*.patch"))
        for number, file in enumerate(files, start=1):
            match = _PATCH.fullmatch(file.name)
            if not match:
                raise CorruptError(
                    f"{file}: a patch is named 000N-<layer>-<slug>.patch, layer one of "
                    f"{', '.join(LAYERS)}, slug of a-z, 0-9 and dashes"
                )
            if int(match[1]) != number:
                raise CorruptError(f"{file}: expected number {number:04d} in the series")
        ranks = [LAYERS.index(layer_of(file.name)) for file in files]
        for file, rank, before in zip(files[1:], ranks[1:], ranks, strict=False):
            if rank < before:
                raise CorruptError(
                    f"{file}: layer {LAYERS[rank]} must come before {LAYERS[before]} in the series"
                )
        return files


def layer_of(file_name: str) -> str:
    """Return the layer a patch file's name puts it in: compat, mto or deepspeed."""
    match = _PATCH.fullmatch(file_name)
    if not match:
        raise CorruptError(f"{file_name}: not a name of the form 000N-<layer>-<slug>.patch")
    return match[2]


def load_upstream(home: Path, name: str) -> Upstream:
    """Read `patches/NAME/upstream.toml`.

    Raises:
        MissingError: There is no upstream of that name.
        CorruptError: The file is not TOML, or a key is unknown, missing or of the wrong kind.
    """
    file = home / "patches" / name / "upstream.toml"
    _settle(file.parent)
    if not _NAME.fullmatch(name) or not file.is_file():
        known = ", ".join(_names(home)) or "none"
        raise MissingError(
            f"there is no upstream {name!r}: {file} does not exist; known: {known}",
            hint="mto status lists them",
        )
    return parse_upstream(home, name, file.read_text("utf-8"), file)


def _settle(folder: Path) -> None:
    """Finish or undo what a killed export or upgrade left in `folder`."""
    if any(folder.glob(".pending*")):
        from mto_tools.patchset import pending

        pending.recover(folder, lambda line: print(line, file=sys.stderr))


def all_upstreams(home: Path) -> list[Upstream]:
    """Read every upstream, in the order of their names."""
    return [load_upstream(home, name) for name in _names(home)]


def _names(home: Path) -> list[str]:
    return sorted(file.parent.name for file in (home / "patches").glob("*/upstream.toml"))


def parse_upstream(home: Path, name: str, text: str, file: Path) -> Upstream:
    """Check the text of an `upstream.toml`; `file` is only named in errors."""
    try:
        table = _parse_toml(text)
    except ValueError as error:
        raise CorruptError(f"{file}: not TOML: {error}") from error
    known = {*_TEXTS, "licence", "entry", "layers"}
    for key in table:
        if key not in known:
            raise CorruptError(f"{file}: unknown key {key!r}; known: {', '.join(sorted(known))}")
    values: dict[str, Any] = {}
    for key in _TEXTS:
        if key in table:
            values[key] = _typed(file, key, table[key], str)
    for key in ("name", "pin", "pin_date", "licence"):
        if key not in table:
            raise CorruptError(f"{file}: the key {key!r} is missing")
    if values["name"] != name:
        raise CorruptError(f"{file}: name is {values['name']!r}, but the folder is {name!r}")
    if not OID.fullmatch(values["pin"]):
        raise CorruptError(
            f"{file}: pin is {values['pin']!r}, expected a full commit OID of 40 hex digits",
            hint="git rev-parse <commit> prints the full OID",
        )
    if not re.fullmatch(r"\d{4}-\d\d-\d\d", values["pin_date"]):
        raise CorruptError(f"{file}: pin_date is {values['pin_date']!r}, expected YYYY-MM-DD")
    source = values.setdefault("source", "git")
    needed = {"git": ("repository", "url"), "embedded": ("path",)}
    if source not in needed:
        raise CorruptError(f"{file}: source is {source!r}, expected 'git' or 'embedded'")
    for key in needed[source]:
        if not values.get(key):
            raise CorruptError(f"{file}: source = {source!r} needs the key {key!r}")
    if source == "git" and not re.fullmatch(r"[\w.-]+/[\w.-]+", values["repository"]):
        raise CorruptError(f"{file}: repository is {values['repository']!r}, expected 'owner/name'")
    entry = _typed(file, "entry", table.get("entry", []), list)
    layers = _typed(file, "layers", table.get("layers", {}), dict)
    for layer in layers:
        if layer not in LAYERS:
            raise CorruptError(f"{file}: unknown layer {layer!r}; known: {', '.join(LAYERS)}")
    return Upstream(
        home=home,
        licence=_licence(file, _typed(file, "licence", table["licence"], dict)),
        entry=tuple(_typed(file, "entry", script, str) for script in entry),
        layers={key: _typed(file, key, value, str) for key, value in layers.items()},
        **values,
    )


def _licence(file: Path, table: dict[str, Any]) -> Licence:
    for key in table:
        if key not in ("spdx", "note"):
            raise CorruptError(f"{file}: unknown key 'licence.{key}'; known: note, spdx")
    if "spdx" not in table:
        raise CorruptError(f"{file}: the key 'licence.spdx' is missing")
    return Licence(**{k: _typed(file, f"licence.{k}", v, str) for k, v in table.items()})


def _typed(file: Path, key: str, value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise CorruptError(f"{file}: {key} is {value!r}, expected a {kind.__name__}")
    return value


def _parse_toml(text: str) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib

        return tomllib.loads(text)
    import tomlkit

    return tomlkit.parse(text).unwrap()
