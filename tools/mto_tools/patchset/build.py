"""Build the trees and commits of a series, away from every work tree.

Each patch goes into a temporary index by `git apply --cached`, becomes a tree and then a commit
whose author, date and message are fixed: the same series gives the same OIDs in every clone.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mto_tools.errors import CorruptError
from mto_tools.patchset.git import Git
from mto_tools.patchset.lock import Lock, LockedPatch, Touched, sha256
from mto_tools.upstreams.upstream import layer_of

_REGULAR = ("100644", "100755")
_IDENTITY = {
    "GIT_AUTHOR_NAME": "mto",
    "GIT_AUTHOR_EMAIL": "mto@invalid",
    "GIT_COMMITTER_NAME": "mto",
    "GIT_COMMITTER_EMAIL": "mto@invalid",
}


@contextmanager
def temporary_index(git: Git) -> Iterator[Git]:
    """Give the same repository with an empty index of its own, removed afterwards."""
    private = git.git_dir() / "mto"
    private.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="index-", dir=private))
    try:
        yield git.with_env(GIT_INDEX_FILE=str(folder / "index"))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_commit(git: Git, tree: str, parents: Sequence[str], message: str, seconds: int) -> str:
    """Write a commit with our fixed identity at `seconds` since 1970, UTC; return its OID."""
    date = {"GIT_AUTHOR_DATE": f"@{seconds} +0000", "GIT_COMMITTER_DATE": f"@{seconds} +0000"}
    args = [arg for parent in parents for arg in ("-p", parent)]
    return git.text(
        "commit-tree", tree, *args, input=f"{message}\n".encode(), env={**_IDENTITY, **date}
    )


def apply_patch(git: Git, tree: str, patch: bytes, name: str) -> str:
    """Return the OID of `tree` with one patch in it.

    Args:
        git: Any clone that holds `tree` and the blobs the patch touches.
        tree: Tree or commit to apply to.
        patch: A whole patch file.
        name: Of the patch, for the error.

    Raises:
        CorruptError: git cannot read the patch, or it does not fit the tree.
    """
    # Not `temporary_index`: `mto lint` comes here without the clone's lock, and whoever takes that
    # lock removes every index of ours.
    with tempfile.TemporaryDirectory(prefix="mto-index-") as folder:
        index = git.with_env(GIT_INDEX_FILE=str(Path(folder) / "index"))
        index.run("read-tree", tree)
        # --unidiff-zero: without it git moves zero-context additions to the end of the file.
        rc, _, err = index.try_run(
            "apply", "--cached", "--unidiff-zero", "--whitespace=nowarn", "-", input=patch
        )
        if rc:
            words = " ".join(err.split())
            raise CorruptError(f"{name} does not apply to tree {git.resolve(tree)}: {words}")
        # Blobs that the source lacked are none of the series' business; the OID is the check.
        return index.text("write-tree", "--missing-ok")


def touched_files(git: Git, before: str, after: str, name: str) -> tuple[Touched, ...]:
    """Return the files that differ between two trees, in the order of their paths.

    Raises:
        CorruptError: A file is removed, changes its mode, or is no regular file.
    """
    raw = git.run("diff-tree", "-r", "-z", "--raw", "--no-renames", "--full-index", before, after)
    fields = raw.decode("utf-8", "surrogateescape").split("\0")[:-1]
    files = []
    for meta, path in zip(fields[::2], fields[1::2], strict=True):
        old_mode, new_mode, old, new, kind = meta.lstrip(":").split()
        if kind not in "AM" or new_mode not in _REGULAR or (kind == "M" and old_mode != new_mode):
            raise CorruptError(
                f"{name}: {path} goes from mode {old_mode} to {new_mode}; a series only inserts "
                "lines into regular files or adds such files"
            )
        files.append(Touched(path, new_mode, None if kind == "A" else old, new))
    return tuple(sorted(files, key=lambda file: file.path))


def build_series(git: Git, base: str, patches: Sequence[tuple[str, bytes]]) -> Lock:
    """Apply a series to `base` and return what came of it, as a lock.

    Only objects are written: no ref, no index, no file of the work tree. Commits are dated one
    second after another from the base commit's own date.

    Args:
        git: A clone that holds the base.
        base: Full OID of the base commit.
        patches: (file name, contents) in order.

    Raises:
        CorruptError: A patch does not apply, changes nothing, or does more than insert.
    """
    base_tree = git.resolve(f"{base}^{{tree}}")
    if not base_tree:
        raise CorruptError(f"{git.folder} does not hold the base commit {base}")
    tree, commit = base_tree, base
    date = int(git.text("log", "-1", "--format=%ct", base)) if patches else 0
    built = []
    for number, (name, data) in enumerate(patches, start=1):
        after = apply_patch(git, tree, data, name)
        touched = touched_files(git, tree, after, name)
        if not touched:
            raise CorruptError(f"{name} changes nothing")
        commit = write_commit(git, after, [commit], _message(name, data), date + number)
        built.append(LockedPatch(name, sha256(data), layer_of(name), after, commit, touched))
        tree = after
    return Lock(base, base_tree, tuple(built))


def _message(name: str, patch: bytes) -> str:
    """The patch's own message; its file name where it has none."""
    head = patch.partition(b"diff --git ")[0]
    match = re.search(rb"^Subject: \[PATCH\] (.+?)\n---\n", head, re.DOTALL | re.MULTILINE)
    return match[1].decode().strip() if match else name.removesuffix(".patch")


def check_built(built: Lock, lock: Lock, where: Path) -> None:
    """Compare what a series gave with what its lock promises.

    Raises:
        CorruptError: They differ; names the first object that does.
    """
    hint = (
        f"git checkout -- {where.parent}    # in the mto clone; or, if you wrote the patches: "
        f"mto export {where.parent.name} --from-patches"
    )

    def differ(what: str, expected: object, found: object) -> CorruptError:
        return CorruptError(f"{where}: {what}: expected {expected}, found {found}", hint=hint)

    if built.base_commit != lock.base_commit:
        raise differ("base commit", lock.base_commit, built.base_commit)
    if built.base_tree != lock.base_tree:
        raise differ("tree of the base commit", lock.base_tree, built.base_tree)
    for want, got in zip(lock.patches, built.patches, strict=False):
        wanted, given = ({f.path: f for f in patch.touched} for patch in (want, got))
        for path in sorted(wanted.keys() | given.keys()):
            if wanted.get(path) != given.get(path):
                raise differ(f"{want.file}: {path}", _brief(wanted, path), _brief(given, path))
        for part in ("file", "sha256", "layer", "tree", "commit"):
            if getattr(want, part) != getattr(got, part):
                raise differ(f"{want.file}: {part}", getattr(want, part), getattr(got, part))
    if len(built.patches) != len(lock.patches):
        raise differ("number of patches", len(lock.patches), len(built.patches))


def _brief(files: dict[str, Touched], path: str) -> str:
    file = files.get(path)
    return f"{file.mode} {file.before} -> {file.after}" if file else "untouched"
