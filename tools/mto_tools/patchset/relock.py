"""Patch files edited by hand, or merged by git, brought back into form together with their lock."""

from __future__ import annotations

from pathlib import Path

from mto_tools.patchset.build import apply_patch
from mto_tools.patchset.checkout import open_clone
from mto_tools.patchset.export import Draft, write_series
from mto_tools.patchset.git import Git
from mto_tools.patchset.lock import Lock, format_lock, lock_path
from mto_tools.patchset.locks import Say
from mto_tools.patchset.parser import read_header
from mto_tools.patchset.transaction import clone_lock, replace_files, series_lock
from mto_tools.upstreams.upstream import Upstream


def relock(upstream: Upstream, say: Say, repo: Path | None = None) -> tuple[list[str], Lock]:
    """Take the patch files for the truth: write them canonically, and the lock that fits them.

    Returns:
        Names of the patch files that were rewritten, and the lock.

    Raises:
        CorruptError: A patch does not apply to what the ones before it give.
        NotAdditiveError: A patch does more than insert.
    """
    clone = open_clone(upstream, repo)
    with series_lock(upstream.folder, say), clone_lock(clone, say) as git:
        drafts = _drafts(git, upstream)
        files, lock = write_series(git, upstream.pin, drafts)
        old = {file.name: file.read_bytes() for file in upstream.patch_files()}
        changed: dict[str, bytes | None] = {
            name: data for name, data in files.items() if old.get(name) != data
        }
        changed.update(dict.fromkeys(old.keys() - files.keys()))
        place = lock_path(upstream.folder)
        if changed or not place.exists() or place.read_bytes() != format_lock(lock):
            replace_files(upstream.folder, {**changed, place.name: format_lock(lock)}, "export")
        return sorted(changed), lock


def _drafts(git: Git, upstream: Upstream) -> list[Draft]:
    drafts, tree = [], upstream.pin
    for file in upstream.patch_files():
        data = file.read_bytes()
        patch = read_header(data, file.name)
        tree = apply_patch(git, tree, data, file.name)
        drafts.append(Draft(patch.layer, patch.subject, patch.body, tree, file.name))
    return drafts
