"""`mto export`: from an edited checkout, or edited patch files, back to patch files and lock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mto_tools.errors import CorruptError, RefusedError
from mto_tools.patchset.build import apply_patch, build_series, rebuild
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
from mto_tools.patchset.lock import Lock, format_lock, load_series, lock_path
from mto_tools.patchset.locks import Say
from mto_tools.patchset.parser import parse, read_header, read_series
from mto_tools.patchset.series import Patch, file_name, message_problem, render
from mto_tools.patchset.transaction import clone_lock, replace_files, series_lock
from mto_tools.patchset.tree_diff import file_patches
from mto_tools.upstreams.upstream import LAYERS, Upstream


@dataclass(frozen=True)
class Exported:
    """The files an export wrote.

    Attributes:
        written: Names of patch files that are new or changed.
        removed: Names of patch files that are gone: nothing is inserted, or the number is another.
        lock: The new lock.
        untracked: Files beside the tracked ones that no patch holds.
        notes: Further lines for a person.
    """

    written: tuple[str, ...]
    removed: tuple[str, ...]
    lock: Lock
    untracked: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Draft:
    """A patch to be: its message, the tree after it, and the name it had."""

    layer: str
    subject: str
    body: str
    tree: str
    name: str = ""


def draft_of(patch: Patch, tree: str = "") -> Draft:
    """Return a draft that keeps the message and the name of `patch`."""
    return Draft(patch.layer, patch.subject, patch.body, tree, patch.name)


def export(
    upstream: Upstream,
    repo: Path | None = None,
    layer: str = "",
    message: Sequence[str] = (),
    say: Say = print,
) -> Exported:
    """Rewrite series and lock from the edited checkout, in one step.

    Args:
        upstream: The upstream of the series.
        repo: The checkout; by default the one under `upstream/`.
        layer: Where inserted lines go; by default the last layer that is applied.
        message: Subject, then paragraphs that say why. A layer's first patch needs them; they
            replace the message of a patch only where `layer` names its layer.
        say: Told what a killed command left to finish.

    Raises:
        NotAdditiveError: The edit takes something of upstream away.
        RefusedError: The checkout is not what an export can start from, or a layer gets no line.
    """
    with series_lock(upstream.folder, say), clone_lock(open_clone(upstream, repo), say) as git:
        lock = rebuild(git, load_series(upstream), upstream.folder)
        series = read_series(upstream)
        _require_whole_series(git, upstream, lock)
        edited = edited_tree(git)
        if not series and edited == lock.base_tree:
            raise RefusedError(
                f"{git.folder} holds the pin unchanged: there is nothing to export",
                hint="edit tracked files there, or git add new ones",
            )
        at, drafts = _place(upstream, series, layer, message)
        files = {patch.name: patch.files for patch in series}
        history = [files.get(draft.name, ()) for draft in drafts]
        trees = split_edit(git, lock.base_tree, lock.tree, edited, history, at)
        if not drafts[at].name and trees[at] == [lock.base_tree, *trees][at]:
            layer = drafts[at].layer
            raise RefusedError(
                f"layer {layer} would get no line: each one inserted in {git.folder} belongs to a "
                "patch of another layer already",
                hint="to move lines, take them out, export, and insert them again; then "
                f"mto export {upstream.name} --layer {layer} -m ...",
            )
        done = [replace(draft, tree=tree) for draft, tree in zip(drafts, trees, strict=True)]
        new_files, new = write_series(git, upstream.pin, done)
        move, notes = _branch_move(git, new, edited)
        written, removed = store_series(upstream, new_files, new, "export", move=move, git=git)
        return Exported(written, removed, new, untracked(git), notes)


def regenerate(upstream: Upstream, say: Say, repo: Path | None = None) -> Exported:
    """Take patch files that were edited by hand, or merged by git, for the truth.

    They are numbered anew and written canonically, with the lock that fits them.

    Raises:
        CorruptError: A patch does not apply to the result of the ones before it.
        NotAdditiveError: A patch does more than insert.
    """
    with series_lock(upstream.folder, say), clone_lock(open_clone(upstream, repo), say) as git:
        drafts, tree = [], upstream.pin
        for file in upstream.patch_files(numbered=False):
            data = file.read_bytes()
            tree = apply_patch(git, tree, data, file.name)
            drafts.append(draft_of(read_header(data, file.name), tree))
        files, lock = write_series(git, upstream.pin, drafts)
        return Exported(*store_series(upstream, files, lock, "export"), lock)


def write_series(git: Git, base: str, drafts: Sequence[Draft]) -> tuple[dict[str, bytes], Lock]:
    """Return the patch files and the lock of `drafts`; one that inserts nothing is left out.

    The files are applied again, as `mto apply` does it, before anybody sees them.

    Raises:
        NotAdditiveError: A tree is not the one before it plus insertions.
        CorruptError: The patch files do not give the trees they were made from.
    """
    files: dict[str, bytes] = {}
    trees = [git.text("rev-parse", "--verify", f"{base}^{{tree}}")]
    for draft in drafts:
        if draft.tree == trees[-1]:
            continue
        name = file_name(len(files) + 1, draft.layer, draft.subject, draft.name)
        inserted = file_patches(git, trees[-1], draft.tree)
        files[name] = render(Patch(draft.layer, draft.subject, draft.body, inserted, name))
        parse(files[name], name)
        trees.append(draft.tree)
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
    *,
    more: Mapping[str, bytes] | None = None,
    move: BranchMove | None = None,
    git: Git | None = None,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Write patch files, lock and `more` in one step; return names (written, removed)."""
    folder = upstream.folder
    wanted = {**files, **(more or {})}
    if files or lock_path(folder).exists():
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
    """Refuse a checkout that does not hold every patch: an export would lose the others.

    Raises:
        RefusedError: HEAD holds a part of the series, or has nothing to do with it.
    """
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
    holds = f"{git.folder} holds {known.index(found)} of {len(lock.patches)} patches"
    catch_up = (
        f"{git.command('stash')} && mto apply {upstream.name} && {git.command('stash', 'pop')}"
    )
    if found == head:
        raise RefusedError(f"{holds}: an export from here would lose the others", hint=catch_up)
    # `commit --amend` and rebase leave the later patches' lines in a commit of another name.
    raise RefusedError(
        f"{holds}, and a commit of yours, {head}, which has the others too if you amended or "
        "rebased: an export from here could lose them",
        hint=f"if it has them: {git.command('reset', '--soft', lock.commit)} changes no file; "
        f"if not: {git.command('reset', '--soft', found)} && {catch_up}",
    )


def _place(
    upstream: Upstream, series: Sequence[Patch], layer: str, message: Sequence[str]
) -> tuple[int, list[Draft]]:
    """Return the index of the patch that gets new lines, and the drafts of all patches."""
    named = bool(layer)
    layer = layer or (series[-1].layer if series else "mto")
    if layer not in LAYERS:
        raise RefusedError(f"there is no layer {layer!r}", hint=f"one of {', '.join(LAYERS)}")
    rank = LAYERS.index(layer)
    drafts = [draft_of(patch) for patch in series]
    subject, body = _message(message)
    mine = [n for n, draft in enumerate(drafts) if draft.layer == layer]
    if mine and subject and not named:
        raise RefusedError(
            f"{drafts[mine[-1]].name} has a message already, and no --layer says whether it is to "
            "be replaced or the lines are for another layer",
            hint=f"mto export {upstream.name} --layer {layer} -m ... replaces it; "
            f"--layer {' or '.join(LAYERS[rank + 1 :] or LAYERS[:rank])} takes the lines elsewhere",
        )
    if mine:
        if subject:
            drafts[mine[-1]] = replace(drafts[mine[-1]], subject=subject, body=body)
        return mine[-1], drafts
    if not subject:
        raise RefusedError(
            f"{upstream.name} has no patch of layer {layer} yet, so it needs a message",
            hint=f'mto export {upstream.name} --layer {layer} -m "what" -m "why"',
        )
    at = sum(LAYERS.index(draft.layer) <= rank for draft in drafts)
    return at, [*drafts[:at], Draft(layer, subject, body, ""), *drafts[at:]]


def _message(message: Sequence[str]) -> tuple[str, str]:
    """Return subject and body."""
    subject, _, body = "\n\n".join(message).strip().partition("\n")
    body = "\n".join(line.rstrip() for line in body.split("\n")).strip("\n")
    if reason := message_problem(subject) or message_problem(body):
        raise RefusedError(f"--message: {reason}")
    return subject.strip(), body


def _branch_move(git: Git, lock: Lock, edited: str) -> tuple[BranchMove | None, tuple[str, ...]]:
    """Return how the checkout's branch moves to the commit that has the edited content."""
    new = dict(zip(lock.trees, lock.commits, strict=True))[edited]
    (ref, head), branch, state = git.head(), git.resolve(BRANCH), read_state(git)
    if new == lock.base_commit or (ref, head) == (BRANCH, new):
        return None, ()
    ours = {*lock.commits, *state.commits}
    if ref != BRANCH and branch and branch not in ours:
        return None, (f"{git.folder}: its branch mto holds commits of yours, so it stays as it is",)
    if ref != BRANCH and checked_out_elsewhere(git, BRANCH):
        return None, (f"{git.folder}: another work tree is on the branch mto, so it stays",)
    if ref != BRANCH:
        state.original_ref, state.original_commit = ref, head
    state.owns_branch = state.owns_branch or not branch
    state.commits = [*(oid for oid in state.commits if oid != new), new]
    refs = ((BRANCH, new, branch),)
    move = BranchMove(str(git.folder), ref, head, BRANCH, new, refs, state, commit_all=True)
    mine = f"your own commits end at {head}: {git.command('log', head)}"
    return move, () if head in ours else (mine,)
