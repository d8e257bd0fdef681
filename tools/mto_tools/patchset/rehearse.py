"""A series rehearsed on another upstream commit, in a scratch repository only, and the report.

Upstream text is shown on the terminal and stored nowhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mto_tools.errors import RefusedError
from mto_tools.patchset.git import Git
from mto_tools.patchset.lint import copied_lines, is_licence
from mto_tools.patchset.lock import load_series, rebuild
from mto_tools.patchset.replay import VERDICTS, Step, replay
from mto_tools.patchset.scratch_repo import Scratch
from mto_tools.patchset.series import read_series
from mto_tools.patchset.tree_diff import changes, file_patches

_MOST = 24  # lines of upstream text shown of one place


@dataclass(frozen=True)
class Rehearsal:
    """The result of an upgrade that was only tried."""

    name: str  # of the upstream
    pin: str  # full OID
    target: str  # full OID of the other commit
    date: str  # its day
    subject: str  # its first line; for the terminal only
    ahead: int  # commits of the target that the pin has not; -1 where histories are not at hand
    behind: int  # commits of the pin that the target has not
    steps: list[Step]  # the outcome of each patch
    copied: list[str]  # "path: line" of inserted lines that the target's text has, too
    licence: dict[str, str]  # licence files that differ, with the diff for the terminal only

    @property
    def ok(self) -> bool:
        """Whether the series goes over without a person."""
        return not self.copied and all(step.ok for step in self.steps)

    def as_dict(self) -> dict[str, Any]:
        """Return it for `--json`: facts only, no upstream text."""
        facts = ("name", "pin", "target", "date", "ahead", "behind", "ok")
        found = [hunk.verdict for step in self.steps for hunk in step.hunks]
        return {
            **{key: getattr(self, key) for key in facts},
            "counts": {verdict: found.count(verdict) for verdict in VERDICTS},
            "patches": [
                {"file": s.patch.name, "ok": s.ok, "hunks": [asdict(hunk) for hunk in s.hunks]}
                for s in self.steps
            ],
            "copied": [place.partition(": ")[0] for place in self.copied],
            "licence": list(self.licence),
        }


def rehearse(scratch: Scratch, ref: str) -> Rehearsal:
    """Carry the series over to the commit `ref` names at the source, in `scratch` only.

    Raises:
        MissingError: There is no such commit, or git is too old.
        CorruptError: The series is not what the lock says.
        RefusedError: The commit holds the series already.
    """
    git, upstream = scratch.git, scratch.upstream
    lock = rebuild(git, load_series(upstream), upstream.folder)
    target = scratch.resolve(ref)
    _refuse_series(git, upstream.pin, target, ref)
    steps = list(replay(git, lock, read_series(upstream), target))
    removed = ("log", "-1", "--full-history", "--no-renames", "--diff-filter=D")
    shown = ("--format=removed by %H (%cs)", f"{upstream.pin}..{target}", "--")
    for hunk in (hunk for step in steps for hunk in step.hunks):
        if hunk.verdict in ("renamed", "gone"):
            hunk.note = git.text(*removed, *shown, hunk.path, check=False)
    date, _, subject = git.text("log", "-1", "--format=%cs %s", target).partition(" ")
    rc, out, _ = git.try_run("rev-list", "--left-right", "--count", f"{upstream.pin}...{target}")
    behind, ahead = (int(part) for part in out.split()) if rc == 0 else (-1, -1)
    places = [place for s in steps if s.ok for place in copied(git, [target], s.before, s.after)]
    licence = {
        change.path: git.text("diff-tree", "-p", upstream.pin, target, "--", change.path)
        for change in changes(git, upstream.pin, target)
        if is_licence(change.path)
    }
    return Rehearsal(
        upstream.name, upstream.pin, target, date, subject, ahead, behind, steps, places, licence
    )


def _refuse_series(git: Git, pin: str, target: str, ref: str) -> None:
    """Refuse a commit on top of our own, as a checkout's HEAD is: it would empty the series."""
    ours = ("--author=<mto@invalid>", "--min-parents=1", "--format=%H %P", "--reverse")
    if found := git.text("log", *ours, target, "--not", pin, check=False):
        commit, below = found.splitlines()[0].split()[:2]
        raise RefusedError(
            f"{ref} is {target}: it holds {commit}, which mto made of a patch, so no patch "
            "would be left",
            hint=f"name a commit without the series; the one below it is {below}",
        )


def copied(git: Git, commits: Sequence[str], before: str, tree: str) -> list[str]:
    """Return "path: line" of every line inserted between two trees that a commit's text has."""
    files = file_patches(git, before, tree)
    found = [line for commit in commits for line in copied_lines(git, commit, files)]
    return [f"{path}: {line.decode(errors='replace')}" for path, _, line in dict.fromkeys(found)]


def refuse_upstream_text(what: str, places: Sequence[str]) -> None:
    """Raise RefusedError where a patch, or series, has upstream's lines, which are at `places`."""
    if places:
        raise RefusedError(
            f"{what} would hold upstream text:\n" + "\n".join(f"  {place}" for place in places),
            hint="insert lines in words of your own, and bring back no file that upstream deleted; "
            "a line that upstream took over is reworded in the checkout, exported, then upgraded",
        )


def show(console: Console, rehearsal: Rehearsal) -> None:
    """Print the report of one upgrade."""
    r = rehearsal
    if not console.is_terminal:
        console.width = 400  # a pipe has no right margin
    distance = "" if r.ahead < 0 else f" ({r.ahead} ahead, {r.behind} behind)"

    def line(text: str, style: str = "") -> None:
        console.print(Text(text, style), soft_wrap=True)

    line(f"{r.name}  {r.pin}\nto  {r.target}\n    {r.date} {r.subject}{distance}")
    for step in r.steps:
        line(f"\n{step.patch.name}", "bold")
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
        for hunk in step.hunks:
            here = (hunk.path, hunk.after)
            now = "" if hunk.now in (None, here) else f"-> {hunk.now[0]}:{hunk.now[1]}"
            table.add_row(
                "",
                Text(f"{hunk.path}:{hunk.after}"),
                Text(f"+{hunk.count}", "dim"),
                Text(*VERDICTS[hunk.verdict]),
                Text(now),
                Text("upstream changed around it" if hunk.changed_around else "", "dim"),
            )
        console.print(table)
        notes = [f"  {hunk.path}: {hunk.note}" for hunk in step.hunks if hunk.note]
        for note in dict.fromkeys([*notes, *step.refused.splitlines()]):
            line(note)
        for path, lines in step.sides.items():
            line(f"  {path}, both sides:", "bold red")
            line(_quoted(lines))
    if r.copied:
        line("\nupstream has these inserted lines too:", "bold red")
        line("\n".join(f"  {place}" for place in r.copied))
    for path, diff in r.licence.items():
        line(f"\nlicence: {path} differs", "bold yellow")
        line(_quoted(diff.splitlines()))


def _quoted(lines: list[str]) -> str:
    more = [f"... {len(lines) - _MOST} more lines"] if len(lines) > _MOST else []
    return "\n".join(f"    {line}" for line in [*lines[:_MOST], *more])
