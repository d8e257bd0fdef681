"""A throw-away repository that sees the objects of others: what is tried in it leaves no trace.

An upgrade is rehearsed here. The user's clone and a local mirror lend their objects as alternates:
nothing is copied, and neither of them gets an object, a ref or a file.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mto_tools.errors import MissingError
from mto_tools.patchset.checkout import ensure_clone, open_clone
from mto_tools.patchset.embedded import DATE, embedded_commit
from mto_tools.patchset.git import Git
from mto_tools.patchset.locks import Say
from mto_tools.patchset.sources import Source, fetch_commit, find_source, source_hint
from mto_tools.patchset.transaction import clone_lock
from mto_tools.patchset.tree_diff import commit_tree
from mto_tools.upstreams.upstream import Upstream

SEEN = "refs/mto/source/"
"""Where the branches and tags of a source that is not on this machine are kept in the clone."""


@dataclass(frozen=True)
class Workshop:
    """A throw-away repository and where its history comes from.

    Attributes:
        git: The repository.
        history: The repository whose refs name the upstream's commits; None for an embedded one.
        prefix: Namespace of these refs.
        lenders: The repositories it sees.
    """

    git: Git
    history: Git | None
    prefix: str
    lenders: tuple[Path, ...]


@contextmanager
def open_workshop(
    upstream: Upstream, say: Say, source: str | None = None, repo: Path | None = None
) -> Iterator[Workshop]:
    """Give a repository that sees the pin and everything the source has.

    Args:
        upstream: The upstream.
        say: Told about a fetch.
        source: URL, path or bundle to take commits from; by default as for `mto checkout`.
        repo: The user's clone, if not under `upstream/`.

    Raises:
        MissingError: The source cannot be reached, or nobody has the pin.
    """
    clone = _clone(upstream, repo)
    history, prefix = None, "refs/"
    if upstream.source == "embedded":
        lenders = [clone, Git(upstream.home)]
    else:
        found = find_source(upstream, source)
        if found.kind == "repository":
            history = Git(found.value)
        else:
            clone = clone or ensure_clone(upstream, say, repo, source)
            _fetch_all(clone, found, upstream, say)
            history, prefix = clone, SEEN
        lenders = [clone, history]
    folders = [_objects(git) for git in lenders if git and git.ok("rev-parse", "--git-dir")]
    with tempfile.TemporaryDirectory(prefix="mto-upgrade-") as folder:
        git = make_borrower(Path(folder), folders)
        complete(git, upstream)
        yield Workshop(git, history, prefix, tuple(folders))


def make_borrower(folder: Path, objects: Sequence[Path]) -> Git:
    """Make an empty repository in `folder` that sees the object folders `objects`."""
    git = Git(folder)
    git.run("init", "--quiet", "--template=", ".")
    info = git.git_dir() / "objects" / "info"
    info.mkdir(exist_ok=True)
    (info / "alternates").write_text("".join(f"{path}\n" for path in dict.fromkeys(objects)))
    shallow = [path.parent / "shallow" for path in objects]
    known = {line for file in shallow if file.exists() for line in file.read_text().split()}
    # A commit is cut off only where nobody has its parents.
    cut = [oid for oid in sorted(known) if not _has_parents(git, oid)]
    if cut:
        (git.git_dir() / "shallow").write_text("".join(f"{oid}\n" for oid in cut))
    return git


def resolve_target(shop: Workshop, upstream: Upstream, ref: str) -> str:
    """Return the full OID of the commit `ref` names in the source.

    Raises:
        MissingError: The source has no such branch, tag or commit.
    """
    if upstream.source == "embedded":
        if ref == "embedded":
            return embedded_commit(upstream.home, upstream, shop.git)
        if oid := shop.git.resolve(f"{ref}^{{commit}}"):
            return oid
        raise MissingError(
            f"{upstream.name} is embedded and has no commit {ref!r}",
            hint=f"mto upgrade {upstream.name} --to embedded",
        )
    history = shop.history
    for name in (f"{shop.prefix}heads/{ref}", f"{shop.prefix}tags/{ref}", ref, f"origin/{ref}"):
        if history and (oid := history.resolve(f"{name}^{{commit}}")):
            return oid
    where = history.folder if history else upstream.url
    raise MissingError(
        f"{where} has no branch, tag or commit {ref!r} of {upstream.name}",
        hint="git ls-remote shows what there is; a fork is named with --source",
    )


def bring(git: Git, upstream: Upstream, commit: str, source: str | None) -> None:
    """Bring the accepted commit into the user's clone, so that `mto apply` needs no source."""
    if git.resolve(f"{commit}^{{commit}}"):
        return
    if upstream.source == "embedded":
        embedded_commit(upstream.home, upstream, git)
    else:
        fetch_commit(git, find_source(upstream, source), commit, upstream)


def _clone(upstream: Upstream, repo: Path | None) -> Git | None:
    try:
        return open_clone(upstream, repo)
    except MissingError:
        if repo:
            raise
        return None


def _objects(git: Git) -> Path:
    return Path(git.text("rev-parse", "--path-format=absolute", "--git-path", "objects"))


def _has_parents(git: Git, commit: str) -> bool:
    header = git.text("cat-file", "commit", commit, check=False).partition("\n\n")[0]
    parents = [line[7:] for line in header.splitlines() if line.startswith("parent ")]
    asked = "\n".join(parents).encode()
    return bool(header) and b"missing" not in git.run("cat-file", "--batch-check", input=asked)


def _fetch_all(clone: Git, source: Source, upstream: Upstream, say: Say) -> None:
    say(f"{upstream.name}: fetching branches and tags from {source.shown}")
    refs = (f"+refs/heads/*:{SEEN}heads/*", f"+refs/tags/*:{SEEN}tags/*", f"+HEAD:{SEEN}HEAD")
    flags = ("--quiet", "--no-tags", "--prune", "--no-auto-maintenance", "--no-write-fetch-head")
    with clone_lock(clone, say) as git:
        deeper = ("--unshallow",) if (git.common_dir() / "shallow").exists() else ()
        for more in dict.fromkeys((deeper, ())):
            rc, _, err = git.try_run("fetch", *flags, *more, "--", source.value, *refs)
            if rc == 0:
                return
    raise MissingError(
        f"cannot fetch {upstream.name} from {source.shown} ({source.origin}): "
        f"{' '.join(err.split()).replace(source.value, source.shown)}",
        hint=source_hint(upstream),
    )


def complete(git: Git, upstream: Upstream) -> None:
    """Write what no lender has: the commits of an embedded recipe, as it is and as it was pinned.

    Raises:
        MissingError: Nobody has the pin.
    """
    if upstream.source == "embedded":
        embedded_commit(upstream.home, upstream, git)
    if git.resolve(f"{upstream.pin}^{{commit}}"):
        return
    if upstream.source != "embedded":
        raise MissingError(
            f"neither {upstream.checkout} nor the source has the pin {upstream.pin}",
            hint=f"mto checkout {upstream.name}",
        )
    if not _from_own_history(git, upstream):
        raise MissingError(
            f"{upstream.name}: its pin {upstream.pin} is neither in {upstream.checkout} nor in the "
            f"history of {upstream.path}",
            hint=f"git stash, mto checkout {upstream.name}, git stash pop; then upgrade",
        )


def _from_own_history(git: Git, upstream: Upstream) -> bool:
    """Find the recipe as it was pinned among the commits of the mto clone."""
    home = Git(upstream.home)
    rc, out, _ = home.try_run("log", "--format=%H", "--", upstream.path)
    for commit in out.decode().split() if rc == 0 else ():
        tree = home.resolve(f"{commit}:{upstream.path}")
        message = f"{upstream.name}: embedded recipe"
        if tree and commit_tree(git, tree, [], message, DATE) == upstream.pin:
            return True
    return False
