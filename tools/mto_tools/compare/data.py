"""The data set of a comparison: the built-in one, or the user's, checked before it is used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from mto_tools.compare.run import environment
from mto_tools.errors import MissingError
from mto_tools.launch.digits import lay_out
from mto_tools.patchset.locks import Say
from mto_tools.upstreams.recipe import Data
from mto_tools.upstreams.templates import fill


def start_folder(spec: Data, data: Path, checkout: Path) -> Path:
    """Where the recipe is started: beside the data if its list is there, else in the checkout."""
    listing = spec.listing.format(data=data, phase="train")
    beside = spec.started_beside_data and (data.parent / listing).is_file()
    return data.parent if beside else checkout


def check_data(spec: Data, data: Path, upstream: str) -> None:
    """Raise `MissingError` unless `data` is laid out as the recipe needs it."""
    folder = data / spec.images
    mend = f"mto compare {upstream}    (uses the built-in data), or --data DIR of an ImageFolder"
    if not data.is_dir():
        raise MissingError(f"data folder {data} does not exist", hint=mend)
    if not folder.is_dir():
        raise MissingError(f"data folder {data} has no subfolder {spec.images}/", hint=mend)
    if not spec.listing and not _image_folder(folder):
        raise MissingError(
            f"data folder {folder} holds no image that an ImageFolder reads: CLASS/*.png, .jpg, …",
            hint=mend,
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
        lay_out(spec, data, spec.per_class)
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
