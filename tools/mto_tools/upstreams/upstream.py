"""`patches/NAME/upstream.toml`: an upstream's source and pin; and the base of all tables there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from string import Formatter
from typing import Annotated, Any, Literal, TypeVar

import tomlkit
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from tomlkit.exceptions import TOMLKitError

from mto_tools.errors import CorruptError, MissingError, MtoError

LAYERS = ("compat", "mto", "deepspeed")
OID = r"([0-9a-f]{40}|[0-9a-f]{64})"
_PATCH = re.compile(r"(\d{4})-(compat|mto|deepspeed)(-[a-z0-9]+)*\.patch")
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
_Model = TypeVar("_Model", bound=BaseModel)


class Table(BaseModel):
    """A TOML table: immutable, every key known."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def check(template: str, *known: str) -> str:
    """Return a template, words with names in braces, whose names are all known.

    Raises:
        ValueError: Another name, or braces that do not close.
    """
    if unknown := {name for _, name, _, _ in Formatter().parse(template) if name} - set(known):
        names = ", ".join(f"{{{name}}}" for name in sorted(unknown))
        raise ValueError(f"unknown {names} in {template!r}; known: {', '.join(sorted(known))}")
    return template


def of(*known: str) -> AfterValidator:
    """Annotate a field: a template of these names."""
    return AfterValidator(lambda template: check(template, *known))


def some(values: Any) -> Any:
    """Refuse an empty collection; pydantic's `min_length` hides an error inside of it."""
    if not values:
        raise ValueError("must hold at least one")
    return values


def fill(template: str, values: Mapping[str, object]) -> list[str]:
    """Split a template into words, then put the values in: a value with a space is one word."""
    return [word.format(**values) for word in template.split()]


class Licence(Table):
    """The licence of the upstream's code: SPDX expression, and a remark."""

    spdx: str
    note: str = ""


class Upstream(Table):
    """One pinned upstream."""

    model_config = ConfigDict(strict=True)  # or the file could name another home

    home: Path  # root of the mto clone
    name: str  # folder name under `patches/` and `upstream/`
    source: Literal["git", "embedded"] = "git"  # embedded: kept inside the mto clone, at `path`
    # As on the public host; it and `url` are "" for an embedded upstream.
    repository: Annotated[str, Field(pattern=r"^([\w.-]+/[\w.-]+)?$", title="owner/name")] = ""
    url: str = ""  # default source
    path: str = ""  # relative to `home`
    # The base commit.
    pin: Annotated[str, Field(pattern=f"^{OID}$", title="the full OID of a commit")]
    # Day of that commit, for a person; an upgrade rewrites it.
    pin_date: Annotated[str, Field(pattern=r"^(\d{4}-\d\d-\d\d)?$", title="a day: 2024-03-01")] = ""
    licence: Licence | None = None

    @model_validator(mode="after")
    def _complete(self) -> Upstream:
        for key in ("repository", "url") if self.source == "git" else ("path",):
            if not getattr(self, key):
                raise ValueError(f"source = {self.source!r} needs the key {key!r}")
        return self

    @property
    def folder(self) -> Path:
        """Where pin, lock and series stand."""
        return self.home / "patches" / self.name

    @property
    def checkout(self) -> Path:
        """Where the clone stands unless `--repo` says otherwise."""
        return self.home / "upstream" / self.name

    def patch_files(self, *, numbered: bool = True) -> list[Path]:
        """Return the series in order.

        Args:
            numbered: Refuse missing and double numbers.

        Raises:
            CorruptError: A file name does not follow `000N-<layer>-<slug>.patch`, a number is
                missing or double, or a layer stands before one it builds on.
        """
        files = sorted(self.folder.glob("*.patch"))
        last = LAYERS[0]
        for number, file in enumerate(files, start=1):
            layer = layer_of(str(file))
            if LAYERS.index(layer) < LAYERS.index(last):
                raise CorruptError(f"{file}: layer {layer} must come before {last} in the series")
            last = layer
            if numbered and int(file.name[:4]) != number:
                raise CorruptError(
                    f"{file}: expected number {number:04d} in the series",
                    hint=f"git status -- {self.folder} shows a missing or added patch; if the "
                    f"series is as you want it: mto export {self.name} --from-patches renumbers it",
                )
        return files


def layer_of(file: str) -> str:
    """Return the layer in a patch file's name: compat, mto or deepspeed."""
    match = _PATCH.fullmatch(file.rpartition("/")[2])
    if not match:
        raise CorruptError(
            f"{file}: a patch is named 000N-<layer>-<slug>.patch, layer one of "
            f"{', '.join(LAYERS)}, slug of a-z, 0-9 and dashes"
        )
    return match[2]


def read_toml(
    file: Path, model: type[_Model], *, missing: type[MtoError] = CorruptError, **more: Any
) -> _Model:
    """Read a TOML file into a pydantic model.

    Args:
        file: The file.
        model: Its tables.
        missing: Raised where nothing is wrong but that keys are missing; all of them are named.
        more: Fields that the file does not hold.

    Raises:
        CorruptError: The file is not TOML, or a key is unknown or of the wrong type.
    """
    hint = f"git diff -- {file}"
    try:
        table = tomlkit.parse(file.read_text("utf-8")).unwrap()
        return model.model_validate({**more, **table})
    except (UnicodeDecodeError, TOMLKitError) as error:
        raise CorruptError(f"{file}: not TOML: {error}", hint=hint) from None
    except ValidationError as error:
        found = [(".".join(map(str, one["loc"])), one) for one in error.errors()]
    wrong = [one for one in found if one[1]["type"] != "missing"]
    if not wrong:
        names = ", ".join(f"'{where}'" for where, _ in found)
        raise missing(f"{file}: {names} is missing", hint=f"{hint}; mini's file has every key")
    where, first = wrong[0]
    what = f"{where} is {first['input']!r}: {first['msg']}"
    field = model.model_fields.get(where)
    if first["type"] == "string_pattern_mismatch" and field and field.title:
        what = f"{where} is {first['input']!r}, expected {field.title}"
    elif first["type"] == "extra_forbidden":
        what = f"unknown key {where!r}"
    elif first["type"] == "value_error":
        what = f"{where}: {first['msg']}".removeprefix(": ").replace("Value error, ", "")
    raise CorruptError(f"{file}: {what}", hint=hint)


def load_upstream(home: Path, name: str) -> Upstream:
    """Read `patches/NAME/upstream.toml`.

    Raises:
        MissingError: There is no upstream of that name.
        CorruptError: The file is not TOML, or a key is unknown, missing or of the wrong type.
    """
    file = home / "patches" / name / "upstream.toml"
    for folder in upstream_names(home):
        if folder != folder.lower() == name.lower():
            raise CorruptError(
                f"{home / 'patches' / folder}: the name of an upstream is in small letters",
                hint=f"git -C {shlex.quote(str(home / 'patches'))} mv {folder} {name.lower()}, and "
                "change name in its upstream.toml",
            )
    if not _NAME.fullmatch(name) or not file.is_file():
        known = ", ".join(upstream_names(home)) or "none"
        raise MissingError(
            f"there is no upstream {name!r}: {file} does not exist; known: {known}",
            hint="mto status lists them",
        )
    upstream = read_toml(file, Upstream, home=home)
    if upstream.name != name:
        raise CorruptError(f"{file}: name is {upstream.name!r}, but the folder is {name!r}")
    return upstream


def upstream_names(home: Path) -> list[str]:
    """Return the folders under `patches/` that hold an `upstream.toml`, sorted."""
    return sorted(file.parent.name for file in (home / "patches").glob("*/upstream.toml"))


def all_upstreams(home: Path) -> list[Upstream]:
    """Read every upstream, in the order of their names."""
    return [load_upstream(home, name) for name in upstream_names(home)]
