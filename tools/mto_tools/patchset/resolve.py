"""An upgrade that conflicts: a work tree of its own in which a person decides.

The work tree stands in `upstream/.resolve/NAME`, a repository that borrows objects of the clone:
the clone is not touched. One patch after the other is laid on; where git cannot, the files get
zdiff3 markers, and rerere remembers what the person made of them.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mto_tools.errors import ConflictError, CorruptError, MissingError, RefusedError
from mto_tools.patchset.git import Git
from mto_tools.patchset.local_edits import copied_index
from mto_tools.patchset.lock import Lock, lock_path, sha256
from mto_tools.patchset.locks import Say, write_file
from mto_tools.patchset.merge import commit_tree
from mto_tools.patchset.parser import read_series
from mto_tools.patchset.replay import Step, carry
from mto_tools.patchset.series import Patch
from mto_tools.patchset.sources import Source
from mto_tools.patchset.tree_diff import NotAdditiveError, file_patches
from mto_tools.patchset.upgrade import accept, load_series, name_culprits, refuse_upstream_text
from mto_tools.patchset.workshop import Workshop, complete, make_borrower
from mto_tools.upstreams.upstream import Upstream

_STATE = "mto-upgrade.json"
_MARKERS = (b"<<<<<<< ", b"||||||| ", b">>>>>>> ")
_MIDDLE = b"======="
_RERERE = ("-c", "rerere.enabled=true", "-c", "rerere.autoUpdate=false")


@dataclass
class State:
    """How far the upgrade is.

    Attributes:
        pin: Full OID of the pin it started from.
        target: Full OID of the commit it goes to.
        lock: sha256 of the series' lock when it started.
        source: Where that came from, without a password; "" for the upstream's own source.
        done: Trees after the patches that are settled.
        ready: Whether the files of the next patch are laid out.
        conflicts: Files of that patch in which the person decides.
    """

    pin: str
    target: str
    lock: str
    source: str = ""
    done: list[str] = field(default_factory=list)
    ready: bool = False
    conflicts: list[str] = field(default_factory=list)


def folder_of(upstream: Upstream) -> Path:
    """Where an upgrade of this upstream is resolved."""
    return upstream.home / "upstream" / ".resolve" / upstream.name


def start(shop: Workshop, upstream: Upstream, target: str, source: str, say: Say) -> None:
    """Open the work tree and lay out the first conflict.

    Raises:
        ConflictError: Always: a person must decide. The message says where and how.
        RefusedError: Another upgrade of this upstream is under way.
    """
    folder = folder_of(upstream)
    refuse_second(upstream)
    folder.mkdir(parents=True)
    git = make_borrower(folder, shop.lenders)
    memory = folder.parent / ".rerere" / upstream.name
    memory.mkdir(parents=True, exist_ok=True)
    (git.git_dir() / "rr-cache").symlink_to(memory)
    for key, value in (("rerere.enabled", "true"), ("merge.conflictStyle", "zdiff3")):
        git.run("config", key, value)
    complete(git, upstream)
    # Its commits are in the clone by now, so that nobody needs the password again.
    shown = Source(source, "--source", "url").shown
    _save(git, State(upstream.pin, target, _lock_digest(upstream), shown))
    _advance(git, upstream, _load(git), say)


def refuse_second(upstream: Upstream) -> None:
    """Raise where an upgrade of this upstream waits for a person.

    Raises:
        RefusedError: With the two ways out.
    """
    if folder_of(upstream).exists():
        raise RefusedError(
            f"an upgrade of {upstream.name} is under way in {folder_of(upstream)}",
            hint=f"mto upgrade {upstream.name} --continue, or --abort",
        )


def proceed(upstream: Upstream, say: Say, repo: Path | None = None) -> Lock:
    """Take what the person resolved, lay on the remaining patches, and accept the result.

    Raises:
        ConflictError: Markers are left, or a later patch conflicts.
        NotAdditiveError: The resolution changes upstream's lines.
        MissingError: No upgrade is under way.
    """
    git, state = _open(upstream)
    if state.ready:
        patch = read_series(upstream)[len(state.done)]
        state.done.append(_resolved(git, upstream, state, patch))
        state.ready, state.conflicts = False, []
        _save(git, state)
    return _advance(git, upstream, state, say, repo)


def abort(upstream: Upstream) -> Path:
    """Remove the work tree; nothing else has changed.

    Raises:
        MissingError: No upgrade is under way.
    """
    folder = folder_of(upstream)
    if not folder.exists():
        raise MissingError(f"no upgrade of {upstream.name} is under way")
    shutil.rmtree(folder)
    return folder


def _open(upstream: Upstream) -> tuple[Git, State]:
    folder = folder_of(upstream)
    if not (folder / ".git" / _STATE).is_file():
        raise MissingError(
            f"no upgrade of {upstream.name} is under way",
            hint=f"mto upgrade {upstream.name} --abort clears leftovers"
            if folder.exists()
            else f"mto upgrade {upstream.name} --to REF --accept",
        )
    git = Git(folder)
    state = _load(git)
    if state.pin != upstream.pin:
        raise RefusedError(
            f"{folder} carries the series over from {state.pin}, but {upstream.name} is now pinned "
            f"to {upstream.pin}",
            hint=f"mto upgrade {upstream.name} --abort",
        )
    if state.lock != _lock_digest(upstream):
        raise RefusedError(
            f"{folder} carries over the series as it was before {lock_path(upstream.folder)} "
            "changed, by an export perhaps: going on would lose what is new",
            hint=f"keep a copy of what you resolved there, then mto upgrade {upstream.name} "
            f"--abort, and mto upgrade {upstream.name} --to {state.target} --accept anew",
        )
    return git, state


def _lock_digest(upstream: Upstream) -> str:
    file = lock_path(upstream.folder)
    return sha256(file.read_bytes()) if file.exists() else ""


def _advance(
    git: Git, upstream: Upstream, state: State, say: Say, repo: Path | None = None
) -> Lock:
    lock, series = load_series(git, upstream)
    trees = [lock.base_tree, *(patch.tree for patch in lock.patches)]
    while len(state.done) < len(series):
        number = len(state.done)
        onto = state.done[-1] if state.done else git.resolve(f"{state.target}^{{tree}}")
        step = carry(git, series[number], trees[number], onto, trees[number + 1])
        if not step.ok:
            _lay_out(git, upstream, state, step, trees[number], trees[number + 1])
        state.done.append(step.after)
        _save(git, state)
    shop = Workshop(git, None, "refs/", ())
    done = list(zip(series, state.done, strict=True))
    new = accept(shop, upstream, state.target, done, say, state.source or None, repo)
    shutil.rmtree(folder_of(upstream))
    return new


def _lay_out(git: Git, upstream: Upstream, state: State, step: Step, base: str, ours: str) -> None:
    """Put the half merged files into the work tree and tell the person.

    Raises:
        ConflictError: Always.
    """
    head = commit_tree(git, step.before)
    git.run("update-ref", "--no-deref", "HEAD", head)
    git.run("read-tree", "--reset", "-u", head)
    git.run("clean", "-ffdqx")
    change = commit_tree(
        git, ours, commit_tree(git, base, message="the pinned upstream"), message=step.patch.name
    )
    command = ("cherry-pick", "--no-commit", "--allow-empty", change)
    git.try_run("-c", "merge.conflictStyle=zdiff3", *_RERERE, *command)
    gone = {hunk.path for hunk in step.hunks if hunk.verdict == "gone"}
    for path in gone:
        (git.folder / path).unlink(missing_ok=True)
        git.run("rm", "--cached", "--quiet", "--ignore-unmatch", "--", path)
    state.conflicts = sorted({c.path for c in step.merged.conflicts if c.path} - gone)
    state.ready = True
    _save(git, state)
    name_culprits(git, step, state.pin, state.target)
    words = [f"{step.patch.name} conflicts with {upstream.name} {state.target}"]
    words += [f"  {path}" for path in state.conflicts]
    for file in step.patch.files:
        for note in (
            {h.note for h in step.hunks if h.path == file.path} if file.path in gone else ()
        ):
            words.append(f"  {file.path} is gone ({note}); insert elsewhere, or leave out:")
            words += [f"    +{_text(line)}" for h in file.hunks for line in h.lines]
    raise ConflictError(
        "\n".join([*words, step.refused]).strip(),
        hint=f"edit the files in {git.folder} (insert lines only, leave upstream's as they are), "
        f"then mto upgrade {upstream.name} --continue; or --abort",
    )


def _resolved(git: Git, upstream: Upstream, state: State, patch: Patch) -> str:
    """Return the tree of what the person made.

    Raises:
        ConflictError: A file still has markers.
        NotAdditiveError: Upstream's lines were changed.
        RefusedError: Upstream's lines were copied, or a new file is one that git ignores.
    """
    onto = state.done[-1] if state.done else git.resolve(f"{state.target}^{{tree}}")
    left = [place for path in state.conflicts for place in _markers(git, onto, path, patch)]
    if left:
        raise ConflictError(
            f"conflict markers are left in {git.folder}: {', '.join(left)}",
            hint=f"resolve them, then mto upgrade {upstream.name} --continue; or --abort",
        )
    with copied_index(git) as away:  # a copy, so that git add -f counts
        away.run("add", "--all", "--", ":/")
        _refuse_ignored(away)
        tree = away.text("write-tree", "--missing-ok")
    try:
        file_patches(git, onto, tree)
    except NotAdditiveError as error:
        error.message = f"in {git.folder}: {error.message}"
        raise
    refuse_upstream_text(git, (state.pin, state.target), patch, onto, tree)
    git.try_run(*_RERERE, "rerere")  # remember a good answer for the next upgrade
    return tree


def _markers(git: Git, onto: str, path: str, patch: Patch) -> list[str]:
    """Return the places of markers; `=======` may also be a line of upstream's, or of the patch."""
    file = git.folder / path
    lines = _bare(file.read_bytes().split(b"\n") if file.is_file() else [])
    known = git.run("cat-file", "blob", f"{onto}:{path}", check=False).split(b"\n")
    known += [line for f in patch.files for h in f.hunks for line in h.lines]
    middle = lines.count(_MIDDLE) > _bare(known).count(_MIDDLE)
    return [
        f"{path}:{number}"
        for number, line in enumerate(lines, 1)
        if line.startswith(_MARKERS) or (middle and line == _MIDDLE)
    ]


def _bare(lines: list[bytes]) -> list[bytes]:
    return [line.removesuffix(b"\r") for line in lines]


def _refuse_ignored(away: Git) -> None:
    """Refuse new files that would neither become part of the patch nor outlive the work tree."""
    query = ("ls-files", "-z", "--others", "--ignored", "--exclude-standard", "--directory")
    ignored = away.text(*query, "--no-empty-directory").split("\0")[:-1]
    if ignored:
        raise RefusedError(
            f"{away.folder} has files that git ignores, and they would be lost: "
            f"{', '.join(ignored)}",
            hint=f"git -C {away.folder} add -f FILE makes one part of the patch; otherwise delete "
            "it or move it away",
        )


def _save(git: Git, state: State) -> None:
    write_file(git.git_dir() / _STATE, json.dumps(asdict(state), indent=1).encode())


def _load(git: Git) -> State:
    file = git.git_dir() / _STATE
    try:
        return State(**json.loads(file.read_bytes()))
    except (ValueError, TypeError) as error:
        hint = f"mto upgrade {git.folder.name} --abort"
        raise CorruptError(f"{file}: not a state of mto: {error!r}", hint=hint) from error


def _text(line: bytes) -> str:
    return line.decode("utf-8", "replace").rstrip("\r")
