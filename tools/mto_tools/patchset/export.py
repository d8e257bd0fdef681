"""From an edited checkout back to patch files and lock: `mto export`."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mto_tools.errors import ConflictError, CorruptError, MissingError, RefusedError
from mto_tools.patchset.attribute import Slot, split_edit
from mto_tools.patchset.branch_move import BranchMove
from mto_tools.patchset.build import build_series
from mto_tools.patchset.git import Git
from mto_tools.patchset.local_edits import edited_tree, untracked
from mto_tools.patchset.lock import Lock, format_lock, lock_path, read_lock, verify
from mto_tools.patchset.locks import Say
from mto_tools.patchset.merge import merge_trees
from mto_tools.patchset.parser import parse, read_series
from mto_tools.patchset.series import FilePatch, Patch, file_name, message_problem, render
from mto_tools.patchset.switch import BRANCH, checked_out_elsewhere, read_state
from mto_tools.patchset.transaction import clone_lock, replace_files, series_lock
from mto_tools.patchset.tree_diff import file_patches
from mto_tools.upstreams.upstream import LAYERS, Upstream


@dataclass(frozen=True)
class Exported:
    """What an export wrote.

    Attributes:
        written: Names of patch files that are new or changed.
        removed: Names of patch files that are gone.
        renamed: New names of those of them that only got another number.
        lock: The new lock.
        layer: The layer that inserted lines went to.
        untracked: Files beside the tracked ones that no patch holds.
        notes: What a person should know besides.
    """

    written: tuple[str, ...]
    removed: tuple[str, ...]
    renamed: dict[str, str]
    lock: Lock
    layer: str
    untracked: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Draft:
    """A patch to be: its message, the tree after it, and the name it had."""

    layer: str
    subject: str
    body: str
    tree: str
    name: str = ""


def export(
    upstream: Upstream,
    repo: Path | None = None,
    layer: str = "",
    message: Sequence[str] = (),
    say: Say = print,
) -> Exported:
    """Rewrite series and lock from the edited checkout, in one step.

    Args:
        upstream: Whose series.
        repo: The checkout; by default the one under `upstream/`.
        layer: Where inserted lines go; by default the last layer that is applied.
        message: Subject, then paragraphs that say why; needed for a layer's first patch.
        say: Told what a killed command left to finish.

    Raises:
        NotAdditiveError: The edit takes something of upstream away.
        RefusedError: The checkout is not what an export can start from.
        ConflictError: A patch that is not applied does not go on top of the edit.
    """
    clone = Git(repo or upstream.checkout)
    clone.require_toplevel()
    with series_lock(upstream.folder, say), clone_lock(clone, say) as git:
        lock = read_lock(upstream) or Lock(upstream.pin, _tree(git, upstream.pin))
        verify(lock, upstream)
        series = read_series(upstream)
        count = applied_patches(git, upstream, lock)
        edited = edited_tree(git)
        if not series and edited == lock.base_tree:
            raise RefusedError(
                f"{git.folder} holds the pin unchanged: there is nothing to export",
                hint="edit tracked files there, or git add new ones",
            )
        position, drafts = _place(upstream, lock, series, count, layer, message)
        trees = split_edit(
            git,
            lock.base_tree,
            _after(lock, count),
            edited,
            [Slot(_old_files(series, draft)) for draft in drafts],
            position,
        )
        done = [
            Draft(d.layer, d.subject, d.body, tree, d.name)
            for d, tree in zip(drafts, trees, strict=True)
        ]
        done += _on_top(git, lock, series, count, edited)
        files, new = write_series(git, upstream.pin, done)
        old = {patch.file for patch in lock.patches}
        removed = sorted(old - files.keys())
        changed = [name for name, data in files.items() if _differs(upstream.folder / name, data)]
        files_and_lock: dict[str, bytes | None] = {name: files[name] for name in changed}
        if _differs(lock_path(upstream.folder), format_lock(new)):
            files_and_lock[lock_path(upstream.folder).name] = format_lock(new)
        files_and_lock.update(dict.fromkeys(removed))
        follow, notes = _follow(git, new, edited)
        if files_and_lock or follow:
            replace_files(upstream.folder, files_and_lock, "export", follow, git)
    return Exported(
        tuple(changed),
        tuple(removed),
        _renamed(lock.base_tree, done, new),
        new,
        drafts[position].layer,
        untracked(git),
        tuple(notes),
    )


def applied_patches(git: Git, upstream: Upstream, lock: Lock) -> int:
    """Return how many patches of the series the checkout's HEAD holds.

    Raises:
        RefusedError: HEAD descends neither from the pin nor from a commit of the series; or it is
            a commit of the user's on top of a part of the series.
    """
    known = {patch.commit: n for n, patch in enumerate(lock.patches, 1)} | {lock.base_commit: 0}
    head = git.resolve("HEAD")
    for line in git.text("rev-list", "--first-parent", "--max-count=1000", "HEAD").split("\n"):
        if line in known:
            count = known[line]
            if line != head and count < len(lock.patches) and git.resolve(lock.commit):
                raise _unclear(git, upstream, lock, count)
            if lock.patches and not count:
                raise RefusedError(
                    f"{git.folder} stands on the pin, without the {len(lock.patches)} patches that "
                    f"{upstream.name} has: an export from here would lose them",
                    hint=f"mto apply {upstream.name}, then edit and export",
                )
            return count
    raise RefusedError(
        f"{git.folder}: HEAD {head} descends neither from the pin {upstream.pin} nor from a "
        "commit of its series",
        hint=f"mto status {upstream.name}",
    )


def _unclear(git: Git, upstream: Upstream, lock: Lock, count: int) -> RefusedError:
    """`commit --amend` and rebase leave the later patches' lines in a commit of another name."""
    ends = ", ".join(f"{patch.file} {patch.commit}" for patch in lock.patches[max(count - 1, 0) :])
    return RefusedError(
        f"{git.folder}: HEAD {git.resolve('HEAD')} is a commit of yours on top of {count} of "
        f"{len(lock.patches)} patches; it may hold the others too, if you amended or rebased them",
        hint=f"git -C {git.folder} reset --soft COMMIT changes no file; COMMIT belongs to the last "
        f"patch they hold: {ends}"
        + ("" if count else f"; if they hold none: mto apply {upstream.name}, then edit"),
    )


def write_series(git: Git, base: str, drafts: Sequence[Draft]) -> tuple[dict[str, bytes], Lock]:
    """Return the patch files and the lock of `drafts`; one that inserts nothing is left out.

    The files are applied again, as `mto apply` does it, before anybody sees them.

    Raises:
        NotAdditiveError: A tree is not the one before it plus insertions.
        CorruptError: The patch files do not give the trees they were made from.
    """
    files: dict[str, bytes] = {}
    trees = []
    before = _tree(git, base)
    for draft in drafts:
        if draft.tree == before:
            continue
        inserted = file_patches(git, before, draft.tree)
        name = file_name(len(files) + 1, draft.layer, draft.subject, draft.name)
        patch = Patch(draft.layer, draft.subject, draft.body, inserted, name)
        files[name] = render(patch)
        parse(files[name], name)
        trees.append(draft.tree)
        before = draft.tree
    lock = build_series(git, base, list(files.items()))
    if [patch.tree for patch in lock.patches] != trees:
        raise CorruptError(
            f"the exported series gives {[p.tree for p in lock.patches]}, expected {trees}; "
            "nothing was written",
            hint="this is a defect of mto: please report it with the two trees",
        )
    return files, lock


def _place(
    upstream: Upstream,
    lock: Lock,
    series: Sequence[Patch],
    count: int,
    layer: str,
    message: Sequence[str],
) -> tuple[int, list[Draft]]:
    """Return the drafts of the applied patches and the index of the one that gets new lines."""
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
    drafts = [Draft(p.layer, p.subject, p.body, "", p.name) for p in series[:count]]
    mine = [n for n, draft in enumerate(drafts) if draft.layer == layer]
    subject, body = _message(message)
    if not mine:
        at = sum(LAYERS.index(draft.layer) <= rank for draft in drafts)
        if not subject:
            raise RefusedError(
                f"{upstream.name} has no patch of layer {layer} yet, so it needs a message",
                hint=f'mto export {upstream.name} --layer {layer} -m "what" -m "why"',
            )
        return at, [*drafts[:at], Draft(layer, subject, body, ""), *drafts[at:]]
    if subject:
        drafts[mine[-1]] = Draft(layer, subject, body, "", drafts[mine[-1]].name)
    return mine[-1], drafts


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


def _on_top(git: Git, lock: Lock, series: Sequence[Patch], count: int, edited: str) -> list[Draft]:
    """Carry the patches that are not applied over to the edited tree."""
    drafts, tree = [], edited
    for number in range(count, len(series)):
        merged = merge_trees(git, _after(lock, number), tree, lock.patches[number].tree)
        patch = series[number]
        if merged.conflicts:
            paths = ", ".join(conflict.path for conflict in merged.conflicts)
            raise ConflictError(
                f"{patch.name}, which is not applied in {git.folder}, conflicts with the edit in "
                f"{paths}",
                hint="apply the whole series, make the edit there, and export again",
            )
        tree = merged.tree
        drafts.append(Draft(patch.layer, patch.subject, patch.body, tree, patch.name))
    return drafts


def _renamed(base: str, drafts: Sequence[Draft], lock: Lock) -> dict[str, str]:
    """Return old and new name of the patches that still insert something, but were renumbered."""
    before = [base, *(draft.tree for draft in drafts)]
    left = [draft for draft, tree in zip(drafts, before, strict=False) if draft.tree != tree]
    pairs = zip(left, lock.patches, strict=True)
    return {old.name: new.file for old, new in pairs if old.name not in ("", new.file)}


def _follow(git: Git, lock: Lock, edited: str) -> tuple[BranchMove | None, list[str]]:
    """Return how the checkout's branch moves to the commit that has the edited content."""
    commits = {patch.tree: patch.commit for patch in lock.patches} | {
        lock.base_tree: lock.base_commit
    }
    new = commits[edited]
    (ref, head), branch, state = git.head(), git.resolve(BRANCH), read_state(git)
    if new == lock.base_commit or (ref, head) == (BRANCH, new):
        return None, []
    ours = {*commits.values(), *state.commits}
    if ref != BRANCH and branch and branch not in ours:
        return None, [f"{git.folder}: its branch mto holds commits of yours, so it stays as it is"]
    if ref != BRANCH and checked_out_elsewhere(git, BRANCH):
        return None, [f"{git.folder}: another work tree is on the branch mto, so it stays as it is"]
    mine = head not in {*ours, lock.base_commit}
    notes = [f"your own commits end at {head}: git -C {git.folder} log {head}"] if mine else []
    if ref != BRANCH:
        state.original_ref, state.original_commit = ref, head
    state.owns_branch = state.owns_branch or not branch
    state.commits = [*(oid for oid in state.commits if oid != new), new]
    refs = ((BRANCH, new, branch),)
    repo = str(git.folder)
    return BranchMove(repo, ref, head, BRANCH, new, refs, asdict(state), commit_all=True), notes


def _old_files(series: Sequence[Patch], draft: Draft) -> tuple[FilePatch, ...]:
    return next((p.files for p in series if p.name == draft.name), ())


def _after(lock: Lock, count: int) -> str:
    return lock.patches[count - 1].tree if count else lock.base_tree


def _tree(git: Git, commit: str) -> str:
    tree = git.resolve(f"{commit}^{{tree}}")
    if not tree:
        raise MissingError(f"{git.folder} does not hold the commit {commit}")
    return tree


def _differs(path: Path, data: bytes) -> bool:
    return not path.exists() or path.read_bytes() != data
