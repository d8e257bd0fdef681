"""Reads patch files strictly: what `series.render` would not write is an error with its place."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mto_tools.patchset.series import (
    FROM_LINE,
    MODES,
    FilePatch,
    Hunk,
    Patch,
    PatchFormatError,
    message_problem,
    path_problem,
    render,
    split_lines,
)
from mto_tools.upstreams.upstream import LAYERS, Upstream, layer_of

_SUBJECT = re.compile(r"Subject: \[PATCH\] ([a-z]+): (\S(?:.*\S)?)")
_FILE = re.compile(r"diff --git a/(.+) b/\1")
_INDEX = re.compile(r"index ([0-9a-f]{40})\.\.([0-9a-f]{40})(?: (100644|100755))?")
_HUNK = re.compile(r"@@ -(\d+),0 \+(\d+)(?:,(\d+))? @@")


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
        PatchFormatError: The file is not exactly what `render` would write; names the first place.
    """
    if b"\0" in data:
        raise PatchFormatError(name, 1, "binary content")
    reader = _Reader(data, name)
    layer, subject, body = reader.message()
    files = tuple(reader.files())
    patch = Patch(layer, subject, body, files, name)
    if not files:
        raise PatchFormatError(name, reader.at, "touches no file")
    if not data.endswith(b"\n"):
        raise PatchFormatError(name, reader.at, "no line feed at the end of the file")
    if render(patch) != data:
        reason = "not in canonical form (compare with what `mto export` writes)"
        raise PatchFormatError(name, 1, reason)
    return patch


def read_header(data: bytes, name: str) -> Patch:
    """Read layer, subject and body only; whatever follows may be wrong.

    Raises:
        PatchFormatError: The message is not in the form of ours.
    """
    return Patch(*_Reader(data, name).message(), (), name)


class _Reader:
    """Reads a patch file line by line; `at` is the number of lines taken."""

    def __init__(self, data: bytes, name: str) -> None:
        self.name = name
        self.raw = [line.removesuffix(b"\n") for line in split_lines(data)]
        self.lines = [line.decode("utf-8", "replace") for line in self.raw]
        self.at = 0

    def error(self, reason: str, line: int = 0) -> PatchFormatError:
        """Name a place: the line taken last, if no other is given."""
        return PatchFormatError(self.name, line or self.at, reason)

    def peek(self) -> str:
        return self.lines[self.at] if self.at < len(self.lines) else ""

    def take(self) -> str:
        line = self.peek()
        self.at += 1
        return line

    def expect(self, expected: str) -> None:
        if self.take() != expected:
            raise self.error(f"expected {expected!r}")

    def message(self) -> tuple[str, str, str]:
        self.expect(FROM_LINE)
        match = _SUBJECT.fullmatch(self.take())
        if not match or match[1] not in LAYERS:
            layers = ", ".join(LAYERS)
            raise self.error(f"expected 'Subject: [PATCH] LAYER: ...' with one of {layers}")
        layer, subject = match.groups()
        if layer != layer_of(self.name):
            raise self.error(f"the subject says layer {layer}, the file's name another")
        self.expect("")
        start = self.at
        while self.at < len(self.lines) and self.peek() != "---":
            if reason := message_problem(self.take()):
                raise self.error(reason)
        body = "\n".join(self.lines[start : self.at])
        self.expect("---")
        return layer, subject, body

    def files(self) -> Iterator[FilePatch]:
        last = b""
        while self.at < len(self.lines):
            match = _FILE.fullmatch(line := self.take())
            if not match:
                raise self.error(f"expected 'diff --git a/PATH b/PATH', found {line[:40]!r}")
            path, mode = match[1], ""
            if reason := path_problem(path):
                raise self.error(f"{path}: {reason}")
            if path.encode() <= last:
                raise self.error(f"{path}: paths out of order")
            last = path.encode()
            if self.peek().startswith("new file mode "):
                mode = self.take().removeprefix("new file mode ")
            index = _INDEX.fullmatch(self.take())
            if not index:
                raise self.error("expected 'index' with two full OIDs and a mode, and no rename")
            mode = mode or index[3] or "missing"
            if mode not in MODES:
                raise self.error(f"mode {mode}: only {' and '.join(MODES)}")
            if self.peek().startswith("--- "):
                self.at += 2  # checked by rendering the patch again
            yield FilePatch(path, index[1], index[2], mode, tuple(self.hunks()))

    def hunks(self) -> Iterator[Hunk]:
        shift, last = 1, -1
        while self.at < len(self.lines) and not self.peek().startswith("diff --git "):
            match = _HUNK.fullmatch(line := self.take())
            if not match:
                raise self.error(_wrong_line(line))
            after, start, count = int(match[1]), int(match[2]), int(match[3] or 1)
            if after <= last or start != after + shift:
                raise self.error(f"expected '+{after + shift}', behind line {last}")
            where = self.at
            while self.at < where + count and self.peek().startswith("+"):
                self.at += 1
            if self.at < where + count:
                if self.peek()[:1] in ("-", " "):
                    raise self.error(_wrong_line(self.take()))
                words = f"the hunk announces {count} lines and has {self.at - where}"
                raise self.error(words, where)
            shift, last = shift + count, after
            yield Hunk(after, tuple(line[1:] for line in self.raw[where : self.at]), where)


def _wrong_line(line: str) -> str:
    if line.startswith("@@"):
        parts = line.split("@@", 2)
        if len(parts) == 3 and parts[2]:
            return "text behind @@ (upstream's function line)"
        return "expected '@@ -A,0 +B,C @@': a patch shows no upstream line, and takes none away"
    return {
        "-": "deletes an upstream line; a patch only inserts",
        "\\": "the inserted text does not end with a line feed",
        "+": "inserted line that no '@@' announces",
    }.get(line[:1], "context: an upstream line inside the patch")
