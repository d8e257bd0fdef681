"""Proves of a series what this project promises: it only inserts, and holds no upstream text."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from mto_tools.errors import CorruptError, MtoError
from mto_tools.patchset.git import Git
from mto_tools.patchset.lock import load_series, rebuild
from mto_tools.patchset.series import FilePatch, Patch, PatchFormatError, Problem, parse
from mto_tools.patchset.sources import init_with_alternates
from mto_tools.upstreams.upstream import Upstream, load_upstream

SHORTEST = 20  # inserted lines of so many characters must not equal an upstream line
_LICENCE = re.compile(r"(licen[cs]e|copying|notice)\b[^/]*", re.IGNORECASE)


@dataclass
class Linted:
    """The result for one upstream's folder."""

    name: str  # of the upstream
    problems: list[Problem] = field(default_factory=list)
    patches: int = 0  # number of patch files
    inserted: int = 0  # number of inserted lines
    unchecked: list[str] = field(default_factory=list)  # checks not possible here, and why

    def problem(self, file: str, line: int, reason: str) -> None:
        """Note a problem at a line of a file of the folder."""
        self.problems.append(Problem(f"patches/{self.name}/{file}", line, reason))


def lint(home: Path, name: str, repo: Path | None = None) -> Linted:
    """Check `patches/NAME`, against the clone `repo` if there is one; write nothing, anywhere."""
    linted = Linted(name)
    try:
        upstream = load_upstream(home, name)
        files = upstream.patch_files()
    except MtoError as error:
        linted.problem("upstream.toml", 1, error.message)
        return linted
    linted.patches = len(files)
    patches = []
    for file in files:
        try:
            patches.append(patch := parse(file.read_bytes(), file.name))
        except PatchFormatError as error:
            linted.problem(file.name, error.problem.line, error.problem.reason)
            continue
        linted.inserted += patch.inserted
        if not patch.body:
            linted.problem(file.name, 2, "the message does not say why: write a paragraph below it")
    try:
        load_series(upstream)
    except MtoError as error:
        linted.problem("lock", 1, error.message)
    git, missing = Git(repo or upstream.checkout), ""
    if not git.folder.is_dir() or not git.is_toplevel():
        missing = f"no clone at {git.folder} (mto checkout {name})"
    elif not git.resolve(f"{upstream.pin}^{{commit}}"):
        missing = f"{git.folder} lacks {upstream.pin}"
    if not missing:
        _compare_with_clone(linted, upstream, patches, git)
    elif patches:
        linted.unchecked.append(f"upstream text and rebuild: {missing}")
    return linted


def _compare_with_clone(linted: Linted, upstream: Upstream, patches: list[Patch], git: Git) -> None:
    names = git.text("ls-tree", "--name-only", "-z", upstream.pin).split("\0")
    if not upstream.licence and (found := [name for name in names if is_licence(name)]):
        reason = f"names no licence, but the pin has {', '.join(found)}"
        linted.problem("upstream.toml", 1, f"{reason}: licence.spdx is missing")
    for patch in patches:
        for path, number, _ in copied_lines(git, upstream.pin, patch.files):
            reason = f"upstream has this line too ({path}): write it in your words"
            linted.problem(patch.name, number, reason)
    if linted.problems:
        linted.unchecked.append("rebuild: not before the problems above are solved")
        return
    with tempfile.TemporaryDirectory(prefix="mto-lint-") as folder:
        scratch = init_with_alternates(Path(folder), [git])
        try:
            rebuild(scratch, load_series(upstream), upstream.folder)
        except MtoError as error:
            linted.problem("lock", 1, error.message)


def copied_lines(git: Git, commit: str, files: Iterable[FilePatch]) -> list[tuple[str, int, bytes]]:
    """Return (path, line of the patch file, text) of inserted lines that upstream has, too.

    A line counts wherever in `commit` it stands, spaces around aside.
    """
    lines = [
        (file.path, number, line.strip())
        for file in files
        for hunk in file.hunks
        for number, line in enumerate(hunk.lines, hunk.where + 1)
        if len(line.strip()) >= SHORTEST
    ]
    if not lines:
        return []
    flags = ("-F", "-h", "-a", "--no-color", "--no-line-number", "--no-column", "--no-textconv")
    wanted = b"\n".join(sorted({line for _, _, line in lines}))
    # A blob that a clone lacks is no text we could have copied: never ask a promisor remote for it.
    local = git.with_env(GIT_NO_LAZY_FETCH="1")
    rc, out, err = local.try_run("grep", *flags, "-f", "-", commit, "--", input=wanted)
    if rc > 1:
        raise CorruptError(f"git grep failed in {git.folder}: {err.strip()}")
    found = set(map(bytes.strip, out.split(b"\n")))
    return [line for line in lines if line[2] in found]


def is_licence(path: str) -> bool:
    """Whether a path is that of a licence file in the top folder."""
    return bool(_LICENCE.fullmatch(path))
