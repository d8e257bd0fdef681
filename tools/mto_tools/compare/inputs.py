"""The sources of the numbers: the patched checkout, the data set, software and hardware."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from mto_tools.compare.run import environment
from mto_tools.errors import MissingError, MtoError, RefusedError
from mto_tools.launch.digits import lay_out
from mto_tools.patchset.apply import apply
from mto_tools.patchset.git import Git
from mto_tools.patchset.lock import open_upstream
from mto_tools.patchset.locks import Say
from mto_tools.patchset.status import EDITED, status
from mto_tools.upstreams.recipe import Data
from mto_tools.upstreams.templates import fill


def ready(home: Path, name: str, say: Say, *, allow_edited: bool) -> tuple[Path, dict[str, str]]:
    """Apply the series of `name` where that is needed; `say` takes lines for the user.

    Returns:
        The checkout, and the commits that the numbers come from.

    Raises:
        RefusedError: The checkout was edited since the series was applied; not if `allow_edited`.
        MissingError, CorruptError: The series cannot be applied.
    """
    upstream = open_upstream(home, name, say)
    found = status(upstream, say)
    edited = ", ".join(found.edited) or found.detail
    if found.word != EDITED:
        commit = apply(upstream, say).commit
    elif allow_edited:
        commit = f"{found.head}, edited: {edited}"
    else:
        stash = ["git", "-C", found.repo, "stash", "push", "--", *found.edited]
        aside = f"{shlex.join(stash)}    (git stash pop brings them back), or "
        raise RefusedError(
            f"{found.repo} was edited since the series was applied: {edited[:300]}; "
            "the report would not say what was run",
            hint=f"{aside if found.edited else ''}mto compare {name} --allow-edited",
        )
    return Path(found.repo), {
        "mto commit": _head(home),
        f"{name} pin": upstream.pin,
        f"{name} commit": commit,
    }


def _head(home: Path) -> str:
    git = Git(home)
    try:
        if not git.is_toplevel():
            return "unknown: not a git clone"
    except MtoError as error:  # such as a clone that another user owns
        return f"unknown: {error.message}"
    edits = git.text("status", "--porcelain", "--untracked-files=no", convert=True)
    return git.resolve("HEAD") + (" with local edits" if edits else "")


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Versions of Python and of packages, and the hardware."""
    import torch

    installed = {d.metadata["Name"]: d.version for d in metadata.distributions()}
    gpus = torch.cuda.device_count()
    return {
        "python": platform.python_version(),
        **{name: installed.get(name, "not installed") for name in packages},
        "system": platform.platform(),
        "GPU": f"{gpus} x {torch.cuda.get_device_name(0)} (CUDA {torch.version.cuda})"
        if gpus
        else "none",
    }


def start_folder(spec: Data, data: Path, checkout: Path) -> Path:
    """Where the recipe is started: beside the data if its list is there, else in the checkout."""
    listing = spec.listing.format(data=data, phase="train")
    beside = spec.started_beside_data and (data.parent / listing).is_file()
    return data.parent if beside else checkout


def check_data(spec: Data, data: Path, upstream: str) -> None:
    """Raise `MissingError` unless `data` is laid out as the recipe needs it."""
    folder = data / spec.images
    if not (folder.is_dir() if spec.listing else _image_folder(folder)):
        images = "" if spec.listing else ", or has no CLASS/*.png, .jpg … that an ImageFolder reads"
        raise MissingError(
            f"data folder {folder} does not exist{images}",
            hint=f"mto compare {upstream}    (uses the built-in data), or --data DIR of images",
        )


def count_images(spec: Data, data: Path, cwd: Path, upstream: str) -> int:
    """Count the images that a recipe started in `cwd` trains on in one epoch.

    Raises:
        MissingError: The list that names them is not there.
    """
    if not spec.listing:
        return _image_folder(data / spec.images)
    listing = spec.listing.format(data=data, phase="train")
    path = cwd / listing
    if not path.is_file():
        where = f", nor is {data.parent / listing}" if spec.started_beside_data else ""
        raise MissingError(
            f"{path}, a line for each image of {data}, is not there{where}",
            hint=f"mto compare {upstream}    (uses the built-in data), or write the list; "
            "docs/recipes.md says what is in it",
        )
    with path.open("rb") as file:
        return sum(1 for line in file if line.strip())


def _image_folder(folder: Path) -> int:
    """Images that torchvision's ImageFolder, which the recipes use, finds in `folder`."""
    from torchvision.datasets import ImageFolder

    try:
        return len(ImageFolder(str(folder), allow_empty=True))
    except FileNotFoundError:  # no folder of a class
        return 0


def default_data(home: Path, where: Path, spec: Data, upstream: str, say: Say) -> Path:
    """Make the built-in data set once, in `home/data`, and return its folder.

    Raises:
        MissingError: The script that makes it failed, for example because of foreign files.
    """
    data = home / "data" / spec.name
    done = home / "data" / f".{spec.name}.done"
    if not spec.make:
        data /= "images"  # lists may be written beside it
    if done.is_file() and (data / spec.images).is_dir():  # the mark may outlive the data
        check_data(spec, data, upstream)
        return data
    say(f"making the data set {data}")
    data.parent.mkdir(parents=True, exist_ok=True)
    if not spec.make:
        lay_out(spec, data, per_class=8)
    else:
        script, *arguments = fill(spec.make, {"data": data})
        made = subprocess.run(
            [sys.executable, script, *arguments],
            cwd=where,
            env=environment(1),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode:
            raise MissingError(
                f"the data set {data} could not be made: {(made.stderr or made.stdout).strip()}",
                hint=f"move {data} away, or name a data set with --data DIR",
            )
    done.touch()
    return data
