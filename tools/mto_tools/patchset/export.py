"""`mto export`: from an edited checkout, or edited patch files, back to patch files and lock."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from mto_tools.errors import ConflictError, CorruptError, RefusedError
from mto_tools.patchset.build import apply_patch, build_series, rebuild
from mto_tools.patchset.checkout import open_clone
from mto_tools.patchset.clone_state import (
    BRANCH,
    BranchMove,
    checked_out_elsewhere,
    read_state,
    require_free_name,
)
from mto_tools.patchset.git import Git
from mto_tools.patchset.line_owners import split_edit
from mto_tools.patchset.local_edits import edited_tree, untracked
from mto_tools.patchset.lock import Lock, format_lock, load_series, lock_path
from mto_tools.patchset.locks import Say
from mto_tools.patchset.merge import merge_trees
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
        removed: Names of patch files that are gone.
        lock: The new lock.
        renamed: New names of those removed that only got another number.
        layer: The layer that inserted lines went to; "" where patch files were the source.
        untracked: Files beside the tracked ones that no patch holds.
        notes: Further lines for a person.
    """

    written: tuple[str, ...]
    removed: tuple[str, ...]
    lock: Lock
    renamed: dict[str, str] = field(default_factory=dict)
    layer: str = ""
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
        ConflictError: A patch that is not applied does not go on top of the edit.
    """
    with series_lock(upstream.folder, say), clone_lock(open_clone(upstream, repo), say) as git:
        lock = rebuild(git, load_series(upstream), upstream.folder)
        series = read_series(upstream)
        count = applied_patches(git, upstream, lock)
        edited = edited_tree(git)
        if not series and edited == lock.base_tree:
            raise RefusedError(
                f"{git.folder} holds the pin unchanged: there is nothing to export",
                hint="edit tracked files there, or git add new ones",
            )
        at, drafts = _place(upstream, series, count, layer, message)
        files = {patch.name: patch.files for patch in series}
        history = [files.get(draft.name, ()) for draft in drafts]
        trees = split_edit(git, lock.base_tree, lock.trees[count], edited, history, at)
        if not drafts[at].name and trees[at] == [lock.base_tree, *trees][at]:
            layer = drafts[at].layer
            raise RefusedError(
                f"layer {layer} would get no line: each one inserted in {git.folder} belongs to a "
                "patch of another layer already",
                hint="to move lines, take them out, export, and insert them again; then "
                f"mto export {upstream.name} --layer {layer} -m ...",
            )
        done = [replace(draft, tree=tree) for draft, tree in zip(drafts, trees, strict=True)]
        done += _later_patches(git, lock, series, count, edited)
        new_files, new = write_series(git, upstream.pin, done)
        move, notes = _branch_move(git, new, edited)
        written, removed = store_series(upstream, new_files, new, "export", move=move, git=git)
        renamed = _renamed(lock.base_tree, done, new)
        left = untracked(git)
    return Exported(written, removed, new, renamed, drafts[at].layer, left, notes)


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
    removed = {file.name for file in folder.glob("*.patch")} - files.keys()
    new = {name: data for name, data in wanted.items() if _differs(folder / name, data)}
    if new or removed or move:
        replace_files(folder, {**new, **dict.fromkeys(removed)}, what, move, git)
    return tuple(name for name in files if name in new), tuple(sorted(removed))


def _differs(file: Path, data: bytes) -> bool:
    return not file.exists() or file.read_bytes() != data


def applied_patches(git: Git, upstream: Upstream, lock: Lock) -> int:
    """Return how many patches of the series the checkout's HEAD holds.

    Raises:
        RefusedError: HEAD descends neither from the pin nor from a commit of the series; or it is
            a commit of the user's on top of a part of the series.
    """
    known = {commit: number for number, commit in enumerate(lock.commits)}
    head = git.resolve("HEAD")
    ancestors = git.text("rev-list", "--first-parent", "--max-count=1000", "HEAD").split("\n")
    found = next((commit for commit in ancestors if commit in known), "")
    if not found:
        raise RefusedError(
            f"{git.folder}: HEAD {head} descends neither from the pin {upstream.pin} nor from a "
            "commit of its series",
            hint=f"mto status {upstream.name}",
        )
    count = known[found]
    if found != head and count < len(lock.patches):
        # `commit --amend` and rebase leave the later patches' lines in a commit of another name.
        ends = ", ".join(f"{p.file} {p.commit}" for p in lock.patches[max(count - 1, 0) :])
        raise RefusedError(
            f"{git.folder}: HEAD {head} is a commit of yours on top of {count} of "
            f"{len(lock.patches)} patches; it may hold the others too, if you amended or rebased",
            hint=f"git -C {shlex.quote(str(git.folder))} reset --soft COMMIT changes no file; "
            f"COMMIT belongs to the last patch it holds: {ends}"
            + ("" if count else f"; if it holds none: mto apply {upstream.name}, then edit"),
        )
    if lock.patches and not count:
        raise RefusedError(
            f"{git.folder} stands on the pin, without the {len(lock.patches)} patches that "
            f"{upstream.name} has: an export from here would lose them",
            hint=f"mto apply {upstream.name}, then edit and export",
        )
    return count


def _place(
    upstream: Upstream, series: Sequence[Patch], count: int, layer: str, message: Sequence[str]
) -> tuple[int, list[Draft]]:
    """Return the index of the patch that gets new lines, and the drafts of the applied patches."""
    named = bool(layer)
    layer = layer or (series[count - 1].layer if count else "mto")
    if layer not in LAYERS:
        raise RefusedError(f"there is no layer {layer!r}", hint=f"one of {', '.join(LAYERS)}")
    rank = LAYERS.index(layer)
    if count < len(series) and LAYERS.index(series[count].layer) < rank:
        raise RefusedError(
            f"the checkout holds {count} of {len(series)} patches, and {series[count].name}, which "
            f"is not applied, comes before layer {layer}",
            hint=f"mto apply {upstream.name}, then edit and export",
        )
    drafts = [draft_of(patch) for patch in series[:count]]
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
    wrapped = [
        m if "\n" in m else textwrap.fill(m, 90, break_long_words=False) for m in message[1:]
    ]
    text = "\n\n".join([*message[:1], *wrapped]).strip()
    subject, _, body = text.partition("\n")
    body = "\n".join(line.rstrip() for line in body.split("\n")).strip("\n")
    if reason := message_problem(subject) or message_problem(body):
        raise RefusedError(f"--message: {reason}")
    return subject.strip(), body


def _later_patches(
    git: Git, lock: Lock, series: Sequence[Patch], count: int, edited: str
) -> list[Draft]:
    """Carry the patches that are not applied over to the edited tree."""
    drafts, tree = [], edited
    for number in range(count, len(series)):
        merged = merge_trees(git, lock.trees[number], tree, lock.trees[number + 1])
        if merged.conflicts:
            paths = ", ".join(conflict.path for conflict in merged.conflicts)
            raise ConflictError(
                f"{series[number].name}, which is not applied in {git.folder}, conflicts with the "
                f"edit in {paths}",
                hint="apply the whole series, make the edit there, and export again",
            )
        tree = merged.tree
        drafts.append(draft_of(series[number], tree))
    return drafts


def _renamed(base: str, drafts: Sequence[Draft], lock: Lock) -> dict[str, str]:
    """Return old and new name of the patches that still insert something, but were renumbered."""
    before = [base, *(draft.tree for draft in drafts)]
    left = [draft for draft, tree in zip(drafts, before, strict=False) if draft.tree != tree]
    pairs = zip(left, lock.patches, strict=True)
    return {old.name: new.file for old, new in pairs if old.name not in ("", new.file)}


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
    repo = str(git.folder)
    move = BranchMove(repo, ref, head, BRANCH, new, refs, asdict(state), commit_all=True)
    require_free_name(git, move)
    mine = f"your own commits end at {head}: git -C {shlex.quote(repo)} log {head}"
    return move, () if head in ours else (mine,)
