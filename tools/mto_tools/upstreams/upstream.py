"""`patches/NAME/upstream.toml`: where an upstream comes from and which commit is pinned."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tomlkit
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from tomlkit.exceptions import TOMLKitError

from mto_tools.errors import CorruptError, MissingError

LAYERS = ("compat", "mto", "deepspeed")
OID = r"([0-9a-f]{40}|[0-9a-f]{64})"
_PATCH = re.compile(r"(\d{4})-(compat|mto|deepspeed)(-[a-z0-9]+)*\.patch")
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
_Model = TypeVar("_Model", bound=BaseModel)


class Table(BaseModel):
    """A TOML table: immutable, every key known and of its type."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Licence(Table):
    """The licence of the upstream's code: SPDX expression, and a remark."""

    spdx: str
    note: str = ""


class Upstream(Table):
    """One pinned upstream.

    Attributes:
        home: Root of the mto clone.
        name: Folder name under `patches/` and `upstream/`.
        source: "git", or "embedded" for a recipe kept inside the mto clone.
        repository: "owner/name" as on the public host; "" for an embedded upstream.
        url: Default source; "" for an embedded upstream.
        path: Folder of an embedded recipe, relative to `home`.
        pin: Full OID of the base commit.
        pin_date: Day of that commit, YYYY-MM-DD, for a person; an upgrade rewrites it.
        licence: Licence of the upstream's code.
        entry: Scripts a user starts, relative to the clone.
    """

    home: Path
    name: str
    source: Literal["git", "embedded"] = "git"
    repository: Annotated[
        str, Field(pattern=r"^([\w.-]+/[\w.-]+)?$", description="'owner/name'")
    ] = ""
    url: str = ""
    path: str = ""
    pin: Annotated[str, Field(pattern=f"^{OID}$", description="a full OID of 40 hex digits")]
    pin_date: Annotated[str, Field(pattern=r"^(\d{4}-\d\d-\d\d)?$", description="YYYY-MM-DD")] = ""
    licence: Licence | None = None
    entry: list[str] = []

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
        ranks = [LAYERS.index(layer_of(str(file))) for file in files]
        for number, file in enumerate(files, start=1):
            if numbered and int(file.name[:4]) != number:
                raise CorruptError(
                    f"{file}: expected number {number:04d} in the series",
                    hint=f"git status -- {self.folder} shows a missing or added patch; if the "
                    f"series is as you want it: mto export {self.name} --from-patches renumbers it",
                )
        for file, rank, before in zip(files[1:], ranks[1:], ranks, strict=False):
            if rank < before:
                raise CorruptError(
                    f"{file}: layer {LAYERS[rank]} must come before {LAYERS[before]} in the series"
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


def read_toml(file: Path, model: type[_Model], **more: Any) -> _Model:
    """Read a TOML file into a pydantic model; `more` are fields that the file does not hold.

    Raises:
        CorruptError: The file is not TOML, or a key is unknown, missing or of the wrong type.
    """
    try:
        table = tomlkit.parse(file.read_text("utf-8")).unwrap()
        return model.model_validate({**more, **table})
    except (UnicodeDecodeError, TOMLKitError) as error:
        raise CorruptError(f"{file}: not TOML: {error}", hint=f"git diff -- {file}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        described = model.model_fields.get(where)
        expected = described.description if described and described.description else first["msg"]
        what = {
            "extra_forbidden": f"unknown key {where!r}",
            "missing": f"the key {where!r} is missing",
            "value_error": first["msg"].removeprefix("Value error, "),
        }.get(first["type"], f"{where} is {first['input']!r}, expected: {expected}")
        raise CorruptError(f"{file}: {what}", hint=f"git diff -- {file}") from None


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
