"""Reads patch files strictly: what `series.render` would not write is an error with its place."""

from __future__ import annotations

import re
from collections.abc import Iterable

from mto_tools.patchset.series import (
    FROM_LINE,
    MODES,
    ZERO,
    FilePatch,
    Hunk,
    Patch,
    PatchFormatError,
    Problem,
    message_problem,
    path_problem,
    render,
    split_lines,
)
from mto_tools.upstreams.upstream import LAYERS, Upstream, layer_of

_SUBJECT = re.compile(r"Subject: \[PATCH\] ([a-z]+): (\S(?:.*\S)?)")
_INDEX = re.compile(r"index ([0-9a-f]{40})\.\.([0-9a-f]{40})(?: (100644|100755))?")
_HUNK = re.compile(r"@@ -(\d+),0 \+(\d+)(?:,(\d+))? @@")


NO_FILE = "touches no file"


def read_series(upstream: Upstream) -> list[Patch]:
    """Read all patches of an upstream in order.

    Raises:
        CorruptError: A file is not in canonical form, or the names are out of order.
    """
    return [parse(file.read_bytes(), file.name) for file in upstream.patch_files()]


def parse(data: bytes, name: str) -> Patch:
    """Parse the bytes of a patch file.

    Args:
        data: The whole file.
        name: Its name, for error messages.

    Raises:
        PatchFormatError: The file is not exactly what `render` would write.
    """
    parser = _Parser(data, name)
    patch = parser.patch()
    if not parser.problems and render(patch) != data:
        parser.problem(1, "not in canonical form (compare with what `mto export` writes)")
    if parser.problems:
        raise PatchFormatError(parser.problems)
    return patch


def read_header(data: bytes, name: str) -> Patch:
    """Read layer, subject and body only; whatever follows may be wrong.

    Raises:
        PatchFormatError: The message is not in the form of ours.
    """
    head, mark, _ = data.partition(b"\n---\n")
    parser = _Parser(head + mark, name)
    patch = parser.patch()
    problems = [problem for problem in parser.problems if problem.reason != NO_FILE]
    if problems:
        raise PatchFormatError(problems)
    return patch


class _Parser:
    """Reads a patch file line by line and gathers problems instead of stopping at the first."""

    def __init__(self, data: bytes, name: str) -> None:
        self.name = name
        self.problems: list[Problem] = []
        if b"\0" in data:
            self.problem(1, "binary content")
        if not data.endswith(b"\n"):
            self.problem(1 + data.count(b"\n"), "no line feed at the end of the file")
        self.lines = [line.removesuffix(b"\n") for line in split_lines(data)]
        self.at = 0

    def problem(self, line: int, reason: str) -> None:
        self.problems.append(Problem(self.name, line, reason))

    def peek(self) -> str | None:
        """The next line as text; None at the end."""
        return (
            None if self.at >= len(self.lines) else self.lines[self.at].decode("utf-8", "replace")
        )

    def take(self) -> str:
        line = self.peek()
        self.at += 1
        return line or ""

    def expect(self, expected: str) -> None:
        if self.take() != expected:
            self.problem(self.at, f"expected {expected!r}")

    def patch(self) -> Patch:
        self.expect(FROM_LINE)
        match = _SUBJECT.fullmatch(self.take())
        layer, subject = (match[1], match[2]) if match else ("", "")
        if layer not in LAYERS:
            self.problem(
                2, f"expected 'Subject: [PATCH] LAYER: ...' with one of {', '.join(LAYERS)}"
            )
        elif layer != layer_of(self.name):
            self.problem(2, f"the subject says layer {layer}, the file's name another")
        body = self._body()
        files: list[FilePatch] = []
        while self.peek() is not None:
            files.append(self._file())
            if files[1:] and not files[-2].path.encode() < files[-1].path.encode():
                self.problem(files[-1].where, f"{files[-1].path}: paths out of order")
        if not files and not self.problems:
            self.problem(len(self.lines), NO_FILE)
        return Patch(layer, subject, body, tuple(files), self.name)

    def _body(self) -> str:
        if self.peek() == "":
            self.at += 1
        start = self.at
        while self.peek() not in ("---", None):
            if reason := message_problem(self.take()):
                self.problem(self.at, reason)
        body = b"\n".join(self.lines[start : self.at]).decode("utf-8", "replace")
        self.expect("---")
        return body

    def _file(self) -> FilePatch:
        where = self.at + 1
        match = re.fullmatch(r"diff --git a/(.+) b/(.+)", line := self.take())
        if not match or match[1] != match[2]:
            self.problem(where, f"expected 'diff --git a/PATH b/PATH', found {line[:40]!r}")
            self.at = len(self.lines)  # lost: whatever follows would only be noise
            return FilePatch("", ZERO, ZERO, "", (), where)
        path, mode = match[1], ""
        if reason := path_problem(path):
            self.problem(where, f"{path}: {reason}")
        if (self.peek() or "").startswith("new file mode "):
            mode = self.take().removeprefix("new file mode ")
        index = _INDEX.fullmatch(self.take())
        if not index:
            self.problem(
                self.at,
                "expected 'index' with two full OIDs and a mode: no rename, mode "
                "change or deletion",
            )
            before = after = ZERO
        else:
            before, after = index[1], index[2]
            mode = mode or index[3] or ""
        if mode not in MODES:
            self.problem(self.at, f"mode {mode or 'missing'}: only {' and '.join(MODES)}")
        if (self.peek() or "").startswith("--- "):
            self.at += 2  # checked by rendering the patch again
        return FilePatch(path, before, after, mode, tuple(self._hunks()), where)

    def _hunks(self) -> Iterable[Hunk]:
        shift, last = 1, -1
        while (line := self.peek()) is not None and not line.startswith("diff --git "):
            where = self.at + 1
            match = _HUNK.fullmatch(self.take())
            if not match:
                self.problem(where, _wrong_line(line))
                continue
            after, start, count = int(match[1]), int(match[2]), int(match[3] or 1)
            lines: list[bytes] = []
            while len(lines) < count and (self.peek() or "").startswith("+"):
                lines.append(self.lines[self.at][1:])
                self.at += 1
            if len(lines) != count:
                self.problem(where, f"the hunk announces {count} lines and has {len(lines)}")
            if after <= last or start != after + shift:
                self.problem(where, f"expected '+{after + shift}', behind line {last}")
            shift, last = shift + count, after
            yield Hunk(after, tuple(lines), where)


def _wrong_line(line: str) -> str:
    if line.startswith("@@"):
        ranges = line.split("@@")[1].split() if line.count("@@") > 1 else []
        if line.count("@@") > 1 and line.split("@@", 2)[2]:
            return "text behind @@ (upstream's function line)"
        if ranges and not ranges[0].endswith(",0"):
            return "the hunk takes upstream lines away or shows them; a patch only inserts"
        return "expected '@@ -A,0 +B,C @@'"
    if line.startswith("-"):
        return "deletes an upstream line; a patch only inserts"
    if line.startswith("\\"):
        return "the inserted text does not end with a line feed"
    if line.startswith("+"):
        return "inserted line that no '@@' announces"
    return "context: an upstream line inside the patch"
