"""Proves of a series what this project promises: it only inserts, and holds no upstream text."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mto_tools.errors import MtoError
from mto_tools.patchset.build import rebuild
from mto_tools.patchset.git import Git
from mto_tools.patchset.lock import Series, load_series
from mto_tools.patchset.parser import parse
from mto_tools.patchset.scratch_repo import objects_of
from mto_tools.patchset.series import Patch, PatchFormatError, Problem
from mto_tools.patchset.sources import init_with_alternates
from mto_tools.upstreams.upstream import Upstream, load_upstream

SHORTEST = 20
"""Inserted lines of so many characters must not equal an upstream line."""
_BATCH = 256
_LICENCE = re.compile(r"(licen[cs]e|copying|notice)\b.*", re.IGNORECASE)


@dataclass
class Linted:
    """The result for one upstream's folder.

    Attributes:
        name: The upstream.
        problems: Each with file and line.
        patches: Number of patch files.
        inserted: Number of inserted lines.
        unchecked: Checks that were not possible here, and why.
    """

    name: str
    problems: list[Problem] = field(default_factory=list)
    patches: int = 0
    inserted: int = 0
    unchecked: list[str] = field(default_factory=list)

    def problem(self, file: str, line: int, reason: str) -> None:
        """Note a problem at a line of a file of the folder."""
        self.problems.append(Problem(f"patches/{self.name}/{file}", line, reason))

    def as_dict(self) -> dict[str, Any]:
        """Return it for `--json`."""
        return {**asdict(self), "ok": not self.problems}


def lint(home: Path, name: str, repo: Path | None = None) -> Linted:
    """Check `patches/NAME`, against its clone where there is one; write nothing, anywhere.

    Args:
        home: Root of the mto clone.
        name: The upstream.
        repo: Its clone; by default the one under `upstream/`.
    """
    linted = Linted(name)
    try:
        upstream = load_upstream(home, name)
        files = upstream.patch_files()
    except MtoError as error:
        linted.problem("upstream.toml", 1, error.message)
        return linted
    patches = []
    for file in files:
        try:
            patch = parse(file.read_bytes(), file.name)
        except PatchFormatError as error:
            for problem in error.problems:
                linted.problem(file.name, problem.line, problem.reason)
            continue
        patches.append(patch)
        if not patch.body:
            linted.problem(file.name, 2, "the message does not say why: write a paragraph below it")
    linted.patches = len(files)
    linted.inserted = sum(patch.inserted for patch in patches)
    series = _against_lock(linted, upstream, patches if len(patches) == len(files) else ())
    git = Git(repo or upstream.checkout)
    if not git.folder.is_dir() or not git.is_toplevel():
        missing = f"no clone at {git.folder} (mto checkout {name})"
    elif not git.resolve(f"{upstream.pin}^{{commit}}"):
        missing = f"{git.folder} lacks {upstream.pin}"
    else:
        _licence(linted, upstream, git)
        _upstream_text(linted, upstream, patches, git)
        _rebuild(linted, upstream, series, git)
        return linted
    if patches:
        linted.unchecked.append(f"upstream text and rebuild: {missing}")
    return linted


def upstream_lines(git: Git, commit: str, wanted: Iterable[bytes]) -> set[bytes]:
    """Return those of `wanted` that are lines of any file of `commit`, spaces around aside."""
    left, found = set(wanted), set()
    for text in _texts(git, commit) if left else ():
        found |= left.intersection(map(bytes.strip, text.split(b"\n")))
    return found


def licence_files(git: Git, commit: str) -> dict[str, str]:
    """Return path to blob OID of the licence files in the top folder of a commit."""
    found = {}
    for entry in git.text("ls-tree", "-z", commit).split("\0")[:-1]:
        meta, path = entry.split("\t", 1)
        if meta.split(" ")[1] == "blob" and _LICENCE.fullmatch(path):
            found[path] = meta.split(" ")[2]
    return found


def _against_lock(linted: Linted, upstream: Upstream, patches: Sequence[Patch]) -> Series | None:
    try:
        series = load_series(upstream)
    except MtoError as error:
        linted.problem("lock", 1, error.message)
        return None
    for patch, locked in zip(patches, series.lock.patches, strict=False):
        text = [(f.path, f.mode, None if f.is_new else f.before, f.after) for f in patch.files]
        if text != [(f.path, f.mode, f.before, f.after) for f in locked.touched]:
            linted.problem("lock", 1, f"{patch.name}: its index lines name other blobs")
    return series


def _licence(linted: Linted, upstream: Upstream, git: Git) -> None:
    """Compare the licence in `upstream.toml` with the files of the pinned commit."""
    if not upstream.licence and (files := licence_files(git, upstream.pin)):
        reason = f"names no licence, but the pin has {', '.join(files)}: licence.spdx is missing"
        linted.problem("upstream.toml", 1, reason)


def _upstream_text(linted: Linted, upstream: Upstream, patches: Sequence[Patch], git: Git) -> None:
    lines = [
        (patch.name, number, line.strip(), file.path)
        for patch in patches
        for file in patch.files
        for hunk in file.hunks
        for number, line in enumerate(hunk.lines, hunk.where + 1)
        if len(line.strip()) >= SHORTEST
    ]
    copied = upstream_lines(git, upstream.pin, (line for _, _, line, _ in lines))
    for name, number, line, path in lines:
        if line in copied:
            reason = f"upstream has this line too ({path}): write it in your words"
            linted.problem(name, number, reason)


def _rebuild(linted: Linted, upstream: Upstream, series: Series | None, git: Git) -> None:
    if linted.problems or series is None:
        linted.unchecked.append("rebuild: not before the problems above are solved")
        return
    with tempfile.TemporaryDirectory(prefix="mto-lint-") as folder:
        try:
            rebuild(init_with_alternates(Path(folder), [objects_of(git)]), series, upstream.folder)
        except MtoError as error:
            linted.problem("lock", 1, error.message)


def _texts(git: Git, commit: str) -> Iterator[bytes]:
    """Yield the text files of a commit; blobs the clone lacks are no text we could have copied."""
    listed = git.text("ls-tree", "-r", "-z", commit)
    oids = sorted({entry.split("\t")[0].split(" ")[2] for entry in listed.split("\0")[:-1]})
    for start in range(0, len(oids), _BATCH):
        some = "\n".join(oids[start : start + _BATCH]).encode() + b"\n"
        # Never ask a promisor remote: lint works without a network.
        out, at = git.run("cat-file", "--batch", input=some, env={"GIT_NO_LAZY_FETCH": "1"}), 0
        while at < len(out):
            end = out.index(b"\n", at)
            head = out[at:end].split(b" ")
            at = end + 1
            if len(head) == 3:
                text = out[at : at + int(head[2])]
                at += len(text) + 1
                if head[1] == b"blob" and b"\0" not in text[:8000]:
                    yield text
