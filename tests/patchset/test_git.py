"""A folder that is no clone is told as what it is."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from mto_tools.errors import CorruptError
from mto_tools.patchset.git import Git


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (["init", "-q", "--bare", "."], "a bare repository"),
        (["--version"], "not a git clone"),
        (["init", "-q", ".."], "a folder inside"),
    ],
)
def test_what_is_no_clone_is_told_as_what_it_is(
    tmp_path: Path, make: list[str], words: str
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    subprocess.run(["git", *make], cwd=folder, check=True, capture_output=True)
    with pytest.raises(CorruptError, match=words) as caught:
        Git(folder).require_toplevel()
    assert str(folder) in caught.value.message
