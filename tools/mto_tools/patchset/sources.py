"""Where an upstream's commits come from: a URL, a local mirror or clone, a bundle.

Whatever the source, what is asked for is a full commit OID, so the contents are verified.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mto_tools.errors import CorruptError, MissingError
from mto_tools.patchset.git import Git, hide
from mto_tools.upstreams.upstream import Upstream

VARIABLE = "MTO_UPSTREAM_URL"


@dataclass(frozen=True)
class Source:
    """A place to fetch from."""

    value: str  # URL or path, template fields filled in
    origin: str  # who named it, for messages
    kind: str  # "url", "repository" (a local one) or "bundle"

    @property
    def shown(self) -> str:
        """The value without a password or token, for messages."""
        return hide(self.value)


def source_hint(upstream: Upstream) -> str:
    """One sentence on how to get an upstream, network or not."""
    return (
        f"three ways: a URL this machine reaches (mto checkout {upstream.name} --source URL), a "
        f"local mirror or clone (--source PATH, or for all of them "
        f"export {VARIABLE}='/mirrors/{{owner}}/{{repo}}.git'), or a bundle carried over by hand "
        f"(git bundle create {upstream.name}.bundle --all in a clone with network, then "
        f"--source {upstream.name}.bundle)"
    )


def find_source(upstream: Upstream, option: str | None = None) -> Source:
    """Say where to fetch from: the option, the variable of this upstream, the general one, the URL.

    The variable of simmim is MTO_UPSTREAM_URL_SIMMIM.

    Raises:
        MissingError: The value is neither a URL nor an existing path.
    """
    own = f"{VARIABLE}_{re.sub('[^A-Z0-9]', '_', upstream.name.upper())}"
    candidates = [
        (option, "--source"),
        (os.environ.get(own), own),
        (os.environ.get(VARIABLE), VARIABLE),
        (upstream.url, str(upstream.folder / "upstream.toml")),
    ]
    value, origin = next((value, who) for value, who in candidates if value)
    owner, _, repo = upstream.repository.partition("/")
    for key, text in (("owner", owner), ("repo", repo), ("name", upstream.name)):
        value = value.replace(f"{{{key}}}", text)
    path = Path(value).expanduser().absolute()
    if path.is_dir() and path.resolve() == upstream.home.resolve():
        path = upstream.checkout  # `--source .` in the clone of mto, which holds no upstream itself
    if path.exists():
        return Source(str(path), origin, "repository" if path.is_dir() else "bundle")
    if re.match(r"[^/]+:", value):  # as git tells them: a colon before the first slash
        return Source(value, origin, "url")
    raise MissingError(
        f"{origin} names {hide(value)!r} for {upstream.name}: neither a URL nor an existing path",
        hint=source_hint(upstream),
    )


def fetch_commit(git: Git, source: Source, commit: str, upstream: Upstream) -> None:
    """Bring `commit` with all its files, and no ref, into the repository `git` is bound to.

    A file the source itself lacks is passed over; `missing_files` names it afterwards.

    Raises:
        MissingError: The source cannot be reached, or does not hold the commit.
        CorruptError: The bundle is none, or breaks off.
    """
    if source.kind == "bundle":
        rc, _, err = git.try_run("bundle", "unbundle", source.value)
        if rc:
            raise CorruptError(
                f"{source.shown} ({source.origin}) cannot be used as a bundle for "
                f"{upstream.name}: {' '.join(err.split())}",
                hint=f"make it again: git bundle create {upstream.name}.bundle --all",
            )
    elif source.kind == "repository" and _lacks_files(mirror := Git(source.value), commit):
        _copy_incomplete(git, mirror, commit)
    else:
        _fetch(git, source, commit, upstream)
    if git.text("cat-file", "-t", commit, check=False) != "commit":
        raise MissingError(
            f"{source.shown} ({source.origin}) does not hold the commit {commit} of "
            f"{upstream.name}",
            hint=source_hint(upstream),
        )
    # History ends here where the parents did not come along.
    shallow = git.common_dir() / "shallow"
    known = shallow.read_text().split() if shallow.exists() else []
    if commit not in known and not _has_parents(git, commit):
        shallow.write_text("".join(f"{oid}\n" for oid in sorted({*known, commit})))


def _fetch(git: Git, source: Source, commit: str, upstream: Upstream) -> None:
    flags = ("--quiet", "--no-tags", "--no-auto-maintenance", "--no-write-fetch-head")
    # Cut in a clone that has its whole history only where the source's own history is cut.
    for depth in (["--depth=1"],) if _may_be_cut(git) else ([], ["--depth=1"]):
        fetch = ("fetch", *flags, "--no-recurse-submodules", *depth, "--", source.value, commit)
        rc, _, err = git.try_run(*fetch)
        if rc:
            raise cannot_fetch(upstream, source, err, f" {commit}")
        if git.ok("rev-list", "--quiet", commit, "--not", "--all"):
            return


def cannot_fetch(upstream: Upstream, source: Source, err: str, what: str = "") -> MissingError:
    """Return the error of a failed fetch; `err` is git's own reason."""
    return MissingError(
        f"cannot fetch {upstream.name}{what} from {source.shown} ({source.origin}): "
        f"{hide(' '.join(err.split()))}",
        hint=source_hint(upstream),
    )


def _may_be_cut(git: Git) -> bool:
    """Whether history may end at what is fetched: never in a clone that has all of its own."""
    empty = not git.text("for-each-ref", "--count=1") and not git.resolve("HEAD")
    return empty or (git.common_dir() / "shallow").exists()


def _lacks_files(mirror: Git, commit: str) -> bool:
    return mirror.ok("cat-file", "-e", commit) and bool(missing_files(mirror, commit))


def _copy_incomplete(git: Git, mirror: Git, commit: str) -> None:
    """Copy what a local repository does hold; a fetch would give up at the first lost object."""
    cut = f"--shallow {commit}\n" if _may_be_cut(git) or _may_be_cut(mirror) else ""
    flags = ("--revs", "--missing=allow-any", "--stdout", "--quiet")
    pack = mirror.run("pack-objects", *flags, input=f"{cut}{commit}\n".encode())
    git.run("index-pack", "--stdin", input=pack)


def missing_files(git: Git, commit: str) -> dict[str, str]:
    """Return path to OID of the files of `commit` whose blobs the repository lacks.

    A partial clone lacks nothing: git fetches the rest when it is needed.

    Raises:
        CorruptError: A folder's tree is missing: then the files below cannot even be named.
    """
    if git.ok("config", "--get-regexp", r"^(remote\..*\.promisor|extensions\.partialclone)$"):
        return {}
    rc, out, err = git.try_run("ls-tree", "-r", "-z", "--full-tree", commit)
    if rc:
        raise CorruptError(f"{git.folder}: the tree of {commit} is incomplete: {err.strip()}")
    entries = [e.split("\t", 1) for e in out.decode("utf-8", "surrogateescape").split("\0")[:-1]]
    blobs = {path: meta.split()[2] for meta, path in entries if " blob " in meta}
    asked = "\n".join(blobs.values()).encode()
    checked = set(git.text("cat-file", "--batch-check", input=asked).split("\n"))
    return {path: oid for path, oid in blobs.items() if f"{oid} missing" in checked}


def init_with_alternates(folder: Path, lenders: Sequence[Git]) -> Git:
    """Make an empty repository in `folder` that sees the objects of `lenders`."""
    path = ("rev-parse", "--path-format=absolute", "--git-path", "objects")
    objects = [Path(lender.text(*path)) for lender in lenders]
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


def _has_parents(git: Git, commit: str) -> bool:
    return git.ok("rev-list", "--quiet", "--no-walk", commit, f"{commit}^@")
