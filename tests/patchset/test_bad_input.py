"""Tampered series, tampered locks, wrong files: each with its own message, and nothing done."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

import pytest

from mto_tools.errors import CorruptError, MissingError, MtoError
from mto_tools.patchset.apply import apply
from mto_tools.patchset.checkout import ensure_clone
from mto_tools.patchset.git import Git
from mto_tools.patchset.lock import build_series, format_lock, sha256
from mto_tools.upstreams.upstream import all_upstreams, load_upstream

from .conftest import Workspace, patch_of, quiet, raw_git

LOSS = "0003-mto-loss.patch"


def expect_refused(work: Workspace, kind: type[MtoError], *words: str) -> MtoError:
    """apply fails with these words, and the clone is as it was."""
    clone_exists = work.clone.exists()
    with pytest.raises(kind) as caught:
        apply(work.toy, quiet)
    for word in words:
        assert word in caught.value.message
    if clone_exists or work.clone.exists():
        assert raw_git(work.clone, "rev-parse", "HEAD") == work.pin
        assert raw_git(work.clone, "status", "--porcelain") == ""
        assert raw_git(work.clone, "branch", "--list", "mto") == ""
    return caught.value


def tamper_patch(work: Workspace, old: bytes, new: bytes) -> bytes:
    file = work.patches / LOSS
    data = file.read_bytes()
    assert data.count(old) == 1
    data = data.replace(old, new)
    file.write_bytes(data)
    return data


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"@@ -2,0 +3,1 @@\n+mto = 1", b"@@ -3,0 +4,1 @@\n+mto = 1"),  # another line number
        (b"+3,1 @@\n+mto = 1\n", b"+3,2 @@\n+mto = 1\n+import os\n"),
        (b"+mto.log()\n", b"+mto.log()\r\n"),
    ],
)
def test_tampered_patch(work: Workspace, old: bytes, new: bytes) -> None:
    lock = work.lock
    ensure_clone(work.toy, quiet)
    data = tamper_patch(work, old, new)
    error = expect_refused(work, CorruptError, LOSS, "not the patch that was locked", sha256(data))
    assert "checkout -- " in error.hint
    # The digest is changed along: the blobs still tell.
    patch = dataclasses.replace(lock.patches[2], sha256=sha256(data))
    patches = (*lock.patches[:2], patch, *lock.patches[3:])
    changed = format_lock(dataclasses.replace(lock, patches=patches))
    (work.patches / "lock").write_bytes(changed)
    words = (LOSS, "engine.py", "expected", "found", patch.touched[0].after)
    expect_refused(work, CorruptError, *words)


def test_every_oid_of_the_lock_is_checked(work: Workspace) -> None:
    """Change any one OID, mode, digest or path, and apply says no."""
    ensure_clone(work.toy, quiet)
    file = work.patches / "lock"
    text = file.read_text()
    values = list(re.finditer(r'[0-9a-f]{40,64}(?=")|100644|null|(?<=path": ")\w', text))
    assert len(values) > 40
    for value in values[::4]:
        other = {"100644": "100755", "null": f'"{"1" * 40}"'}.get(value[0])
        other = other or value[0][:-1] + ("1" if value[0][-1] == "0" else "0")
        file.write_text(text[: value.start()] + other + text[value.end() :])
        expect_refused(work, CorruptError)
    file.write_text(text)
    apply(work.toy, quiet)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda b: b.replace(b"\n", b"\r\n"), "one byte form"),
        (lambda b: b[:-20], "not a lock"),
        (lambda b: b.replace(b'"format": 1', b'"format": 9'), "format: Input should be 1"),
        (lambda b: b.replace(b'"layer": "mto"', b'"layer": "other"'), "layer"),
        (lambda b: b.replace(b'"mode": "100644"', b'"mode": "120000"', 1), "touched.0.mode"),
        (lambda b: b.replace(b'"mode":', b'"mood":', 1), "not a lock"),
    ],
)
def test_damaged_lock(work: Workspace, change: Callable[[bytes], bytes], words: str) -> None:
    file = work.patches / "lock"
    file.write_bytes(change(file.read_bytes()))
    error = expect_refused(work, CorruptError, str(file), words)
    assert error.hint
    assert not work.clone.exists()


def test_missing_added_and_misnamed_files(work: Workspace) -> None:
    (work.patches / "0003-mto-loss.patch").rename(work.patches / "saved")
    expect_refused(work, CorruptError, "expected number 0003")
    (work.patches / "saved").rename(work.patches / "0003-mto-loss.patch")
    extra = work.patches / "0005-deepspeed-more.patch"
    extra.write_bytes(patch_of("engine.py", (1, ["more"])))
    expect_refused(work, CorruptError, "name different patches: 0005-deepspeed-more.patch")
    for name, words in {
        "0005-mto-late.patch": "must come before deepspeed",
        "0005-speed-x.patch": "named 000N-<layer>-<slug>.patch",
        "0005-deepspeed-X.patch": "named 000N",
        "fix.patch": "named 000N",
    }.items():
        extra = extra.rename(work.patches / name)
        expect_refused(work, CorruptError, name, words)
    extra.unlink()
    (work.patches / "lock").unlink()
    expect_refused(work, MissingError, "lock is missing, but there are 4 patches")


def test_lock_of_another_base(work: Workspace) -> None:
    toml = work.patches / "upstream.toml"
    toml.write_text(toml.read_text().replace(work.pin, "a" * 40))
    expect_refused(work, CorruptError, f"base is {work.pin}", f"pins {'a' * 40}")


@pytest.mark.parametrize(
    ("patch", "words"),
    [
        (patch_of("nowhere.py", (1, ["x"])), "does not apply"),
        (b"not a patch\n", "does not apply"),
        (
            b"diff --git a/run.sh b/run.sh\nold mode 100755\nnew mode 100644\n",
            "run.sh: mode changed from 100755 to 100644",
        ),
        (
            b"diff --git a/README.md b/README.md\ndeleted file mode 100644\n"
            b"--- a/README.md\n+++ /dev/null\n@@ -1 +0,0 @@\n-first\n",
            "README.md: upstream file deleted",
        ),
        (
            b"diff --git a/link b/link\nnew file mode 120000\n--- /dev/null\n+++ b/link\n"
            b"@@ -0,0 +1 @@\n+/etc/passwd\n\\ No newline at end of file\n",
            "link: mode 120000",
        ),
        (
            b"diff --git a/.git/hooks/x b/.git/hooks/x\nnew file mode 100755\n--- /dev/null\n"
            b"+++ b/.git/hooks/x\n@@ -0,0 +1 @@\n+x\n",
            "does not apply",
        ),
    ],
)
def test_patch_that_does_not_fit_or_does_more(work: Workspace, patch: bytes, words: str) -> None:
    with pytest.raises(CorruptError) as caught:
        build_series(Git(work.origin), work.pin, [("0001-mto-x.patch", patch)])
    assert words in caught.value.message
    assert "0001-mto-x.patch" in caught.value.message
    assert raw_git(work.origin, "status", "--porcelain") == ""


BASE = {
    "name": '"toy"',
    "repository": '"some/toy"',
    "url": '"https://host/toy.git"',
    "pin": f'"{"a" * 40}"',
    "pin_date": '"2022-01-01"',
    "licence": '{ spdx = "MIT" }',
}


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("colour", '"red"', "colour"),
        ("pin", '"abc1234"', "pin is 'abc1234'"),
        ("pin", None, "'pin' is missing"),
        ("pin_date", '"last year"', "pin_date is 'last year'"),
        ("name", '"other"', "the folder is 'toy'"),
        ("licence", '"MIT"', "licence is 'MIT'"),
        ("url", None, "'url'"),
        ("repository", '"toy"', "repository is 'toy'"),
        ("source", '"ftp"', "source is 'ftp'"),
        ("source", '"embedded"', "'path'"),
        ("url", "[1]", "url is [1]"),
        ("note", '"unclosed', "not TOML"),
    ],
)
def test_upstream_toml(work: Workspace, key: str, value: str | None, words: str) -> None:
    table = {**BASE, key: value}
    file = work.patches / "upstream.toml"
    file.write_text("".join(f"{k} = {v}\n" for k, v in table.items() if v is not None))
    with pytest.raises(CorruptError) as caught:
        load_upstream(work.home, "toy")
    assert words in caught.value.message
    assert str(file) in caught.value.message
    assert caught.value.hint or key == "name"


def test_upstream_names(work: Workspace) -> None:
    assert [upstream.name for upstream in all_upstreams(work.home)] == ["toy"]
    for name in ("moon", "../toy", ".", "Toy", ""):
        with pytest.raises(MissingError, match="there is no upstream"):
            load_upstream(work.home, name)
    work.patches.rename(work.patches.with_name("Toy"))
    for name in ("Toy", "toy"):
        with pytest.raises(CorruptError, match="small letters"):
            load_upstream(work.home, name)
