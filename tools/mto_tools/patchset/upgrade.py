"""`mto upgrade`: a series rehearsed on another upstream commit, and accepted in one step."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mto_tools.errors import CorruptError, MtoError, RefusedError
from mto_tools.patchset.build import build_series, check_built
from mto_tools.patchset.checkout import open_clone
from mto_tools.patchset.export import Draft, write_series
from mto_tools.patchset.git import Git
from mto_tools.patchset.lint import SHORTEST, upstream_lines
from mto_tools.patchset.lock import Lock, format_lock, lock_path, read_lock, verify
from mto_tools.patchset.locks import Say
from mto_tools.patchset.merge import require_merge_tree
from mto_tools.patchset.parser import read_series
from mto_tools.patchset.replay import VERDICTS, Step, replay
from mto_tools.patchset.series import Patch
from mto_tools.patchset.sources import Source
from mto_tools.patchset.transaction import clone_lock, replace_files
from mto_tools.patchset.tree_diff import file_patches, read_blobs
from mto_tools.patchset.workshop import Workshop, bring, resolve_target
from mto_tools.upstreams.upstream import Upstream

_LICENCE = re.compile(r"(licen[cs]e|copying|notice)\b.*", re.IGNORECASE)


@dataclass
class LicenceChange:
    """One licence file that differs; `lines` is a diff for the terminal only."""

    path: str
    what: str
    lines: list[str] = field(default_factory=list)


@dataclass
class Rehearsal:
    """What an upgrade would do.

    Attributes:
        name: The upstream.
        pin: Full OID of the pinned commit.
        target: Full OID of the other one.
        date: Its day.
        subject: Its first line, for the terminal only.
        ahead: Commits of the target that the pin has not; -1 where histories are not at hand.
        behind: Commits of the pin that the target has not.
        steps: What became of each patch.
        licence: Licence files that differ.
    """

    name: str
    pin: str
    target: str
    date: str
    subject: str
    ahead: int
    behind: int
    steps: list[Step]
    licence: list[LicenceChange]

    @property
    def ok(self) -> bool:
        """Whether the series goes over without a person."""
        return all(step.ok for step in self.steps)

    @property
    def counts(self) -> dict[str, int]:
        """Number of hunks by verdict."""
        found = Counter(hunk.verdict for step in self.steps for hunk in step.hunks)
        return {verdict: found[verdict] for verdict in VERDICTS}

    def as_dict(self) -> dict[str, Any]:
        """Return it for `--json`: facts only, no upstream text."""
        return {
            **{key: getattr(self, key) for key in ("name", "pin", "target", "date", "ahead")},
            "behind": self.behind,
            "ok": self.ok,
            "counts": self.counts,
            "patches": [
                {
                    "file": step.patch.name,
                    "ok": step.ok,
                    "hunks": [
                        {
                            **{k: getattr(h, k) for k in ("path", "after", "count", "verdict")},
                            "now": h.now,
                            "changed_around": len(h.around),
                            "note": h.note,
                        }
                        for h in step.hunks
                    ],
                }
                for step in self.steps
            ],
            "licence": [{"path": change.path, "what": change.what} for change in self.licence],
        }


def load_series(git: Git, upstream: Upstream) -> tuple[Lock, list[Patch]]:
    """Read lock and series, and build the series' trees in `git`.

    Raises:
        CorruptError: The series is not what the lock says.
    """
    lock = read_lock(upstream)
    if lock is None:
        return Lock(upstream.pin, git.resolve(f"{upstream.pin}^{{tree}}")), []
    contents = verify(lock, upstream)
    named = list(zip((patch.file for patch in lock.patches), contents, strict=True))
    check_built(build_series(git, upstream.pin, named), lock, lock_path(upstream.folder))
    return lock, read_series(upstream)


def rehearse(shop: Workshop, upstream: Upstream, ref: str) -> Rehearsal:
    """Carry the series over to the commit `ref` names, in the workshop only.

    Raises:
        MissingError: There is no such commit, or git is too old.
        CorruptError: The series is not what the lock says.
    """
    require_merge_tree(shop.git)
    lock, series = load_series(shop.git, upstream)
    return rehearse_on(shop, upstream, lock, series, resolve_target(shop, upstream, ref))


def rehearse_on(
    shop: Workshop, upstream: Upstream, lock: Lock, series: Sequence[Patch], target: str
) -> Rehearsal:
    """Carry a series that is loaded over to the commit `target`."""
    git = shop.git
    steps = list(replay(git, lock, series, target))
    date, _, subject = git.text("log", "-1", "--format=%cs %s", target).partition(" ")
    rc, out, _ = git.try_run(
        "rev-list", "--left-right", "--count", f"{lock.base_commit}...{target}"
    )
    behind, ahead = (int(part) for part in out.split()) if rc == 0 else (-1, -1)
    for step in steps:
        name_culprits(git, step, lock.base_commit, target)
    changed = licence_changes(git, lock.base_commit, target)
    return Rehearsal(
        upstream.name, lock.base_commit, target, date, subject, ahead, behind, steps, changed
    )


def name_culprits(git: Git, step: Step, pin: str, target: str) -> None:
    """Note at every hunk whose file is gone or renamed which commit did it."""
    for hunk in step.hunks:
        if hunk.verdict in ("renamed", "gone"):
            hunk.note = who_removed(git, pin, target, hunk.path)


def who_removed(git: Git, pin: str, target: str, path: str) -> str:
    """Say which commit took `path` away between two commits, or brought it, seen backwards."""
    query = ("log", "-1", "--full-history", "--no-renames", "--format=%H %cs")
    for kind, span, words in (
        ("D", f"{pin}..{target}", "removed by"),
        ("A", f"{target}..{pin}", "not there yet, added by"),
    ):
        rc, out, _ = git.try_run(*query, f"--diff-filter={kind}", span, "--", path)
        if rc == 0 and out.strip():
            oid, _, day = out.decode().strip().partition(" ")
            return f"{words} {oid} ({day})"
    return "no commit between the two removed it by itself"


def licence_changes(git: Git, pin: str, target: str) -> list[LicenceChange]:
    """Compare the licence files in the top folders of two commits."""
    old, new = (_licences(git, commit) for commit in (pin, target))
    blobs = read_blobs(git, {*old.values(), *new.values()})
    found = []
    for path in sorted(old.keys() | new.keys()):
        if old.get(path) == new.get(path):
            continue
        a, b = (
            blobs[side[path]].decode("utf-8", "replace").splitlines() if path in side else []
            for side in (old, new)
        )
        what = "added" if path not in old else "removed" if path not in new else "changed"
        found.append(LicenceChange(path, what, list(difflib.unified_diff(a, b, lineterm=""))[2:]))
    return found


def accept(
    shop: Workshop,
    upstream: Upstream,
    target: str,
    done: Sequence[tuple[Patch, str]],
    say: Say,
    source: str | None = None,
    repo: Path | None = None,
) -> Lock:
    """Write pin, series and lock for `target` in one step; the caller is inside `exclusive`.

    Args:
        shop: Where the trees are.
        upstream: The upstream as it was.
        target: Full OID of the new pin.
        done: Each patch and the tree with it.
        say: Told what is left to do.
        source: Where the commit came from, if not from the upstream's own source.
        repo: The user's clone, if not under `upstream/`.

    Raises:
        RefusedError: The new series would hold upstream text.
    """
    git = shop.git
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
            bring(clone, upstream, target, source)
    except MtoError as error:
        say(f"{upstream.name}: the new pin is not in a clone yet: {error.message}")
    if source and upstream.url:
        shown = Source(source, "--source", "url").shown
        say(f"the pin came from {shown}; upstream.toml still names {upstream.url}: does it fit?")
    replace_files(upstream.folder, replaced, "upgrade --accept")
    return lock


def refuse_upstream_text(
    git: Git, commits: Sequence[str], patch: Patch, before: str, tree: str
) -> None:
    """Refuse a resolution of `patch`, from tree `before` to `tree`, that copies upstream's lines.

    Raises:
        RefusedError: Names every file with a line that one of `commits` has.
    """
    mine = {line.strip() for f in patch.files for h in f.hunks for line in h.lines}
    found = [
        (file.path, line.strip())
        for file in file_patches(git, before, tree)
        for hunk in file.hunks
        for line in hunk.lines
        if len(line.strip()) >= SHORTEST and line.strip() not in mine
    ]
    copied = {c for commit in commits for c in upstream_lines(git, commit, [x for _, x in found])}
    places = [f"{path}: {line.decode(errors='replace')}" for path, line in found if line in copied]
    if places:
        raise RefusedError(
            f"{patch.name} would hold upstream text:\n" + "\n".join(f"  {p}" for p in places),
            hint="insert lines of your own only; a file that upstream deleted is not brought back",
        )


def repinned(git: Git, upstream: Upstream, target: str) -> bytes:
    """Return `upstream.toml` with another pin, everything else left as it is."""
    import tomlkit

    file = upstream.folder / "upstream.toml"
    document = tomlkit.parse(file.read_text("utf-8"))
    document["pin"] = target
    if upstream.source != "embedded":
        document["pin_date"] = git.text("log", "-1", "--format=%cs", target)
    text = tomlkit.dumps(document)
    if target not in text:
        raise CorruptError(f"{file}: the pin could not be rewritten")
    return text.encode()


def _licences(git: Git, commit: str) -> dict[str, str]:
    entries = git.text("ls-tree", "-z", commit).split("\0")[:-1]
    found = {}
    for entry in entries:
        meta, path = entry.split("\t", 1)
        if meta.split(" ")[1] == "blob" and _LICENCE.fullmatch(path):
            found[path] = meta.split(" ")[2]
    return found
