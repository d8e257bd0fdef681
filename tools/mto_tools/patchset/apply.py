"""Apply a series, take it back, check it, show it."""

from __future__ import annotations

import shlex
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mto_tools.errors import MissingError, MtoError, RefusedError
from mto_tools.patchset.checkout import ensure_clone, open_clone
from mto_tools.patchset.clone_state import (
    BASE,
    BRANCH,
    BranchMove,
    checked_out_elsewhere,
    find_base,
    read_state,
    write_state,
)
from mto_tools.patchset.git import Git
from mto_tools.patchset.local_edits import edited_files
from mto_tools.patchset.lock import Series, load_series, read_lock, rebuild
from mto_tools.patchset.locks import Say
from mto_tools.patchset.switch import switch
from mto_tools.patchset.transaction import clone_lock
from mto_tools.upstreams.upstream import Upstream


@dataclass(frozen=True)
class Outcome:
    """The state a command left behind."""

    repo: Path  # the clone
    commit: str  # where HEAD is
    changed: bool  # False where there was nothing to do


def apply(
    upstream: Upstream,
    say: Say,
    *,
    through: str | None = None,
    repo: Path | None = None,
    source: str | None = None,
) -> Outcome:
    """Bring a clone to the result of the series, or of its layers up to `through`.

    `repo` is a clone or linked work tree made elsewhere, if not the clone under `upstream/`;
    `source` is where to fetch from, if that is needed.

    Raises:
        MissingError: No series, no source, or the source lacks a file that is patched.
        CorruptError: Series, lock or clone are not as expected.
        RefusedError: Going on would overwrite something of the user's.
    """
    series = _series(upstream)
    clone = ensure_clone(upstream, say, repo, source)
    with clone_lock(clone, say) as git:
        lock = rebuild(git, series, upstream.folder)
        goal = lock.commits[len(lock.through(through))]
        state = read_state(git)
        ours = {*state.commits, *lock.commits[1:]}
        branch, head = git.head()
        base, ahead = find_base(git, {*ours, lock.base_commit})
        if ahead and base in ours:
            raise RefusedError(
                f"{git.folder} has commits of yours on top of the series: HEAD is {head}",
                hint=f"mto {_command('export', upstream, repo)} takes them into the series; or "
                f"{git.command('branch', '-m', 'mto', 'my-work')}, "
                f"then mto {_command('revert', upstream, repo)}",
            )
        if ahead or not base:
            raise _wrong_base(git, upstream, head)
        attach, refs = BRANCH, []
        if checked_out_elsewhere(git, BRANCH):
            attach = ""
            say(f"{upstream.name}: branch mto is in use in another work tree; HEAD is detached")
        else:
            at = git.resolve(BRANCH)
            users = at == lock.base_commit and not state.owns_branch
            if at and (users or at not in {*ours, lock.base_commit}):
                raise RefusedError(
                    f"the branch mto in {git.folder} holds {at}, which is no commit of the series",
                    hint=git.command("branch", "-m", "mto", "my-mto"),
                )
            refs.append((BRANCH, goal, at))
            state.owns_branch = True
        former = git.resolve(BASE)
        if state.created_by_mto and former in state.commits and former != lock.base_commit:
            refs.append((BASE, lock.base_commit, former))
        if head not in ours - {lock.base_commit} and branch != BRANCH:
            state.original_ref, state.original_commit = branch, head
        state.commits = list(dict.fromkeys([*state.commits, *lock.commits[1:]]))
        changed = (branch, head) != (attach, goal)
        if changed:
            move = BranchMove(str(git.folder), branch, head, attach, goal, refs, state)
            switch(git, move, _command("apply", upstream, repo, through), say)
        else:
            write_state(git, state)
        return Outcome(git.folder, goal, changed)


def revert(upstream: Upstream, say: Say, *, repo: Path | None = None) -> Outcome:
    """Go back to where the user was before apply: their branch, else the pin.

    Commits of the user's on top of the series stay on the branch mto; a branch of that name which
    mto did not make stays as it is.

    Raises:
        MissingError: There is no clone.
        RefusedError: Going on would overwrite something of the user's, or HEAD is neither base
            nor series.
    """
    with clone_lock(open_clone(upstream, repo), say) as git:
        state = read_state(git)
        base = git.resolve(BASE)
        applied = set(state.commits)
        with suppress(MtoError):  # a damaged lock
            lock = read_lock(upstream)
            applied.update(lock.commits if lock else ())
        applied -= {upstream.pin, base if state.created_by_mto else ""}
        branch, head = git.head()
        top, ahead = find_base(git, applied)
        on_branch = branch == BRANCH and state.owns_branch
        if not top and not on_branch:
            if head not in (upstream.pin, base, state.original_commit):
                raise _wrong_base(git, upstream, head)
            return Outcome(git.folder, head, False)
        attach = state.original_ref if git.resolve(state.original_ref or "-") else ""
        goal = git.resolve(attach) if attach else state.original_commit or upstream.pin
        if attach and checked_out_elsewhere(git, attach):
            attach = ""
        at = git.resolve(BRANCH)
        unused = not checked_out_elsewhere(git, BRANCH)
        delete = state.owns_branch and unused and at in {*applied, upstream.pin}
        if at and (ahead or (on_branch and not delete)):
            say(f"{upstream.name}: your commits stay on branch mto, {at}")
        if delete or on_branch:  # deleted, or the user's now
            state.owns_branch = False
        refs = ((BRANCH, "", at),) if delete else ()
        move = BranchMove(str(git.folder), branch, head, attach, goal, refs, state)
        switch(git, move, _command("revert", upstream, repo), say)
        return Outcome(git.folder, goal, True)


def verify(upstream: Upstream, say: Say, *, repo: Path | None = None) -> Outcome:
    """Build the series again and compare patches, lock, trees, commits and work tree.

    Raises:
        CorruptError: Series or lock are not as locked.
        MtoError: HEAD or the work tree is neither the base nor the end of a layer.
    """
    series = _series(upstream)
    with clone_lock(open_clone(upstream, repo), say) as git:
        lock = rebuild(git, series, upstream.folder)
        head = git.resolve("HEAD")
        if head not in lock.commits:
            raise _wrong_base(git, upstream, head)
        if edited := edited_files(git):
            raise MtoError(
                f"{git.folder}: edited since: {', '.join(sorted(edited))}",
                hint=f"mto {_command('diff', upstream, repo)} shows the edits; "
                f"{git.command('stash', 'push', '--', *edited)} puts them aside",
            )
        return Outcome(git.folder, head, True)


def diff(upstream: Upstream, *, repo: Path | None = None, color: bool) -> bytes:
    """Return what the checkout changes over the pin: a summary, then a patch."""
    git = open_clone(upstream, repo)
    flags = ("--stat", "--patch", f"--color={'always' if color else 'never'}", "--no-ext-diff")
    return git.run("diff", *flags, "--no-textconv", upstream.pin, "--", convert=True)


def _series(upstream: Upstream) -> Series:
    series = load_series(upstream)
    if not series.files:
        raise MissingError(
            f"there is no series for {upstream.name} yet: no patch in {upstream.folder}",
            hint=f"mto checkout {upstream.name}, edit the clone, then mto export {upstream.name}",
        )
    return series


def _command(verb: str, upstream: Upstream, repo: Path | None, through: str | None = None) -> str:
    """Return the command without `mto`, to repeat in a hint; it must act on the same clone."""
    at = ["--repo", str(repo)] if repo else []
    return shlex.join([verb, upstream.name, *at, *(["--through", through] if through else [])])


def _wrong_base(git: Git, upstream: Upstream, head: str) -> RefusedError:
    return RefusedError(
        f"{git.folder} is at {head or 'no commit'}; expected the pin {upstream.pin} or a commit of "
        "the series",
        hint=f"{git.command('switch', '--detach', upstream.pin)}    # or, to move the series to "
        f"your commit: mto upgrade {upstream.name} --to {head}",
    )
