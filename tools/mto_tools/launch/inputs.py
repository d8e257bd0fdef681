"""The sources of the numbers: the patched checkout, the data set, software and hardware."""

from __future__ import annotations

import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from mto_tools.errors import MissingError, MtoError, RefusedError
from mto_tools.launch.digits import lay_out
from mto_tools.launch.needs import package
from mto_tools.patchset.apply import apply
from mto_tools.patchset.git import Git
from mto_tools.patchset.lock import open_upstream
from mto_tools.patchset.locks import Say
from mto_tools.patchset.status import EDITED, status
from mto_tools.upstreams.recipe import Data, Recipe
from mto_tools.upstreams.upstream import fill


@dataclass(frozen=True)
class Inputs:
    """What the runs start from."""

    checkout: Path
    data: Path
    images: int  # of an epoch
    cwd: Path  # where the scripts are started
    versions: dict[str, str]


def prepare(
    home: Path, name: str, recipe: Recipe, data: Path | None, say: Say, *, allow_edited: bool
) -> Inputs:
    """Apply the series of `name` and make the built-in data, where either is needed.

    Raises:
        RefusedError: The checkout was edited since the series was applied; not if `allow_edited`.
        MissingError, CorruptError: The series cannot be applied, or there is no data.
    """
    checkout, commits = ready(home, name, say, allow_edited=allow_edited)
    data = data.expanduser().absolute() if data else default_data(home, checkout, recipe.data, say)
    images, cwd = count_images(recipe.data, data, checkout)
    found = {**versions(("torch", "mto-core", *recipe.needs)), **commits}
    return Inputs(checkout, data, images, cwd, found)


def ready(home: Path, name: str, say: Say, *, allow_edited: bool) -> tuple[Path, dict[str, str]]:
    """Apply the series of `name` where that is needed; return checkout and commits."""
    upstream = open_upstream(home, name, say)
    found = status(upstream, say)
    repo = Path(found.repo)
    if found.word == EDITED:
        edited = ", ".join(found.edited) or found.detail
        commit = f"{found.head}, edited: {edited}"
        if not allow_edited:
            stash = Git(repo).command("stash", "push", "--", *found.edited)
            aside = f"{stash}    (git stash pop brings them back), or "
            raise RefusedError(
                f"{repo} was edited since the series was applied: {edited[:300]}; "
                "the report would not say what was run",
                hint=f"{aside if found.edited else ''}the same command with --allow-edited",
            )
    else:
        commit = apply(upstream, say).commit
    return repo, {"mto commit": _head(home), f"{name} pin": upstream.pin, f"{name} commit": commit}


def _head(home: Path) -> str:
    git = Git(home)
    try:
        git.require_toplevel()
        return git.text(
            "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty", convert=True
        )
    except MtoError as error:  # such as a clone that another user owns
        return f"unknown: {error.message}"


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Versions of Python and of packages, and the hardware."""
    import torch

    gpus = torch.cuda.device_count()
    cuda = f"{gpus} x {torch.cuda.get_device_name(0)} (CUDA {torch.version.cuda})" if gpus else ""
    return {
        "python": platform.python_version(),
        **{name: package(name).version or "not installed" for name in packages},
        "system": platform.platform(),
        "GPU": cuda or "none",
    }


def count_images(spec: Data, data: Path, checkout: Path) -> tuple[int, Path]:
    """Count the images that the recipe's list names, or else that an ImageFolder reads.

    Returns:
        Their number, and the folder to start the recipe in: beside the data if a relative list is
        there, else the checkout.

    Raises:
        MissingError: There is no image, or no list.
    """
    from torchvision.datasets import ImageFolder

    hint = "--data DIR of images, or no --data at all for the built-in ones"
    if not spec.listing:
        folder = data / spec.images
        try:
            images = len(ImageFolder(str(folder), allow_empty=True))
        except FileNotFoundError:  # no folder of a class
            images = 0
        if not images:
            raise MissingError(
                f"data folder {folder} does not exist, or has no CLASS/*.png, .jpg … that an "
                "ImageFolder reads",
                hint=hint,
            )
        return images, checkout
    listing = spec.listing.format(data=data, phase="train")
    beside = spec.started_beside_data and (data.parent / listing).is_file()
    cwd = data.parent if beside else checkout
    if not (cwd / listing).is_file():
        where = f", nor in {data.parent}" if spec.started_beside_data else ""
        raise MissingError(
            f"{cwd / listing}, a line for each image of {data}, is not there{where}",
            hint=f"{hint}; docs/recipes.md says what is in the list",
        )
    return sum(1 for line in (cwd / listing).read_bytes().splitlines() if line.strip()), cwd


def default_data(home: Path, checkout: Path, spec: Data, say: Say) -> Path:
    """Make the built-in data set once, in `home/data`, and return its folder.

    Raises:
        MissingError: The script that makes it failed, for example because of foreign files.
    """
    data = home / "data" / spec.name
    done = home / "data" / f".{spec.name}.done"
    if not spec.make:
        data /= "images"  # lists may be written beside it
    if done.is_file() and (data / spec.images).is_dir():  # the mark may outlive the data
        return data
    say(f"making the data set {data}")
    data.parent.mkdir(parents=True, exist_ok=True)
    if not spec.make:
        lay_out(spec, data, per_class=8)
    else:
        command = [sys.executable, *fill(spec.make, {"data": data})]
        made = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
        if made.returncode:
            raise MissingError(
                f"the data set {data} could not be made: {(made.stderr or made.stdout).strip()}",
                hint=f"move {data} away, or name a data set with --data DIR",
            )
    done.touch()
    return data
