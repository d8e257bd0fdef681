"""Apply a series, take it back, check it, show it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mto_tools.errors import CorruptError, MissingError, MtoError, RefusedError
from mto_tools.patchset.build import build_series, check_built
from mto_tools.patchset.checkout import ensure_clone, open_clone
from mto_tools.patchset.git import Git
from mto_tools.patchset.journal import Say, locked
from mto_tools.patchset.keep import keep, restore_command
from mto_tools.patchset.lock import Lock, read_lock
from mto_tools.patchset.lock import verify as verify_files
from mto_tools.patchset.switch import (
    BASE,
    BRANCH,
    edited_files,
    elsewhere,
    read_record,
    switch,
    write_record,
)
from mto_tools.patchset.worktree import Change, Version, changes, states
from mto_tools.upstreams.upstream import Upstream


@dataclass(frozen=True)
class Outcome:
    """What a command left behind.

    Attributes:
        name: Of the upstream.
        repo: The clone.
        commit: HEAD's commit.
        tree: Its tree.
        done: False where there was nothing to do.
        kept: Branch that holds the user's edits; "" where there were none to keep.
    """

    name: str
    repo: str
    commit: str
    tree: str
    done: bool
    kept: str = ""


def load_series(upstream: Upstream) -> tuple[Lock, list[tuple[str, bytes]]]:
    """Read lock and patch files, checked against one another.

    Raises:
        MissingError: There is no series yet.
        CorruptError: The files are not those that were locked.
    """
    lock = read_lock(upstream)
    if lock is None:
        raise MissingError(
            f"there is no series for {upstream.name} yet: no patch in {upstream.folder}",
            hint=f"mto checkout {upstream.name}, edit the clone, then mto export {upstream.name}",
        )
    contents = verify_files(lock, upstream)
    return lock, [(p.file, data) for p, data in zip(lock.patches, contents, strict=True)]


def apply(
    upstream: Upstream,
    say: Say,
    *,
    through: str | None = None,
    repo: Path | None = None,
    source: str | None = None,
    keep_edits: bool = False,
) -> Outcome:
    """Bring a clone to the result of the series, or of its layers up to `through`.

    Args:
        upstream: What to apply.
        say: Takes lines for the user.
        through: Last layer to apply; None for all.
        repo: A clone or linked work tree made elsewhere; None for the one under `upstream/`.
        source: Where to fetch from, if that is needed.
        keep_edits: Put local edits on a branch first instead of refusing.

    Raises:
        MissingError: No series, no source, or the source lacks a file that is patched.
        CorruptError: Series, lock or clone are not what they should be.
        RefusedError: Going on would overwrite something of the user's.
    """
    lock, patches = load_series(upstream)
    git = ensure_clone(upstream, say, repo, source)
    verb = _command("apply", upstream, repo, through)
    with locked(git, say) as held:
        check_built(build_series(held, lock.base_commit, patches), lock, upstream.folder / "lock")
        chosen = lock.through(through)
        goal = chosen[-1].commit if chosen else lock.base_commit
        series = {patch.commit for patch in lock.patches}
        record = read_record(held)
        ours = {*record.ours, *series}
        head = _require_base(held, upstream, lock, ours, repo)
        branch, at = held.text("symbolic-ref", "-q", "HEAD", check=False), held.resolve(BRANCH)
        theirs = at == lock.base_commit and not record.branch
        if at and (theirs or at not in {*ours, lock.base_commit}):
            raise RefusedError(
                f"the branch mto in {held.folder} holds {at}, which is no commit of the series",
                hint=f"git -C {held.folder} branch -m mto my-mto",
            )
        if not elsewhere(held, BRANCH):
            refs, attach = [[BRANCH, goal, at]], BRANCH
            record.branch = True
        else:
            refs, attach = [], ""
            say(f"{upstream.name}: branch mto is in use in another work tree; HEAD is detached")
        base = held.resolve(BASE)
        if record.made and base in record.ours and base != lock.base_commit:
            refs.append([BASE, lock.base_commit, base])
        if head not in ours - {lock.base_commit} and branch != BRANCH:
            record.before_ref, record.before_commit = branch, head
        record.ours = list(dict.fromkeys([*record.ours, *sorted(series)]))
        files = changes(held, head, goal)
        kept = keep(held, files, verb=verb) if keep_edits else ""
        write_record(held, record)
        done = head != goal or branch != attach
        try:
            if done:
                switch(held, goal, verb=verb, refs=refs, attach=attach)
        except MtoError:
            record.branch = record.branch and bool(held.resolve(BRANCH))
            write_record(held, record)
            raise
        _say_kept(held, upstream, kept, say)
        return Outcome(upstream.name, str(held.folder), goal, _tree(held, goal), done, kept)


def revert(
    upstream: Upstream, say: Say, *, repo: Path | None = None, keep_edits: bool = False
) -> Outcome:
    """Go back to where the user was before apply: their branch, else the pin.

    Commits of the user's on top of the series stay on the branch mto; a branch of that name which
    mto did not make stays as it is.

    Raises:
        MissingError: There is no clone.
        RefusedError: Going on would overwrite something of the user's, or HEAD is neither base
            nor series.
    """
    git = open_clone(upstream, repo)
    verb = _command("revert", upstream, repo)
    with locked(git, say) as held:
        record = read_record(held)
        series = _commits(upstream)
        applied = {*record.ours, *series} - {upstream.pin}
        if record.made:
            applied -= {held.resolve(BASE)}
        head = held.resolve("HEAD")
        on_top = head not in applied and _descends(held, head, applied)
        on_branch = held.text("symbolic-ref", "-q", "HEAD", check=False) == BRANCH and record.branch
        if head not in applied and not on_top and not on_branch:
            if head not in (upstream.pin, held.resolve(BASE), record.before_commit):
                raise _wrong_base(held, upstream, head)
            kept = keep(held, {}, verb=verb) if keep_edits else ""
            _say_kept(held, upstream, kept, say)
            return Outcome(upstream.name, str(held.folder), head, _tree(held, head), False, kept)
        attach = record.before_ref if held.resolve(record.before_ref or "-") else ""
        goal = held.resolve(attach) if attach else record.before_commit or upstream.pin
        if attach and elsewhere(held, attach):
            attach = ""
        at = held.resolve(BRANCH)
        mine = record.branch and at in {*applied, upstream.pin} and not elsewhere(held, BRANCH)
        if at and (on_top or (on_branch and not mine)):
            say(f"{upstream.name}: your commits stay on branch mto, {at}")
        files = changes(held, head, goal)
        kept = keep(held, files, verb=verb) if keep_edits else ""
        refs = [[BRANCH, "", at]] if mine else []
        switch(held, goal, verb=verb, refs=refs, attach=attach)
        if mine or on_branch:  # deleted, or the user's now
            record.branch = False
            write_record(held, record)
        _say_kept(held, upstream, kept, say)
        return Outcome(upstream.name, str(held.folder), goal, _tree(held, goal), True, kept)


def verify(upstream: Upstream, say: Say, *, repo: Path | None = None) -> Outcome:
    """Build the series again and compare patches, lock, trees, commits and work tree.

    Raises:
        CorruptError: Series or lock are not what was locked.
        MtoError: HEAD or the work tree is neither the base nor the end of a layer.
    """
    lock, patches = load_series(upstream)
    git = open_clone(upstream, repo)
    with locked(git, say) as held:
        check_built(build_series(held, lock.base_commit, patches), lock, upstream.folder / "lock")
        head = held.resolve("HEAD")
        if head not in {lock.base_commit, *(patch.commit for patch in lock.patches)}:
            raise _wrong_base(held, upstream, head)
        edited = sorted({*edited_files(held), *unlike(held, lock, head)})
        if edited:
            raise MtoError(
                f"{held.folder}: edited since: {', '.join(edited)}",
                hint=f"mto {_command('diff', upstream, repo)} shows the edits; "
                f"mto {_command('apply', upstream, repo)} --keep puts them on a branch",
            )
        return Outcome(upstream.name, str(held.folder), head, _tree(held, head), True)


def diff(upstream: Upstream, *, repo: Path | None = None, stat: bool, color: bool) -> bytes:
    """Return what the checkout changes over the pin: a summary, then (without `stat`) a patch."""
    git = open_clone(upstream, repo)
    shape = ["--stat"] if stat else ["--stat", "--patch"]
    colored = "--color=always" if color else "--color=never"
    flags = ("--no-ext-diff", "--no-textconv", colored)
    return git.run("diff", *shape, *flags, upstream.pin, "--", convert=True)


def unlike(git: Git, lock: Lock, head: str) -> list[str]:
    """Touched files whose bytes are not those of `head`, whatever git's index believes."""
    expected: dict[str, Change] = {
        f.path: (Version(f.before, f.mode) if f.before else None,) * 2
        for patch in reversed(lock.patches)  # the first one to touch a file knows its base
        for f in patch.touched
    }
    for patch in lock.patches if head != lock.base_commit else ():
        expected |= {f.path: (Version(f.after, f.mode),) * 2 for f in patch.touched}
        if patch.commit == head:
            break
    return sorted(path for path, state in states(git, expected).items() if state == "other")


def _command(verb: str, upstream: Upstream, repo: Path | None, through: str | None = None) -> str:
    """The command without `mto`, to repeat in a hint; it must act on the same clone."""
    options = [
        *(("--repo", str(repo)) if repo else ()),
        *(("--through", through) if through else ()),
    ]
    return shlex.join([verb, upstream.name, *options])


def _require_base(
    git: Git, upstream: Upstream, lock: Lock, ours: set[str], repo: Path | None
) -> str:
    head = git.resolve("HEAD")
    if not head:
        raise CorruptError(
            f"{git.folder} has no commit checked out",
            hint=f"git -C {git.folder} switch --detach {upstream.pin}",
        )
    if head == lock.base_commit or head in ours:
        return head
    if _descends(git, head, ours):
        raise RefusedError(
            f"{git.folder} has commits of yours on top of the series: HEAD is {head}",
            hint=f"mto {_command('export', upstream, repo)} takes them into the series; or "
            f"git -C {git.folder} branch -m mto my-work, "
            f"then mto {_command('revert', upstream, repo)}",
        )
    raise _wrong_base(git, upstream, head)


def _wrong_base(git: Git, upstream: Upstream, head: str) -> RefusedError:
    return RefusedError(
        f"{git.folder} is at {head}; expected the pin {upstream.pin} or a commit of the series",
        hint=f"git -C {git.folder} switch --detach {upstream.pin}    # or, to move the series to "
        f"your commit: mto upgrade {upstream.name} --to {head}",
    )


def _commits(upstream: Upstream) -> set[str]:
    """Commits of the locked series; none where the lock is damaged, which revert survives."""
    try:
        lock = read_lock(upstream)
    except MtoError:
        return set()
    return {patch.commit for patch in lock.patches} if lock else set()


def _descends(git: Git, head: str, commits: Iterable[str]) -> bool:
    return any(
        git.resolve(f"{commit}^{{commit}}") and git.ok("merge-base", "--is-ancestor", commit, head)
        for commit in commits
    )


def _tree(git: Git, commit: str) -> str:
    return git.resolve(f"{commit}^{{tree}}")


def _say_kept(git: Git, upstream: Upstream, branch: str, say: Say) -> None:
    if branch:
        say(f"{upstream.name}: your edits are on branch {branch}; to get them back:")
        say(f"  {restore_command(git, branch)}")
