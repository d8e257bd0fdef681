"""`mto upgrade --accept`: pin, series and lock move to another upstream commit in one step.

Where the series conflicts, git's own rebase stops for a person in `upstream/.resolve/NAME`, a copy
of the scratch repository: the clone is not touched. `git rebase --onto TARGET PIN` lays one patch
after the other on, writes zdiff3 markers and stops; rerere remembers the answers. All of git's
commands work there. `mto upgrade --continue` is `git rebase --continue` behind two checks, and
accepts the result when git is done.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import tomlkit

from mto_tools.errors import ConflictError, MissingError, MtoError, RefusedError
from mto_tools.patchset.build import rebuild
from mto_tools.patchset.checkout import leave_out, open_clone
from mto_tools.patchset.export import Draft, write_series
from mto_tools.patchset.git import Git
from mto_tools.patchset.local_edits import copied_index
from mto_tools.patchset.lock import Lock, format_lock, load_series, lock_path, sha256
from mto_tools.patchset.locks import Say
from mto_tools.patchset.merge import SETTINGS
from mto_tools.patchset.parser import read_series
from mto_tools.patchset.rehearse import (
    Rehearsal,
    find_removing_commit,
    refuse_upstream_text,
    upstream_text,
)
from mto_tools.patchset.scratch_repo import Scratch
from mto_tools.patchset.series import Patch
from mto_tools.patchset.sources import Source, fetch_commit, missing_files
from mto_tools.patchset.transaction import clone_lock, free_name, replace_files
from mto_tools.patchset.tree_diff import NotAdditiveError, file_patches
from mto_tools.upstreams.upstream import Upstream

_CONFIG = {
    **SETTINGS,
    "core.autocrlf": "false",
    "core.editor": "true",
    "merge.conflictStyle": "zdiff3",
    "rerere.enabled": "true",
    "rerere.autoUpdate": "false",
    "user.name": "mto",
    "user.email": "mto@localhost",
}
# What merge tools leave beside a file, and Python beside a script.
_LEFT_BY_TOOLS = (".orig", ".rej", ".pyc", "~")
_TEMPORARY = ("_BACKUP_", "_BASE_", "_LOCAL_", "_REMOTE_")


def upgrade(scratch: Scratch, rehearsal: Rehearsal, say: Say, repo: Path | None = None) -> Lock:
    """Accept a rehearsal, or open a work tree for its conflicts; needs the series' lock.

    Args:
        scratch: The repository of the rehearsal.
        rehearsal: As `rehearse` gives it.
        say: Told what is left to do.
        repo: The user's clone, if not under `upstream/`.

    Raises:
        ConflictError: A person must decide. The message says where and how.
        RefusedError: The series would hold upstream text, or another upgrade waits for a person.
    """
    upstream = scratch.upstream
    refuse_second(upstream)
    if rehearsal.copied:
        raise upstream_text("the series", rehearsal.copied)
    if not rehearsal.ok:
        _start_rebase(scratch, rehearsal)
    done = [(step.patch, step.after) for step in rehearsal.steps]
    return accept(scratch.git, upstream, rehearsal.target, done, say, scratch.source, repo)


def folder_of(upstream: Upstream) -> Path:
    """Where an upgrade of this upstream is resolved."""
    return upstream.home / "upstream" / ".resolve" / upstream.name


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


def _start_rebase(scratch: Scratch, rehearsal: Rehearsal) -> NoReturn:
    """Start the rebase in a work tree that appears under its name when git has stopped."""
    upstream, target = scratch.upstream, rehearsal.target
    folder = folder_of(upstream)
    part = folder.with_name(f".{upstream.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(scratch.git.folder, part, symlinks=True)
    git = Git(part)
    memory = folder.parent / ".rerere" / upstream.name
    memory.mkdir(parents=True, exist_ok=True)
    (git.git_dir() / "rr-cache").symlink_to(memory)
    given = scratch.source.shown if scratch.source and scratch.source.origin == "--source" else ""
    state = {"mto.target": target, "mto.lock": _lock_digest(upstream), "mto.source": given}
    for key, value in {**_CONFIG, **state}.items():
        git.run("config", key, value)
    if lost := missing_files(git, target):
        leave_out(git, list(lost))
    lock = rebuild(git, load_series(upstream), upstream.folder)
    git.run("update-ref", "--no-deref", "HEAD", target)
    git.run("read-tree", "-m", "-u", target)
    flags = ("--empty=keep", "--no-rebase-merges", "--no-autosquash", "--no-autostash")
    words = _rebase(git, *flags, "--onto", target, lock.base_commit, lock.commit)
    part.rename(folder)
    git = Git(folder)
    if _stopped(git):
        _stop(git, upstream)
    refused = "\n".join(step.refused for step in rehearsal.steps if step.refused)
    raise ConflictError(
        f"git stopped at no conflict in {folder}, but the series does not go over: "
        + (refused or words),
        hint=f"git -C {folder} rebase -i {target}, then mto upgrade {upstream.name} --continue; "
        "or --abort",
    )


def proceed(upstream: Upstream, say: Say, repo: Path | None = None) -> Lock:
    """Take the person's answer, let git go on, and accept the result when it is done.

    Raises:
        ConflictError: Markers are left, or a later patch conflicts.
        NotAdditiveError: The answer changes upstream's lines.
        RefusedError: The answer copies upstream's lines, or the series has changed meanwhile.
        MissingError: No upgrade is under way.
    """
    with clone_lock(_open(upstream), say) as git:
        while _stopped(git):
            _take(git, upstream)
            before = git.resolve("REBASE_HEAD")
            words = _rebase(git, "--continue")
            if _stopped(git) and git.resolve("REBASE_HEAD") == before:
                raise MtoError(f"git rebase cannot go on in {git.folder}: {words}")
            if _stopped(git):
                _stop(git, upstream)
        target, source = _config(git, "target"), _config(git, "source")
        done = list(zip(read_series(upstream), _trees(git, upstream, target), strict=True))
        given = Source(source, "--source", "url") if source else None
        try:
            new = accept(git, upstream, target, done, say, given, repo)
        except (NotAdditiveError, RefusedError) as error:
            error.hint = (
                f"{error.hint}; then git -C {git.folder} rebase -i {target}, and "
                f"mto upgrade {upstream.name} --continue"
            )
            raise
        ignored = [p for p in _others(git, "--ignored") if not _is_litter(p)]
    if ignored:
        aside = free_name(git.folder.with_name(f"{upstream.name}.done"))
        git.folder.rename(aside)
        say(f"not part of a patch, because git ignores them: {', '.join(ignored)}; kept in {aside}")
    else:
        shutil.rmtree(git.folder)
    return new


def accept(
    git: Git,
    upstream: Upstream,
    target: str,
    done: Sequence[tuple[Patch, str]],
    say: Say,
    source: Source | None = None,
    repo: Path | None = None,
) -> Lock:
    """Write pin, series and lock for `target` in one step; the caller holds the series' lock.

    Args:
        git: The repository with the trees and the target.
        upstream: The upstream as it was.
        target: Full OID of the new pin.
        done: Each patch and the tree with it.
        say: Told what is left to do.
        source: Where the commit came from; None for an embedded recipe.
        repo: The user's clone, if not under `upstream/`.

    Raises:
        RefusedError: The new series would hold upstream text.
        NotAdditiveError: It would do more than insert.
    """
    before = target
    for patch, tree in done:
        refuse_upstream_text(git, (upstream.pin, target), patch, before, tree)
        before = tree
    drafts = [Draft(p.layer, p.subject, p.body, tree, p.name) for p, tree in done]
    files, lock = write_series(git, target, drafts)
    old = {file.name for file in upstream.patch_files()}
    replaced: dict[str, bytes | None] = {**files, "upstream.toml": repinned(git, upstream, target)}
    if files or lock_path(upstream.folder).exists():
        replaced[lock_path(upstream.folder).name] = format_lock(lock)
    replaced.update(dict.fromkeys(old - files.keys()))
    try:
        with clone_lock(open_clone(upstream, repo), say) as clone:
            if not clone.resolve(f"{target}^{{commit}}"):
                here = Source(str(git.folder), "the upgrade", "repository")
                fetch_commit(clone, here, target, upstream)
    except MtoError as error:
        say(f"{upstream.name}: the new pin is not in a clone yet: {error.message}")
    if source and source.origin == "--source":
        say(f"the pin came from {source.shown}; upstream.toml names {upstream.url}: does it fit?")
    replace_files(upstream.folder, replaced, "upgrade --accept")
    return lock


def repinned(git: Git, upstream: Upstream, target: str) -> bytes:
    """Return `upstream.toml` with another pin, everything else left as it is."""
    document = tomlkit.parse((upstream.folder / "upstream.toml").read_text("utf-8"))
    document["pin"] = target
    if upstream.pin_date and upstream.source != "embedded":
        document["pin_date"] = git.text("log", "-1", "--format=%cs", target)
    return tomlkit.dumps(document).encode()


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


def _open(upstream: Upstream) -> Git:
    folder = folder_of(upstream)
    if not folder.exists():
        raise MissingError(
            f"no upgrade of {upstream.name} is under way",
            hint=f"mto upgrade {upstream.name} --to REF --accept",
        )
    git = Git(folder)
    if _config(git, "lock") != _lock_digest(upstream):
        raise RefusedError(
            f"{folder} carries over the series as it was before {lock_path(upstream.folder)} "
            "changed, by an export perhaps: going on would lose what is new",
            hint=f"keep a copy of what you resolved there, then mto upgrade {upstream.name} "
            f"--abort, and mto upgrade {upstream.name} --to {_config(git, 'target')} --accept anew",
        )
    return git


def _lock_digest(upstream: Upstream) -> str:
    """The state of series and pin: the lock names both."""
    file = lock_path(upstream.folder)
    return sha256(file.read_bytes() if file.exists() else upstream.pin.encode())


def _config(git: Git, key: str) -> str:
    return git.text("config", f"mto.{key}", check=False)


def _rebase(git: Git, *args: str) -> str:
    settings = [part for key, value in _CONFIG.items() for part in ("-c", f"{key}={value}")]
    return " ".join(git.try_run(*settings, "rebase", *args, env={"GIT_EDITOR": "true"})[2].split())


def _stopped(git: Git) -> bool:
    return (git.git_dir() / "rebase-merge").is_dir()


def _patch_of(git: Git, upstream: Upstream, commit: str) -> int | None:
    """Return the index of the patch a commit carries: rebase keeps the author's date."""
    first = int(git.text("log", "-1", "--format=%ct", upstream.pin)) + 1
    number = int(git.text("log", "-1", "--format=%at", commit)) - first
    return number if 0 <= number < len(upstream.patch_files()) else None


def _trees(git: Git, upstream: Upstream, target: str) -> list[str]:
    """Return the tree after each patch; a commit of the person's own counts to the patch before."""
    trees: dict[int, str] = {}
    latest = 0
    for commit in git.text("rev-list", "--reverse", f"{target}..HEAD").split():
        number = _patch_of(git, upstream, commit)
        latest = latest if number is None else max(latest, number)
        trees[latest] = git.resolve(f"{commit}^{{tree}}")
    found, tree = [], git.resolve(f"{target}^{{tree}}")
    for number in range(len(upstream.patch_files())):
        tree = trees.get(number, tree)
        found.append(tree)
    return found


def _stop(git: Git, upstream: Upstream) -> NoReturn:
    """Take out files that upstream deleted, and tell the person what git stopped at.

    Raises:
        ConflictError: Always.
    """
    target = _config(git, "target")
    number = _patch_of(git, upstream, "REBASE_HEAD") or 0
    patch: Patch = read_series(upstream)[number]
    words = [f"{patch.name} conflicts with {upstream.name} {target}"]
    for path, stages in _unmerged(git).items():
        if "2" in stages or "1" not in stages:
            words.append(f"  {path}")
            continue
        git.run("rm", "--quiet", "--force", "--", path)
        note = find_removing_commit(git, upstream.pin, target, path)
        words.append(f"  {path} is gone ({note}); insert elsewhere, or leave out:")
        lines = (line for f in patch.files if f.path == path for h in f.hunks for line in h.lines)
        words += [f"    +{line.decode('utf-8', 'replace').rstrip()}" for line in lines]
    raise ConflictError(
        "\n".join(words),
        hint=f"edit the files in {git.folder} (insert lines only, leave upstream's as they are), "
        f"then mto upgrade {upstream.name} --continue; or --abort",
    )


def _unmerged(git: Git) -> dict[str, set[str]]:
    """Return path to stages (1 base, 2 upstream, 3 ours) of what git could not merge."""
    found: dict[str, set[str]] = {}
    for entry in git.text("ls-files", "--unmerged", "-z").split("\0")[:-1]:
        meta, path = entry.split("\t", 1)
        found.setdefault(path, set()).add(meta.split(" ")[2])
    return found


def _take(git: Git, upstream: Upstream) -> None:
    """Check the person's answer, then stage it.

    Raises:
        ConflictError: A file that git calls unmerged still has markers.
        NotAdditiveError: Upstream's lines were changed.
        RefusedError: Upstream's lines were copied.
    """
    if unmerged := [path for path in _unmerged(git) if os.path.lexists(git.folder / path)]:
        # The whitespace checks of --check are off; it finds markers among the added lines only.
        found = git.try_run(
            *("-c", "core.whitespace=-trailing-space,-space-before-tab", "diff", "--check"),
            *("HEAD", "--", *unmerged),
        )[1].decode("utf-8", "replace")
        if left := [line.partition(": ")[0] for line in found.splitlines() if ": " in line]:
            raise ConflictError(
                f"conflict markers are left in {git.folder}: {', '.join(left)}",
                hint=f"resolve them, then mto upgrade {upstream.name} --continue; or --abort; git "
                "add FILE says that a line only looks like a marker",
            )
    new = [path for path in _others(git) if not _is_litter(path)]
    with copied_index(git) as away:  # a refused answer is not staged
        _add(away, new)
        tree = away.text("write-tree", "--missing-ok")
    try:
        file_patches(git, "HEAD", tree)
    except NotAdditiveError as error:
        error.message = f"in {git.folder}: {error.message}"
        raise
    patch = read_series(upstream)[_patch_of(git, upstream, "REBASE_HEAD") or 0]
    refuse_upstream_text(git, (upstream.pin, _config(git, "target")), patch, "HEAD", tree)
    _add(git, new)


def _add(git: Git, new: list[str]) -> None:
    git.run("add", "--update", "--", ":/")
    if new:
        names = "\0".join(new).encode("utf-8", "surrogateescape")
        git.run("add", "--pathspec-from-file=-", "--pathspec-file-nul", input=names)


def _others(git: Git, *flags: str) -> list[str]:
    """Return untracked files, or with `--ignored` those that git ignores."""
    return git.text("ls-files", "-z", "--others", *flags, "--exclude-standard").split("\0")[:-1]


def _is_litter(path: str) -> bool:
    name = path.rpartition("/")[2]
    return path.endswith(_LEFT_BY_TOOLS) or any(mark in name for mark in _TEMPORARY)
