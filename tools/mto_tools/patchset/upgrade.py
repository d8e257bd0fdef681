"""`mto upgrade --accept`: pin, series and lock move to another upstream commit in one step.

Where the series conflicts, git's own rebase stops for a person in `upstream/.resolve/NAME`, a copy
of the scratch repository: the clone is not touched. `git rebase --onto TARGET PIN` lays one patch
after the other on, writes zdiff3 markers and stops; rerere remembers the answers. All of git's
commands work there. `mto upgrade --continue` is `git rebase --continue` behind three checks, and
accepts the result when git is done.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import tomlkit

from mto_tools.errors import ConflictError, MissingError, MtoError, RefusedError
from mto_tools.patchset.checkout import leave_out, open_clone
from mto_tools.patchset.export import store_series, write_series
from mto_tools.patchset.git import Git
from mto_tools.patchset.lock import Lock, load_series
from mto_tools.patchset.locks import Say
from mto_tools.patchset.rehearse import Rehearsal, copied, refuse_upstream_text
from mto_tools.patchset.replay import SETTINGS, read_stages
from mto_tools.patchset.scratch_repo import Scratch
from mto_tools.patchset.series import Patch, read_series
from mto_tools.patchset.sources import Source, fetch_commit, missing_files
from mto_tools.patchset.transaction import clone_lock, free_name
from mto_tools.upstreams.upstream import Upstream

_CONFIG = {
    **SETTINGS,
    "core.autocrlf": "false",
    "core.editor": "true",
    "merge.conflictStyle": "zdiff3",
    "mergetool.keepBackup": "false",
    "rerere.enabled": "true",
    "rerere.autoUpdate": "false",
    "user.name": "mto",
    "user.email": "mto@localhost",
}


def upgrade(scratch: Scratch, rehearsal: Rehearsal, say: Say, repo: Path | None = None) -> Lock:
    """Accept what `rehearse` found in `scratch`, or open a work tree for the conflicts.

    The caller holds the series' lock. `repo` is the user's clone, if not under `upstream/`.

    Raises:
        ConflictError: A person must decide. The message says where and how.
        RefusedError: The series would hold upstream text, or another upgrade waits for a person.
    """
    upstream = scratch.upstream
    if folder_of(upstream).exists():
        raise RefusedError(
            f"an upgrade of {upstream.name} is under way in {folder_of(upstream)}",
            hint=f"mto upgrade {upstream.name} --continue, or --abort",
        )
    refuse_upstream_text("the series", rehearsal.copied)
    source = scratch.source
    if source and source.origin == "--source":
        say(f"the pin comes from {source.shown}; upstream.toml names {upstream.url}: does it fit?")
    if not rehearsal.ok:
        return _finish(_start_rebase(scratch, rehearsal.target), upstream, say, repo)
    done = [(step.patch, step.after) for step in rehearsal.steps]
    return accept(scratch.git, upstream, rehearsal.target, done, say, repo)


def folder_of(upstream: Upstream) -> Path:
    """Where an upgrade of this upstream is resolved."""
    return upstream.home / "upstream" / ".resolve" / upstream.name


def proceed(upstream: Upstream, say: Say, repo: Path | None = None) -> Lock:
    """Take the person's answer, let git go on, and accept the result when it is done.

    Raises:
        ConflictError: Markers are left, or a later patch conflicts.
        NotAdditiveError: The answer changes upstream's lines.
        RefusedError: The answer copies upstream's lines, or the series has changed meanwhile.
        MissingError: No upgrade is under way.
    """
    with clone_lock(Git(_under_way(upstream)), say) as git:
        if _config(git, "series") != load_series(upstream).lock.commit:
            raise RefusedError(
                f"{git.folder} carries over the series as it was before {upstream.folder} "
                "changed: going on would lose what is new",
                hint=f"keep a copy of what you resolved there, then mto upgrade {upstream.name} "
                f"--abort, and mto upgrade {upstream.name} --to {_config(git, 'target')} --accept",
            )
        if _stopped(git):
            _take(git, upstream)
            _rebase(git, "--continue")
        return _finish(git, upstream, say, repo)


def abort(upstream: Upstream) -> Path:
    """Remove the work tree; nothing else has changed.

    Raises:
        MissingError: No upgrade is under way.
    """
    folder = _under_way(upstream)
    shutil.rmtree(folder)
    return folder


def accept(
    git: Git,
    upstream: Upstream,
    target: str,
    done: Sequence[tuple[Patch, str]],
    say: Say,
    repo: Path | None = None,
) -> Lock:
    """Write pin, series and lock for the commit `target` in one step.

    The caller holds the series' lock. `done` has each patch, and the tree with it in `git`.

    Raises:
        RefusedError: The new series would hold upstream text.
        NotAdditiveError: It would do more than insert.
    """
    before = target
    for patch, tree in done:
        refuse_upstream_text(patch.name, copied(git, (upstream.pin, target), before, tree))
        before = tree
    files, lock = write_series(git, target, done)
    document = tomlkit.parse((upstream.folder / "upstream.toml").read_text("utf-8"))
    document["pin"] = target
    if upstream.pin_date and upstream.source != "embedded":
        document["pin_date"] = git.text("log", "-1", "--format=%cs", target)
    files["upstream.toml"] = tomlkit.dumps(document).encode()
    try:
        with clone_lock(open_clone(upstream, repo), say) as clone:
            if not clone.resolve(f"{target}^{{commit}}"):
                here = Source(str(git.folder), "the upgrade", "repository")
                fetch_commit(clone, here, target, upstream)
    except MtoError as error:
        say(f"{upstream.name}: the new pin is not in a clone yet: {error.message}")
    store_series(upstream, files, lock, "upgrade --accept")
    return lock


def _start_rebase(scratch: Scratch, target: str) -> Git:
    """Start the rebase in a work tree that appears under its name when git has stopped."""
    upstream = scratch.upstream
    folder = folder_of(upstream)
    part = folder.with_name(f".{upstream.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(scratch.git.folder, part, symlinks=True)
    git = Git(part)
    memory = folder.parent / ".rerere" / upstream.name
    memory.mkdir(parents=True, exist_ok=True)
    (git.git_dir() / "rr-cache").symlink_to(memory)
    series = load_series(upstream).lock.commit
    state = {"mto.target": target, "mto.series": series}
    for key, value in {**_CONFIG, **state}.items():
        git.run("config", key, value)
    if lost := missing_files(git, target):
        leave_out(git, list(lost))
    git.run("update-ref", "--no-deref", "HEAD", target)
    git.run("read-tree", "-m", "-u", target)
    flags = ("--empty=keep", "--no-rebase-merges", "--no-autosquash", "--no-autostash")
    _rebase(git, *flags, "--onto", target, upstream.pin, series)
    part.rename(folder)
    return Git(folder)


def _finish(git: Git, upstream: Upstream, say: Say, repo: Path | None) -> Lock:
    """Accept a rebase that is done; what is not part of it is kept."""
    if _stopped(git):
        raise _conflict(git, upstream)
    target, head = _config(git, "target"), git.resolve("HEAD")
    if head == target or not git.ok("merge-base", "--is-ancestor", target, head):
        raise RefusedError(
            f"{git.folder}: HEAD {head} is not the series on {target}: the rebase was aborted",
            hint=f"mto upgrade {upstream.name} --abort, then --to {target} --accept anew",
        )
    done = list(zip(read_series(upstream), _trees(git, upstream, target), strict=True))
    try:
        lock = accept(git, upstream, target, done, say, repo)
    except RefusedError as error:
        error.hint += (
            f"; here: {git.command('rebase', '-i', target)}, "
            f"then mto upgrade {upstream.name} --continue; or --abort"
        )
        raise
    if left := git.text("ls-files", "-z", "--others").split("\0")[:-1]:
        aside = free_name(git.folder.with_name(f"{upstream.name}.done"))
        git.folder.rename(aside)
        say(f"not part of a patch, because git does not track it: {', '.join(left)}; see {aside}")
    else:
        shutil.rmtree(git.folder)
    return lock


def _under_way(upstream: Upstream) -> Path:
    folder = folder_of(upstream)
    if not folder.exists():
        raise MissingError(
            f"no upgrade of {upstream.name} is under way",
            hint=f"mto upgrade {upstream.name} --to REF --accept",
        )
    return folder


def _config(git: Git, key: str) -> str:
    return git.text("config", f"mto.{key}", check=False)


def _rebase(git: Git, *args: str) -> None:
    """Let git go on to its next stop, or to the end."""
    before = git.resolve("REBASE_HEAD")
    settings = [part for key, value in _CONFIG.items() for part in ("-c", f"{key}={value}")]
    rc, _, err = git.with_env(GIT_EDITOR="true").try_run(*settings, "rebase", *args)
    if rc and (not _stopped(git) or git.resolve("REBASE_HEAD") == before):
        raise MtoError(f"git rebase cannot go on in {git.folder}: {' '.join(err.split())}")


def _stopped(git: Git) -> bool:
    return (git.git_dir() / "rebase-merge").is_dir()


def _number(git: Git, upstream: Upstream, commit: str) -> int:
    """Return the index of the patch a commit carries, -1 for none: the author's date tells it."""
    first = int(git.text("log", "-1", "--format=%ct", upstream.pin)) + 1
    number = int(git.text("log", "-1", "--format=%at", commit)) - first
    return number if 0 <= number < len(upstream.patch_files()) else -1


def _trees(git: Git, upstream: Upstream, target: str) -> list[str]:
    """Return the tree after each patch; a commit of the person's own counts to the patch before."""
    trees = [git.resolve(f"{target}^{{tree}}")] * len(upstream.patch_files())
    latest = 0
    for commit in git.text("rev-list", "--reverse", f"{target}..HEAD").split():
        latest = max(latest, _number(git, upstream, commit))
        trees[latest:] = [git.resolve(f"{commit}^{{tree}}")] * len(trees[latest:])
    return trees


def _conflict(git: Git, upstream: Upstream) -> ConflictError:
    """Take out files that upstream deleted; return what tells the person where git stopped."""
    patch = read_series(upstream)[_number(git, upstream, "REBASE_HEAD")]
    words = [f"{patch.name} conflicts with {upstream.name} {_config(git, 'target')}"]
    for path, stages in read_stages(git.text("ls-files", "--unmerged", "-z")).items():
        gone = 1 in stages and 2 not in stages
        if gone:
            git.run("rm", "--quiet", "--force", "--", path)
        words.append(f"  {path}" + (" is gone: insert elsewhere, or leave out" if gone else ""))
    return ConflictError(
        "\n".join(words),
        hint=f"edit the files in {git.folder} (insert lines only, leave upstream's as they are; "
        f"git add new ones), then mto upgrade {upstream.name} --continue; or --abort",
    )


def _take(git: Git, upstream: Upstream) -> None:
    """Stage the person's answer; refuse markers, and upstream lines that were changed or copied."""
    unmerged = read_stages(git.text("ls-files", "--unmerged", "-z"))
    # The whitespace checks of --check are off; it finds markers among the added lines only.
    check = ("-c", "core.whitespace=-trailing-space,-space-before-tab", "diff", "--check", "HEAD")
    found = git.text(*check, "--", *unmerged, check=False) if unmerged else ""
    if left := [line.partition(": ")[0] for line in found.splitlines() if ": " in line]:
        raise ConflictError(
            f"conflict markers are left in {git.folder}: {', '.join(left)}",
            hint=f"resolve them, then mto upgrade {upstream.name} --continue; or --abort; git "
            "add FILE says that a line only looks like a marker",
        )
    git.run("add", "--update", "--", ":/")
    tree = git.text("write-tree", "--missing-ok")
    commits = (upstream.pin, _config(git, "target"))
    refuse_upstream_text(f"the answer in {git.folder}", copied(git, commits, "HEAD", tree))
