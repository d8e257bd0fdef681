"""A recipe kept inside the mto clone, as a git commit of its own.

The commit depends on the files' names and bytes only: not on the umask, the date, line-end
settings, or on whether mto itself is a git clone or an unpacked archive.
"""

from __future__ import annotations

from pathlib import Path

from mto_tools.errors import CorruptError, MissingError
from mto_tools.patchset.git import Git
from mto_tools.patchset.tree_diff import commit_tree, write_tree
from mto_tools.upstreams.upstream import Upstream

DATE = 1704067200  # 2024-01-01T00:00:00Z
_LITTER = frozenset({"__pycache__", ".git", ".DS_Store"})
_CACHES = ("_cache", ".pyc", ".pyo", ".swp", "~")


def embedded_files(home: Path, upstream: Upstream) -> list[str]:
    """Return the recipe's files, relative to its folder, in git's order.

    In a git clone these are the tracked files; elsewhere all but caches.

    Raises:
        MissingError: The folder is missing or empty.
    """
    folder = home / upstream.path
    names = {
        file.relative_to(folder).as_posix()
        for file in folder.rglob("*")
        if file.is_file() and not file.is_symlink() and not _is_litter(file.relative_to(folder))
    }
    git = Git(home)
    if names and git.is_toplevel():
        listed = git.run("ls-files", "-z", "--full-name", "--", upstream.path)
        prefix = upstream.path.strip("/") + "/"
        tracked = {
            name.removeprefix(prefix)
            for name in listed.decode("utf-8", "surrogateescape").split("\0")
        }
        names = names & tracked or names  # none is tracked while the recipe is being written
    if not names:
        raise MissingError(
            f"{upstream.name}: no file in {folder}", hint=f"git checkout -- {upstream.path}"
        )
    return sorted(names)


def _is_litter(path: Path) -> bool:
    return any(part in _LITTER or part.endswith(_CACHES) for part in path.parts)


def embedded_commit(home: Path, upstream: Upstream, repo: Git) -> str:
    """Write the recipe's blobs, tree and commit into `repo` and return the commit's OID.

    A file that begins with `#!` is executable, every other one is not.

    Args:
        home: The mto clone.
        upstream: An upstream with source = "embedded".
        repo: Any repository; gets objects, but no ref and no file.
    """
    folder = home / upstream.path
    names = embedded_files(home, upstream)
    paths = "".join(f"{folder / name}\n" for name in names)
    oids = repo.text(
        "hash-object",
        "-w",
        "--no-filters",
        "--stdin-paths",
        input=paths.encode("utf-8", "surrogateescape"),
    ).split()
    entries = {}
    for name, oid in zip(names, oids, strict=True):
        with (folder / name).open("rb") as stream:
            mode = "100755" if stream.read(2) == b"#!" else "100644"
        entries[name] = (mode, oid)
    tree = write_tree(repo, "", entries)
    return commit_tree(repo, tree, [], f"{upstream.name}: embedded recipe", DATE)


def require_pin(home: Path, upstream: Upstream, repo: Git) -> None:
    """Write the recipe's commit into `repo` and compare it with the pin.

    Raises:
        CorruptError: The folder is no longer what was pinned.
    """
    found = embedded_commit(home, upstream, repo)
    if found != upstream.pin:
        crlf = [
            name
            for name in embedded_files(home, upstream)
            if b"\r\n" in (home / upstream.path / name).read_bytes()
        ]
        because = f"; {crlf[0]} has CRLF line ends" if crlf else ""
        raise CorruptError(
            f"{home / upstream.path} differs from the pin in {upstream.folder / 'upstream.toml'}: "
            f"expected commit {upstream.pin}, found {found}{because}",
            hint=f"if the change is yours: mto upgrade {upstream.name} --to embedded --accept; "
            f"if not: git checkout -- {upstream.path}",
        )
