"""Patch files: every wrong byte is found, and the same patch is always the same bytes."""

import hashlib
import re
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mto_tools.patchset.series import (
    ZERO,
    FilePatch,
    Hunk,
    Patch,
    PatchFormatError,
    file_name,
    insert,
    message_problem,
    parse,
    path_problem,
    render,
    split_lines,
)

NAME = "0001-compat-run-on-new-torch.patch"


def blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def example() -> Patch:
    before, hunks = b"a\nb\nc\n", (Hunk(0, (b"first",)), Hunk(2, (b"x", b"", b"-y\r")))
    changed = FilePatch("train.py", blob(before), blob(insert(before, hunks)), "100644", hunks)
    lines = (b"import torch", b"@@ -1 +1 @@")
    text = b"".join(line + b"\n" for line in lines)
    new = FilePatch("util/with space.py", ZERO, blob(text), "100755", (Hunk(0, lines),))
    empty = FilePatch("z/__init__.py", ZERO, blob(b""), "100644", ())
    return Patch(
        "compat",
        "run on new torch",
        "torch._six is gone.\n\nSo we bring it.",
        (changed, new, empty),
    )


def test_parse_is_the_inverse_of_render() -> None:
    patch = example()
    assert parse(render(patch), NAME) == patch


def test_git_reads_what_render_writes(tmp_path) -> None:
    """git's own parser is the independent truth about the format."""
    tmp_path = tmp_path / "repo"
    tmp_path.mkdir()
    (tmp_path / "train.py").write_bytes(b"a\nb\nc\n")
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    subprocess.run(["git", "add", "."], cwd=tmp_path, check=True)
    patch = example()
    command = ["git", "apply", "--cached", "--unidiff-zero", "--whitespace=nowarn", "-"]
    subprocess.run(command, cwd=tmp_path, input=render(patch), check=True)
    listed = subprocess.run(
        ["git", "ls-files", "-s", "-z"], cwd=tmp_path, capture_output=True, check=True
    )
    expected = [f"{file.mode} {file.after} 0\t{file.path}" for file in patch.files]
    assert listed.stdout.decode().rstrip("\0").split("\0") == expected


def swap(old: str, new: str):
    return lambda text: re.sub(old, new, text, count=1, flags=re.MULTILINE)


@pytest.mark.parametrize(
    ("change", "line", "reason"),
    [
        (swap("^From 0", "From 1"), 1, "expected 'From"),
        (swap("compat: run", "mto: run"), 2, "the file's name another"),
        (swap("^---$", "--"), 1, "'---'"),
        (swap("^So we bring it.", "So  "), 2, "white space"),
        (swap("^So we", "--- a/x"), 2, "start of a diff"),
        (swap(r"^\+first", "+first\n context"), 14, "context"),
        (swap(r"^\+first", "-first"), 13, "deletes an upstream line"),
        (swap(r"\+1 @@", "+1 @@ def forward(self):"), 12, "behind @@"),
        (swap(r"-0,0 \+1 @@", "-1 +1 @@"), 12, "expected '@@ -A,0"),
        (swap(r"-2,0 \+4,3", "-3,0 +4,3"), 14, r"expected '@@ -3,0 \+5,3 @@'"),
        (swap(r"-2,0 \+4,3", "-0,0 +2,3"), 14, "behind 0"),
        (swap(r"\+4,3", "+4,2"), 14, r"expected '@@ -2,0 \+4,3 @@'"),
        (swap(r"\+4,3", "+4,4"), 14, r"expected '@@ -2,0 \+4,3 @@'"),
        (swap(r"^\+-y\r", r"+-y\r\n\\ No newline at end of file"), 18, "line feed"),
        (swap("index [0-9a-f]{7}", "index "), 8, "full OIDs"),
        (swap("100644$", "100600"), 8, "mode 100644 or 100755"),
        (swap("new file mode 100755", "new file mode 120000"), 18, "mode 100644 or 100755"),
        (swap("index .*$", "rename from train.py\nrename to x"), 8, "no rename"),
        (swap("^--- a/train.py", "GIT binary patch"), 10, "binary"),
        (swap(r"^\+\+\+ b/train.py", "+++ b/other.py"), 11, r"expected '\+\+\+ b/train.py'"),
        (swap("a/train.py b/train.py", "a/train.py b/other.py"), 8, "expected a path"),
        (swap("a/train.py b/train.py", "a/../train.py b/../train.py"), 8, "plain relative path"),
        (swap("a/train.py b/train.py", "a/v.py b/v.py"), 18, "out of order"),
        (swap(r"\Z", "\n"), 29, "context"),
        (lambda text: text[:-1], 28, "line feed at the end"),
        (lambda text: text.replace("+first", "+fi\0rst"), 1, "binary"),
        (lambda text: text.replace("\n", "\r\n"), 1, "expected 'From"),
    ],
)
def test_every_deviation_is_found_at_its_line(change, line, reason) -> None:
    text = render(example()).decode()
    tampered = change(text)
    assert tampered != text
    with pytest.raises(PatchFormatError) as caught:
        parse(tampered.encode(), NAME)
    problem = caught.value.problem
    assert (problem.line, bool(re.search(reason, problem.reason))) == (line, True), str(problem)


@given(st.data())
def test_one_flipped_byte_never_passes_as_the_same_patch(data) -> None:
    """Whatever is accepted is canonical: what was parsed gives exactly these bytes again."""
    text = bytearray(render(example()))
    at = data.draw(st.integers(0, len(text) - 1))
    text[at] = data.draw(st.integers(0, 255))
    try:
        patch = parse(bytes(text), NAME)
    except PatchFormatError:
        return
    assert render(patch) == bytes(text)


@given(st.lists(st.sampled_from([b"", b"a", b"b\r"]), max_size=6), st.data())
def test_insert_puts_lines_behind_the_named_line(old, data) -> None:
    at = data.draw(st.integers(0, len(old)))
    new = insert(b"".join(line + b"\n" for line in old), [Hunk(at, (b"new", b"two"))])
    assert split_lines(new) == [line + b"\n" for line in [*old[:at], b"new", b"two", *old[at:]]]


def test_insert_refuses_to_guess() -> None:
    with pytest.raises(ValueError, match="outside"):
        insert(b"a\n", [Hunk(2, (b"x",))])
    with pytest.raises(ValueError, match="outside"):
        insert(b"a\nb\n", [Hunk(1, (b"x",)), Hunk(0, (b"x",))])
    with pytest.raises(ValueError, match="no line feed"):
        insert(b"a\nb", [Hunk(2, (b"x",))])
    assert insert(b"a\nb", [Hunk(1, (b"x",))]) == b"a\nx\nb"
    assert insert(b"", [Hunk(0, (b"x",))]) == b"x\n"


def test_names_follow_neither_number_nor_title_once_given() -> None:
    name = file_name(1, "compat", "Run on new torch: 2.x, and timm 1.0")
    assert name == "0001-compat-run-on-new-torch-2-x.patch"
    assert file_name(3, "compat", "another title", name) == "0003-compat-run-on-new-torch-2-x.patch"


def test_paths_and_messages_that_git_would_quote_or_read_as_a_diff_are_refused() -> None:
    assert all(
        map(path_problem, ["", "/a", "a//b", "a/../b", ".git/config", "a\nb", 'a"b', "ü.py"])
    )
    assert message_problem("Why.\n\nBecause.") == ""
    assert all(map(message_problem, ["---", "a\n--- b", "@@ -1 +1 @@", "tail ", "\n\na", "a\r\nb"]))
