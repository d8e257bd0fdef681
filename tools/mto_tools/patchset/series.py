"""A patch as data, its one canonical text, and the parser, which accepts nothing else.

A series is the sorted files `patches/NAME/000N-LAYER-SLUG.patch`. Each is a message in git's mail
form and a diff that only inserts, with no line of upstream text: no context, nothing behind `@@`::

    From 0000000000000000000000000000000000000000 Mon Sep 17 00:00:00 2001
    Subject: [PATCH] compat: one line

    Why this patch exists.
    ---
    diff --git a/engine.py b/engine.py
    index <40 hex digits>..<40 hex digits> 100644
    --- a/engine.py
    +++ b/engine.py
    @@ -48,0 +49,2 @@
    +loss = mto.add(loss, mask)
    +assert loss.isfinite()

A new file is an addition too. Renames, modes, binaries and files without a final newline are not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import zip_longest

from mto_tools.errors import CorruptError
from mto_tools.upstreams.upstream import Upstream, layer_of

ZERO = "0" * 40
MODES = ("100644", "100755")
_HEAD = re.compile(r"From .*\nSubject: \[PATCH\] ([a-z]+): (.+)\n\n((?:.*\n)*?)---\n")
_FILE = re.compile(
    rb"diff --git a/(.+) b/\1\n(?:new file mode (100644|100755)\n)?"
    rb"index ([0-9a-f]{40})\.\.([0-9a-f]{40})(?: (100644|100755))?\n(?:--- .+\n\+\+\+ .+\n)?"
)
_HUNK = re.compile(rb"@@ -(\d+),0 \+.+ @@\n((?:\+.*\n)*)")
_WRONG = {  # by the first letter of a line
    b"@": "expected '@@ -A,0 +B,C @@': no line of upstream shown or taken, no text behind @@",
    b"-": "deletes an upstream line; a patch only inserts",
    b"+": "inserted line that no '@@' announces",
    b"\\": "the inserted text does not end with a line feed",
    b"d": "expected a path, then 'index' with two full OIDs and mode 100644 or 100755, no rename",
}
# Lines which `git apply` would take for the start of a diff.
_DIFF_LIKE = ("diff --git ", "--- ", "+++ ", "@@ ", "From ")


@dataclass(frozen=True)
class Problem:
    """One thing wrong, at a place a person can go to."""

    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        """Return it as compilers do, so that editors can jump to it."""
        return f"{self.file}:{self.line}: {self.reason}"


class PatchFormatError(CorruptError):
    """A patch file is not in the form this module writes; `problem` is the first finding."""

    def __init__(self, name: str, line: int, reason: str) -> None:
        """Name the place: `line` of the patch file `name`."""
        self.problem = Problem(name, line, reason)
        super().__init__(
            str(self.problem),
            hint="restore the file with git; or, if you edited it: mto export NAME --from-patches",
        )


@dataclass(frozen=True)
class Hunk:
    """Lines inserted behind line `after` of the file before the patch (0: before the first)."""

    after: int
    lines: tuple[bytes, ...]
    where: int = field(default=0, compare=False)  # line of its `@@` in the patch file


@dataclass(frozen=True)
class FilePatch:
    """All insertions into one file, with the blob OIDs before and after them."""

    path: str
    before: str
    after: str
    mode: str
    hunks: tuple[Hunk, ...]

    @property
    def is_new(self) -> bool:
        """Whether the patch creates the file."""
        return self.before == ZERO

    @property
    def inserted(self) -> int:
        """Number of inserted lines."""
        return sum(len(hunk.lines) for hunk in self.hunks)


@dataclass(frozen=True)
class Patch:
    """One patch file: its layer, what it does, why, and the insertions by file."""

    layer: str
    subject: str
    body: str
    files: tuple[FilePatch, ...]
    name: str = field(default="", compare=False)

    @property
    def inserted(self) -> int:
        """Number of inserted lines."""
        return sum(file.inserted for file in self.files)


def file_name(number: int, layer: str, title: str, old: str = "") -> str:
    """Return the name of the `number`-th patch (from 1): a patch that had a name keeps its slug."""
    words = re.findall(r"[a-z0-9]+", title.lower().replace("'", ""))[:6]
    return f"{number:04d}-" + (old[5:] or "-".join([layer, *words]) + ".patch")


def split_lines(text: bytes) -> list[bytes]:
    """Split at line feeds only, each line keeping its own; a CR belongs to its line."""
    return re.findall(rb"[^\n]*\n|[^\n]+", text)


def insert(text: bytes, hunks: Iterable[Hunk]) -> bytes:
    """Insert `hunks` into `text`.

    Raises:
        ValueError: A hunk lies behind the end, or behind a last line that has no line feed.
    """
    old, new, done = split_lines(text), [], 0
    for hunk in hunks:
        if not done <= hunk.after <= len(old):
            raise ValueError(f"line {hunk.after} is outside of the file, which has {len(old)}")
        if hunk.after == len(old) and text and not text.endswith(b"\n"):
            raise ValueError("the last line has no line feed: inserting behind it would change it")
        new += old[done : hunk.after]
        new += [line + b"\n" for line in hunk.lines]
        done = hunk.after
    return b"".join(new + old[done:])


def path_problem(path: str) -> str:
    """Say why a patch cannot hold `path`; empty when it can."""
    parts = path.split("/")
    if not path or path.startswith("/") or any(part in ("", ".", "..") for part in parts):
        return "not a plain relative path"
    if any(part.lower() == ".git" for part in parts):
        return "inside .git"
    if not path.isascii() or not path.isprintable() or '"' in path or "\\" in path:
        return "only printable ASCII without quotes and backslashes is supported in a file name"
    if path.endswith((".orig", ".rej")):
        return "left by a merge tool, and no part of a patch"
    return ""


def message_problem(text: str) -> str:
    """Say why `text` cannot be the body of a patch's message; empty when it can."""
    for line in text.split("\n"):
        if line == "---" or line.startswith(_DIFF_LIKE):
            return f"a message line must not look like the start of a diff: {line[:20]!r}"
        if line != line.rstrip() or "\r" in line:
            return "a message line must not end with white space"
    if text != text.strip("\n"):
        return "the message must not begin or end with an empty line"
    return ""


def render(patch: Patch) -> bytes:
    """Return the canonical bytes of a patch file: the same patch is always the same bytes."""
    head = f"From {ZERO} Mon Sep 17 00:00:00 2001\n"
    head += f"Subject: [PATCH] {patch.layer}: {patch.subject}\n\n"
    out = [(head + (f"{patch.body}\n" if patch.body else "") + "---\n").encode()]
    for file in patch.files:
        out.append(_file_header(file).encode())
        shift = 1
        for hunk in file.hunks:
            count = len(hunk.lines)
            size = "" if count == 1 else f",{count}"
            out.append(f"@@ -{hunk.after},0 +{hunk.after + shift}{size} @@\n".encode())
            out.extend(b"+" + line + b"\n" for line in hunk.lines)
            shift += count
    return b"".join(out)


def _file_header(file: FilePatch) -> str:
    tab = "\t" if " " in file.path else ""  # as git does: the name ends where the tab stands
    text = f"diff --git a/{file.path} b/{file.path}\n"
    if file.is_new:
        text += f"new file mode {file.mode}\nindex {file.before}..{file.after}\n"
        old = "/dev/null"
    else:
        text += f"index {file.before}..{file.after} {file.mode}\n"
        old = f"a/{file.path}{tab}"
    return text + (f"--- {old}\n+++ b/{file.path}{tab}\n" if file.hunks else "")


def read_series(upstream: Upstream) -> list[Patch]:
    """Read all patches of an upstream in order.

    Raises:
        CorruptError: A file is not in canonical form, or the names are out of order.
    """
    return [parse(file.read_bytes(), file.name) for file in upstream.patch_files()]


def parse(data: bytes, name: str) -> Patch:
    """Parse the bytes of the patch file `name`.

    Raises:
        PatchFormatError: The file is not exactly what `render` would write; names the first place.
    """
    if b"\0" in data:
        raise PatchFormatError(name, 1, "binary content")
    if not data.endswith(b"\n"):
        raise PatchFormatError(name, data.count(b"\n") + 1, "no line feed at the end of the file")
    patch = read_header(data, name)
    files: list[FilePatch] = []
    at = data.index(b"\n---\n") + 5
    while at < len(data):
        line = data.count(b"\n", 0, at) + 1
        match = _FILE.match(data, at)
        if not match:
            other = "context, or binary content: a patch holds inserted lines only"
            raise PatchFormatError(name, line, _WRONG.get(data[at : at + 1], other))
        path, new_mode, before, after, mode = (
            part.decode(errors="replace") for part in match.groups(b"")
        )
        if reason := path_problem(path):
            raise PatchFormatError(name, line, f"{path}: {reason}")
        if files and path <= files[-1].path:
            raise PatchFormatError(name, line, f"{path}: paths out of order")
        hunks: list[Hunk] = []
        at = match.end()
        while hunk := _HUNK.match(data, at):
            line = data.count(b"\n", 0, at) + 1
            if hunks and int(hunk[1]) <= hunks[-1].after:
                raise PatchFormatError(name, line, f"expected a line behind {hunks[-1].after}")
            lines = tuple(inserted[1:] for inserted in hunk[2].split(b"\n")[:-1])
            hunks.append(Hunk(int(hunk[1]), lines, line))
            at = hunk.end()
        files.append(FilePatch(path, before, after, new_mode or mode, tuple(hunks)))
    patch = replace(patch, files=tuple(files))
    both = zip_longest(data.split(b"\n"), render(patch).split(b"\n"), fillvalue=b"")
    for line, (found, expected) in enumerate(both, start=1):
        if found != expected:
            raise PatchFormatError(name, line, f"expected {expected.decode(errors='replace')!r}")
    return patch


def read_header(data: bytes, name: str) -> Patch:
    """Read layer, subject and body only; whatever follows may be wrong.

    Raises:
        PatchFormatError: The message is not in the form of ours.
    """
    match = _HEAD.match(data.partition(b"\ndiff --git ")[0].decode(errors="replace") + "\n")
    if not match:
        form = "'From', 'Subject: [PATCH] LAYER: ...', an empty line, why, '---'"
        raise PatchFormatError(name, 1, f"expected {form}")
    layer, subject, body = match.groups()
    body = body.removesuffix("\n")
    if layer != layer_of(name):
        raise PatchFormatError(name, 2, f"the subject says layer {layer}, the file's name another")
    if reason := message_problem(subject) or message_problem(body):
        raise PatchFormatError(name, 2, reason)
    return Patch(layer, subject, body, (), name)
