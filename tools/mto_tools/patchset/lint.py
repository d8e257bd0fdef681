"""Proves of a series what this project promises: it only inserts, and holds no upstream text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mto_tools.errors import MtoError
from mto_tools.patchset.build import build_series, check_built
from mto_tools.patchset.git import Git
from mto_tools.patchset.lock import lock_path, read_lock, verify
from mto_tools.patchset.parser import parse
from mto_tools.patchset.series import Patch, PatchFormatError, Problem
from mto_tools.upstreams.upstream import Upstream, load_upstream

SHORTEST = 20
"""Inserted lines of so many characters must not equal an upstream line."""
_BATCH = 256


@dataclass
class Linted:
    """What was found in one upstream's folder.

    Attributes:
        name: The upstream.
        problems: Each with file and line.
        patches: Number of patch files.
        inserted: Number of inserted lines.
        unchecked: What could not be checked here, and why.
    """

    name: str
    problems: list[Problem] = field(default_factory=list)
    patches: int = 0
    inserted: int = 0
    unchecked: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return it for `--json`."""
        return {**asdict(self), "ok": not self.problems}


def lint(home: Path, name: str, repo: Path | None = None) -> Linted:
    """Check `patches/NAME`, against its clone where there is one.

    Args:
        home: Root of the mto clone.
        name: The upstream.
        repo: Its clone; by default the one under `upstream/`.
    """
    linted = Linted(name)
    folder = home / "patches" / name
    toml = f"patches/{name}/upstream.toml"  # whatever was given for a name
    try:
        upstream = load_upstream(home, name)
        files = upstream.patch_files()
    except MtoError as error:
        linted.problems.append(Problem(toml, 1, error.message))
        return linted
    patches = []
    for file in files:
        where = str(file.relative_to(home))
        try:
            patch = parse(file.read_bytes(), file.name)
        except PatchFormatError as error:
            linted.problems += [Problem(where, p.line, p.reason) for p in error.problems]
            continue
        patches.append(patch)
        if not patch.body:
            linted.problems.append(
                Problem(where, 2, "the message does not say why: write a paragraph below it")
            )
    linted.patches = len(files)
    linted.inserted = sum(patch.inserted for patch in patches)
    try:
        _against_lock(upstream, patches if len(patches) == len(files) else None)
    except MtoError as error:
        where = str(lock_path(folder).relative_to(home))
        linted.problems.append(Problem(where, 1, error.message))
    _against_clone(linted, upstream, patches, Git(repo or upstream.checkout))
    return linted


def upstream_lines(git: Git, commit: str, wanted: Iterable[bytes]) -> set[bytes]:
    """Return those of `wanted` that are lines of any file of `commit`, spaces around aside."""
    left, found = set(wanted), set()
    for text in _texts(git, commit) if left else ():
        found |= left.intersection(map(bytes.strip, text.split(b"\n")))
    return found


def _against_lock(upstream: Upstream, patches: Sequence[Patch] | None) -> None:
    lock = read_lock(upstream)
    if lock is None:
        return
    verify(lock, upstream)
    for patch, locked in zip(patches or (), lock.patches, strict=False):
        text = [(f.path, f.mode, None if f.is_new else f.before, f.after) for f in patch.files]
        told = [(f.path, f.mode, f.before, f.after) for f in locked.touched]
        if text != told:
            raise MtoError(f"{patch.name}: its index lines name other blobs than the lock")


def _against_clone(linted: Linted, upstream: Upstream, patches: Sequence[Patch], git: Git) -> None:
    if not patches:
        return
    if not git.folder.is_dir() or not git.is_toplevel():
        linted.unchecked.append(
            f"upstream text and rebuild: no clone at {git.folder} (mto checkout {upstream.name})"
        )
        return
    if not git.resolve(f"{upstream.pin}^{{commit}}"):
        linted.unchecked.append(f"upstream text and rebuild: {git.folder} lacks {upstream.pin}")
        return
    where = f"patches/{upstream.name}"
    long = [line.strip() for patch in patches for line in _inserted(patch)]
    copied = upstream_lines(git, upstream.pin, (line for line in long if len(line) >= SHORTEST))
    for patch in patches:
        for file in patch.files:
            for hunk in file.hunks:
                for number, line in enumerate(hunk.lines, hunk.where + 1):
                    if line.strip() in copied:
                        reason = f"upstream has this line too ({file.path}): write it in your words"
                        linted.problems.append(Problem(f"{where}/{patch.name}", number, reason))
    if linted.problems:
        linted.unchecked.append("rebuild: not before the problems above are solved")
        return
    lock = read_lock(upstream)
    if lock is None:
        return
    try:
        named = [(file.name, file.read_bytes()) for file in upstream.patch_files()]
        check_built(build_series(git, upstream.pin, named), lock, lock_path(upstream.folder))
    except MtoError as error:
        linted.problems.append(Problem(f"{where}/lock", 1, error.message))


def _inserted(patch: Patch) -> Iterator[bytes]:
    return (line for file in patch.files for hunk in file.hunks for line in hunk.lines)


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
