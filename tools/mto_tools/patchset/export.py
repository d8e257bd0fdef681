"""`mto export`: from an edited checkout, or edited patch files, back to patch files and lock."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mto_tools.errors import CorruptError, RefusedError
from mto_tools.patchset.checkout import open_clone
from mto_tools.patchset.clone_state import (
    BRANCH,
    BranchMove,
    checked_out_elsewhere,
    find_base,
    read_state,
)
from mto_tools.patchset.git import Git
from mto_tools.patchset.line_owners import split_edit
from mto_tools.patchset.local_edits import edited_tree, untracked
from mto_tools.patchset.lock import (
    Lock,
    apply_patch,
    build_series,
    format_lock,
    load_series,
    lock_path,
    rebuild,
)
from mto_tools.patchset.locks import Say
from mto_tools.patchset.series import (
    Patch,
    file_name,
    message_problem,
    parse,
    read_header,
    read_series,
    render,
)
from mto_tools.patchset.transaction import clone_lock, replace_files, series_lock
from mto_tools.patchset.tree_diff import file_patches
from mto_tools.upstreams.upstream import LAYERS, Upstream


@dataclass(frozen=True)
class Exported:
    """The files an export wrote."""

    written: tuple[str, ...]  # names of patch files that are new or changed
    removed: tuple[str, ...]  # of those that are gone: nothing is inserted, or a new number
    tree: str  # after the new series
    commit: str  # after the new series
    untracked: tuple[str, ...] = ()  # files of the checkout that no patch holds


def export(
    upstream: Upstream,
    repo: Path | None = None,
    layer: str = "",
    message: Sequence[str] = (),
    say: Say = print,
) -> Exported:
    """Rewrite series and lock from the edited checkout, in one step.

    Inserted lines go to `layer`, by default the last one that is applied. `message` is a subject,
    then paragraphs that say why. A layer's first patch needs them; they replace the message of a
    patch only where `layer` names its layer.

    Raises:
        NotAdditiveError: The edit takes something of upstream away.
        RefusedError: The checkout is not what an export can start from, or a layer gets no line.
    """
    with series_lock(upstream.folder, say), clone_lock(open_clone(upstream, repo), say) as git:
        lock = rebuild(git, load_series(upstream), upstream.folder)
        series = read_series(upstream)
        _require_whole_series(git, upstream, lock)
        edited = edited_tree(git)
        at, patches = _place(upstream, series, layer, message)
        history = [patch.files for patch in patches]
        trees = split_edit(git, lock.base_tree, lock.tree, edited, history, at)
        if not patches[at].name and trees[at] == [lock.base_tree, *trees][at]:
            layer = patches[at].layer
            raise RefusedError(
                f"layer {layer} would get no line: {git.folder} holds none that is not in a patch "
                "of another layer already",
                hint="edit tracked files there, or git add new ones; to move lines, take them out, "
                f"export, insert them again; mto export {upstream.name} --layer {layer} -m ...",
            )
        files, new = write_series(git, upstream.pin, list(zip(patches, trees, strict=True)))
        move = _branch_move(git, new, edited, say)
        written, removed = store_series(upstream, files, new, "export", move, git)
        return Exported(written, removed, new.tree, new.commit, untracked(git))


def regenerate(upstream: Upstream, say: Say, repo: Path | None = None) -> Exported:
    """Take patch files that were edited by hand, or merged by git, for the truth.

    They are numbered anew and written canonically, with the lock that fits them.

    Raises:
        CorruptError: A patch does not apply to the result of the ones before it.
        NotAdditiveError: A patch does more than insert.
    """
    with series_lock(upstream.folder, say), clone_lock(open_clone(upstream, repo), say) as git:
        done, tree = [], upstream.pin
        for file in upstream.patch_files(numbered=False):
            data = file.read_bytes()
            tree = apply_patch(git, tree, data, file.name)
            done.append((read_header(data, file.name), tree))
        files, lock = write_series(git, upstream.pin, done)
        return Exported(*store_series(upstream, files, lock, "export"), lock.tree, lock.commit)


def write_series(
    git: Git, base: str, done: Sequence[tuple[Patch, str]]
) -> tuple[dict[str, bytes], Lock]:
    """Return patch files and lock of the series with these messages and these trees.

    A patch that inserts nothing is left out. The files are applied again, as `mto apply` does it,
    before anybody sees them.

    Raises:
        NotAdditiveError: A tree is not the one before it plus insertions.
        CorruptError: The patch files do not give the trees they were made from.
    """
    files: dict[str, bytes] = {}
    trees = [git.text("rev-parse", "--verify", f"{base}^{{tree}}")]
    for patch, tree in done:
        if tree == trees[-1]:
            continue
        name = file_name(len(files) + 1, patch.layer, patch.subject, patch.name)
        files[name] = render(replace(patch, files=file_patches(git, trees[-1], tree)))
        parse(files[name], name)
        trees.append(tree)
    lock = build_series(git, base, list(files.items()))
    if lock.trees != trees:
        raise CorruptError(
            f"the exported series gives {lock.trees}, expected {trees}; nothing was written",
            hint="this is a defect of mto: please report it with the trees",
        )
    return files, lock


def store_series(
    upstream: Upstream,
    files: Mapping[str, bytes],
    lock: Lock,
    what: str,
    move: BranchMove | None = None,
    git: Git | None = None,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Write patch files, lock and other `files` in one step; return names (written, removed)."""
    folder = upstream.folder
    wanted = dict(files)
    if lock.patches or lock_path(folder).exists():
        wanted[lock_path(folder).name] = format_lock(lock)
    removed = sorted({file.name for file in folder.glob("*.patch")} - files.keys())
    new = {
        name: data
        for name, data in wanted.items()
        if not (folder / name).exists() or (folder / name).read_bytes() != data
    }
    if new or removed or move:
        replace_files(folder, {**new, **dict.fromkeys(removed)}, what, move, git)
    return tuple(name for name in files if name in new), tuple(removed)


def _require_whole_series(git: Git, upstream: Upstream, lock: Lock) -> None:
    """Refuse a checkout that does not hold every patch: an export would lose the others."""
    head, known = git.resolve("HEAD"), lock.commits
    found, _ = find_base(git, known)
    if not found:
        raise RefusedError(
            f"{git.folder}: HEAD {head} descends neither from the pin {upstream.pin} nor from a "
            "commit of its series",
            hint=f"mto status {upstream.name}",
        )
    if found == lock.commit:
        return
    # `commit --amend` and rebase leave the later patches' lines in a commit of another name.
    raise RefusedError(
        f"{git.folder} is at {head}, which holds {known.index(found)} of {len(lock.patches)} "
        "patches: an export from here would lose the others",
        hint=f"if a commit of yours has them, amended or rebased: "
        f"{git.command('reset', '--soft', lock.commit)} changes no file; "
        f"if not: {git.command('reset', '--soft', found)} && {git.command('stash')} && "
        f"mto apply {upstream.name} && {git.command('stash', 'pop')}",
    )


def _place(
    upstream: Upstream, series: Sequence[Patch], layer: str, message: Sequence[str]
) -> tuple[int, list[Patch]]:
    """Return the index of the patch that gets new lines, and all patches, a new one among them."""
    named = bool(layer)
    layer = layer or (series[-1].layer if series else "mto")
    if layer not in LAYERS:
        raise RefusedError(f"there is no layer {layer!r}", hint=f"one of {', '.join(LAYERS)}")
    subject, _, body = "\n\n".join(message).strip().partition("\n")
    subject, body = subject.rstrip(), re.sub(r"[^\S\n]+$", "", body, flags=re.MULTILINE).strip("\n")
    if reason := message_problem(subject) or message_problem(body):
        raise RefusedError(f"--message: {reason}")
    patches = list(series)
    mine = [n for n, patch in enumerate(patches) if patch.layer == layer]
    if mine and subject and not named:
        others = " or ".join(other for other in LAYERS if other != layer)
        raise RefusedError(
            f"{patches[mine[-1]].name} has a message already, and no --layer says whether it is to "
            "be replaced or the lines are for another layer",
            hint=f"mto export {upstream.name} --layer {layer} -m ... replaces it; "
            f"--layer {others} takes the lines elsewhere",
        )
    if mine:
        at = mine[-1]
        if subject:
            patches[at] = replace(patches[at], subject=subject, body=body)
        return at, patches
    if not subject:
        raise RefusedError(
            f"{upstream.name} has no patch of layer {layer} yet, so it needs a message",
            hint=f'mto export {upstream.name} --layer {layer} -m "what" -m "why"',
        )
    at = sum(LAYERS.index(patch.layer) <= LAYERS.index(layer) for patch in patches)
    patches.insert(at, Patch(layer, subject, body, ()))
    return at, patches


def _branch_move(git: Git, lock: Lock, edited: str, say: Say) -> BranchMove | None:
    """Return how the checkout's branch moves to the commit that has the edited content."""
    new = dict(zip(lock.trees, lock.commits, strict=True))[edited]
    (ref, head), branch, state = git.head(), git.resolve(BRANCH), read_state(git)
    if new == lock.base_commit or (ref, head) == (BRANCH, new):
        return None
    ours = {*lock.commits, *state.commits}
    if ref != BRANCH:
        if (branch and branch not in ours) or checked_out_elsewhere(git, BRANCH):
            say(f"{git.folder}: its branch mto is in use, or holds commits of yours, so it stays")
            return None
        state.original_ref, state.original_commit = ref, head
    state.owns_branch = state.owns_branch or not branch
    state.commits = [*(oid for oid in state.commits if oid != new), new]
    refs = ((BRANCH, new, branch),)
    move = BranchMove(str(git.folder), ref, head, BRANCH, new, refs, state, commit_all=True)
    if head not in ours:
        say(f"your own commits end at {head}: {git.command('log', head)}")
    return move
