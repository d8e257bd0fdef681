"""A throw-away repository that borrows the objects of others and knows the source's refs.

An upgrade is rehearsed here. The user's clone and a local mirror lend their objects as alternates,
and everything that has to be fetched is fetched into this repository: neither of them gets an
object, a ref or a file. A ref is resolved at the source, never in the user's clone.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mto_tools.errors import MissingError
from mto_tools.patchset.checkout import DATE, embedded_commit, exists, open_clone
from mto_tools.patchset.git import Git
from mto_tools.patchset.lock import read_lock
from mto_tools.patchset.locks import Say
from mto_tools.patchset.sources import Source, cannot_fetch, find_source, init_with_alternates
from mto_tools.patchset.tree_diff import commit_tree
from mto_tools.upstreams.upstream import OID, Upstream

_FETCH = (
    *("fetch", "--quiet", "--no-auto-maintenance", "--no-write-fetch-head"),
    *("--no-recurse-submodules", "--no-tags", "--update-head-ok"),
)


@dataclass(frozen=True)
class Scratch:
    """The throw-away repository of one upgrade."""

    git: Git  # its branches, tags and HEAD are those of a source that was fetched
    upstream: Upstream
    source: Source | None  # where the target comes from; None for an embedded recipe

    def resolve(self, ref: str) -> str:
        """Return the full OID of the commit that `ref` names in the source.

        A ref is a branch, tag, commit, `refs/...`, HEAD or @, with git's suffixes such as `~2`; or
        "embedded", for an embedded recipe as its folder is.

        Raises:
            MissingError: The source has no such commit.
        """
        name, source = self.upstream.name, self.source
        if source is None:
            if ref == "embedded":
                return embedded_commit(self.upstream, self.git)
            found = self.git.resolve(f"{ref}^{{commit}}") if re.fullmatch(OID, ref) else ""
        elif source.kind == "repository":
            found = _in_repository(Git(source.value), ref)
        else:
            found = self._fetched(ref, source)
        if not found:
            where, hint = self.upstream.path, f"mto upgrade {name} --to embedded"
            if source:
                where = source.shown
                hint = f"git ls-remote {where} shows its refs; --source names another, as a fork"
            raise MissingError(f"{where} has no branch, tag or commit {ref!r} of {name}", hint=hint)
        return found

    def _fetched(self, ref: str, source: Source) -> str:
        if re.fullmatch(r"refs/[^~^:@{]+", ref):
            self.git.try_run(*_FETCH, "--", source.value, f"+{ref}:{ref}")
        found = _in_repository(self.git, ref)
        # The clone lends its own commits, too: only what the source has counts.
        if found and self.git.text("for-each-ref", "--count=1", "--contains", found):
            return found
        if not re.fullmatch(OID, ref):
            return ""
        # A commit that no ref leads to. An empty repository asks, so the source decides.
        with tempfile.TemporaryDirectory(dir=self.git.folder) as folder:
            empty = init_with_alternates(Path(folder), [])
            if not empty.ok(*_FETCH, "--depth=1", "--", source.value, ref):
                return ""
            self.git.run(*_FETCH, "--update-shallow", folder, ref)
        return ref if self.git.resolve(f"{ref}^{{commit}}") == ref else ""


@contextmanager
def open_scratch(
    upstream: Upstream, say: Say, source: str | None = None, repo: Path | None = None
) -> Iterator[Scratch]:
    """Give a repository that has the pin and everything the source has.

    `source` and `repo`, the user's clone, are by default those of `mto checkout`.

    Raises:
        MissingError: The source cannot be reached, or nobody has the pin.
    """
    found = None if upstream.source == "embedded" else find_source(upstream, source)
    lenders = [open_clone(upstream, repo)] if repo or exists(upstream.checkout) else []
    if found is None or found.kind == "repository":
        lenders.append(Git(found.value if found else upstream.home))
    lenders = [git for git in lenders if git.toplevel() or git.resolve("HEAD")]
    with tempfile.TemporaryDirectory(prefix="mto-upgrade-") as folder:
        git = init_with_alternates(Path(folder), lenders)
        if found and found.kind != "repository":
            _fetch_all(git, found, upstream, say)
        _require_pin(git, upstream)
        yield Scratch(git, upstream, found)


def _in_repository(git: Git, ref: str) -> str:
    """Resolve a ref as a person means it: branches before tags before git's own search."""
    names = (f"refs/heads/{ref}", f"refs/tags/{ref}", ref, f"refs/remotes/origin/{ref}")
    return next((oid for name in names if (oid := git.resolve(f"{name}^{{commit}}"))), "")


def _fetch_all(git: Git, source: Source, upstream: Upstream, say: Say) -> None:
    say(f"{upstream.name}: fetching branches and tags from {source.shown}")
    refs = ("+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")
    deeper = ("--unshallow",) if (git.git_dir() / "shallow").exists() else ()
    rc, _, err = git.try_run(*_FETCH, *deeper, "--", source.value, *refs)
    if rc:
        raise cannot_fetch(upstream, source, err)
    git.try_run(*_FETCH, "--", source.value, "+HEAD:refs/source/HEAD")
    # HEAD is the source's. A bundle may have none; then the name must not stand for anything else.
    if head := git.resolve("refs/source/HEAD^{commit}"):
        git.run("update-ref", "--no-deref", "HEAD", head)
    else:
        git.run("symbolic-ref", "HEAD", "refs/source/none")


def _require_pin(git: Git, upstream: Upstream) -> None:
    """See that the pin is there; that of an embedded recipe is written from our own history."""
    if upstream.source == "embedded":
        embedded_commit(upstream, git)
        lock = read_lock(upstream)
        if lock and git.resolve(f"{lock.base_tree}^{{tree}}"):
            commit_tree(git, lock.base_tree, [], f"{upstream.name}: embedded recipe", DATE)
    if not git.resolve(f"{upstream.pin}^{{commit}}"):
        raise MissingError(
            f"{upstream.name}: neither clone nor source has its pin {upstream.pin}",
            hint=f"mto checkout {upstream.name}; between git stash and git stash pop where "
            "an embedded recipe is edited",
        )
