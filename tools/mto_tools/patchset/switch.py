"""Move a clone's work tree from one commit to another; refuse what would cost the user an edit."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mto_tools.errors import MissingError, MtoError, RefusedError
from mto_tools.patchset.git import HINT_DISK, Git, is_disk_full
from mto_tools.patchset.holding import deferred_interrupt
from mto_tools.patchset.journal import Journal, begin, index_digest, private, settle
from mto_tools.patchset.lock import write_atomically
from mto_tools.patchset.worktree import Change, changes, obstacle, states

BRANCH = "refs/heads/mto"
BASE = "refs/heads/base"  # only in clones that mto made


@dataclass
class Record:
    """What we keep about a clone between commands, in `.git/mto/state`.

    Attributes:
        made: mto made this clone; its branch `base` is ours to move.
        before_ref: Branch the user was on before apply; "" for a detached HEAD.
        before_commit: Commit the user was at.
        branch: mto made the branch `mto`, and may delete it.
        ours: Commits that mto put there: pins of clones it made, and commits of series.
        missing: Path to OID of files the source lacked.
    """

    made: bool = False
    before_ref: str = ""
    before_commit: str = ""
    branch: bool = False
    ours: list[str] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)


def read_record(git: Git) -> Record:
    """Return what we know about the clone; a fresh record where that is nothing."""
    try:
        known = json.loads((git.git_dir() / "mto" / "state").read_bytes())
        known.setdefault("branch", bool(known["ours"]))  # records of older versions say no more
        return Record(**known)
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return Record()


def write_record(git: Git, record: Record) -> None:
    """Keep what we know about the clone."""
    write_atomically(private(git) / "state", json.dumps(asdict(record), indent=1).encode())


def edited_files(git: Git, *, submodules: bool = True) -> dict[str, str]:
    """Return tracked files that differ from HEAD, each with git's two letters (index, file).

    The user's configuration decides, so CRLF under autocrlf=true is no edit.
    """
    ignored = () if submodules else ("--ignore-submodules=all",)
    raw = git.run(
        *("status", "--porcelain=v1", "-z", "--untracked-files=no", "--no-renames", *ignored),
        convert=True,
    ).decode("utf-8", "surrogateescape")
    return {entry[3:]: entry[:2] for entry in raw.split("\0") if entry}


def elsewhere(git: Git, ref: str) -> bool:
    """Whether another work tree of the same repository has `ref` checked out."""
    here = str(git.folder.resolve())
    for block in git.text("worktree", "list", "--porcelain").split("\n\n"):
        lines = block.splitlines()
        if lines and f"branch {ref}" in lines:
            return str(Path(lines[0].removeprefix("worktree ")).resolve()) != here
    return False


def in_the_way(git: Git, files: dict[str, Change]) -> dict[str, str]:
    """Return the files a switch would have to overwrite, each with the reason.

    Contents are compared by OID as well: git overlooks edits of files marked assume-unchanged.
    """
    blocked: dict[str, str] = {}
    edited = edited_files(git)
    for path, state in states(git, files).items():
        letters = edited.get(path, "  ")
        link = obstacle(git.folder, path)
        if link and str(link.relative_to(git.folder)) not in files:
            blocked[path] = f"{link.name} is no folder"
        elif files[path][0] is None and letters != "  ":
            blocked[path] = "staged by you, and the switch adds it"
        elif files[path][0] is None and state != "from":
            blocked[path] = "untracked, and the switch adds it"
        elif letters[0] != " ":
            blocked[path] = "staged"
        elif state != "from" or letters != "  ":
            blocked[path] = "edited" if (git.folder / path).exists() else "deleted"
    return blocked


def refuse_if_blocked(git: Git, files: dict[str, Change], verb: str) -> None:
    """Raise where going on would overwrite something of the user's.

    Raises:
        RefusedError: Names every such file.
    """
    blocked = in_the_way(git, files)
    if not blocked:
        return
    refuse_beyond_keeping(git, list(blocked), verb)
    names = ", ".join(f"{path} ({why})" for path, why in sorted(blocked.items()))
    raise RefusedError(
        f"mto {verb} would overwrite what you have in {git.folder}: {names}",
        hint=f"commit it, or let mto put it on a branch first: mto {verb} --keep",
    )


def refuse_beyond_keeping(git: Git, paths: Iterable[str], verb: str) -> None:
    """Raise where one of `paths` would be in the way again after its edit was put on a branch.

    Raises:
        RefusedError: A path lies behind a link or a file, or git is told to pass it over.
    """
    behind = {path: link for path in paths if (link := obstacle(git.folder, path))}
    for path, link in sorted(behind.items()):
        what = "a link" if link.is_symlink() else "no folder"
        raise RefusedError(
            f"mto {verb} would write {path} through {link}, which is {what}, and not the clone's",
            hint=f"mv {link} to another place, then run the command again",
        )
    tags = git.run("ls-files", "-t", "-z").decode("utf-8", "surrogateescape").split("\0")
    skipped = sorted({tag[2:] for tag in tags if tag.startswith("S ")} & set(paths))
    if skipped:
        sparse = git.text("config", "--type=bool", "core.sparseCheckout", check=False) == "true"
        rest = f"update-index --no-skip-worktree -- {shlex.join(skipped)}"
        raise RefusedError(
            f"mto {verb} needs files of {git.folder} that git is told to pass over "
            f"(skip-worktree, as in a sparse checkout): {', '.join(skipped)}",
            hint=f"git -C {git.folder} {'sparse-checkout disable' if sparse else rest}",
        )


def switch(
    git: Git,
    goal: str,
    *,
    verb: str,
    refs: list[list[str]] | None = None,
    attach: str = "",
) -> None:
    """Bring work tree, index and HEAD to `goal`; needs the clone's lock.

    Args:
        git: The clone.
        goal: Full OID of a commit.
        verb: What the user asked for, e.g. "apply mini".
        refs: [ref, new or "" to delete, old or ""], moved after the switch.
        attach: Branch to be on afterwards, if it then points to `goal`.

    Raises:
        RefusedError: Local edits are in the way, or another git is at work.
        MtoError: git could not switch; the clone is as it was before.
    """
    start = git.resolve("HEAD")
    files = changes(git, start, goal) if start != goal else {}
    refuse_if_blocked(git, files, verb)
    journal = Journal(verb, start, goal, files, index_digest(git), refs or [], attach)
    index = begin(git, journal)
    words = ""
    with deferred_interrupt():
        if start != goal:
            # Not --overwrite-ignore: an ignored file is the user's, too.
            _, _, words = git.try_run(
                *("switch", "--quiet", "--detach", "--no-guess", "--no-overwrite-ignore", goal),
                env={"GIT_INDEX_FILE": str(index)},
                convert=True,
            )
        kept = settle(git, journal).kept
    if git.resolve("HEAD") != goal:
        what = (
            f"mto {verb}: git could not switch {git.folder} from {start} to {goal}: "
            f"{' '.join(words.split())}; everything is as it was before"
        )
        if is_disk_full(words):
            raise MissingError(what, hint=HINT_DISK)
        raise MtoError(what, hint=f"see that {git.folder} and all in it is yours to write")
    if kept:
        raise MtoError(
            f"mto {verb}: {', '.join(kept)} changed in {git.folder} during the switch; left alone",
            hint="mto status says where you are; mto revert NAME --keep goes back",
        )
