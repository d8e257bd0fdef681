"""Tampered series, tampered locks, wrong files: each with its own message, and nothing done."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest

from mto_tools.errors import CorruptError, MissingError, MtoError
from mto_tools.patchset.apply import apply
from mto_tools.patchset.build import build_series
from mto_tools.patchset.checkout import ensure_clone
from mto_tools.patchset.git import Git
from mto_tools.patchset.lock import format_lock, parse_lock, read_lock, sha256
from mto_tools.upstreams.upstream import all_upstreams, load_upstream

from .conftest import SERIES, House, patch_of, raw_git

LOSS = "0003-mto-loss.patch"


def quiet(_: str) -> None:
    """Say nothing."""


def expect_refused(house: House, kind: type[MtoError], *words: str) -> MtoError:
    """apply fails with these words, and the clone is as it was."""
    clone_exists = house.clone.exists()
    with pytest.raises(kind) as caught:
        apply(house.toy, quiet)
    for word in words:
        assert word in caught.value.message
    if clone_exists or house.clone.exists():
        assert raw_git(house.clone, "rev-parse", "HEAD") == house.pin
        assert raw_git(house.clone, "status", "--porcelain") == ""
        assert raw_git(house.clone, "branch", "--list", "mto") == ""
    return caught.value


def tamper_patch(house: House, old: bytes, new: bytes) -> bytes:
    file = house.patches / LOSS
    data = file.read_bytes()
    assert data.count(old) == 1
    data = data.replace(old, new)
    file.write_bytes(data)
    return data


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"@@ -2,0 +3,1 @@\n+mto = 1", b"@@ -3,0 +4,1 @@\n+mto = 1"),  # another line number
        (b"+mto = 1\n", b"+mto = 2\n"),
        (b"+3,1 @@\n+mto = 1\n", b"+3,2 @@\n+mto = 1\n+import os\n"),
        (b"+mto.log()\n", b"+mto.log()\r\n"),
    ],
)
def test_tampered_patch(house: House, old: bytes, new: bytes) -> None:
    ensure_clone(house.toy, quiet)
    data = tamper_patch(house, old, new)
    error = expect_refused(house, CorruptError, LOSS, "not the patch that was locked", sha256(data))
    assert "checkout -- " in error.hint
    assert ("CRLF" in error.message) == (b"\r" in new)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"@@ -2,0 +3,1 @@\n+mto = 1", b"@@ -3,0 +4,1 @@\n+mto = 1"),
        (b"+mto = 1\n", b"+mto = 2\n"),
    ],
)
def test_tampered_patch_with_its_digest_in_the_lock(house: House, old: bytes, new: bytes) -> None:
    """The digest was changed along: the blobs still tell."""
    lock = read_lock(house.toy)
    assert lock
    data = tamper_patch(house, old, new)
    patch = dataclasses.replace(lock.patches[2], sha256=sha256(data))
    patches = (*lock.patches[:2], patch, *lock.patches[3:])
    changed = format_lock(dataclasses.replace(lock, patches=patches))
    (house.patches / "lock").write_bytes(changed)
    expect_refused(
        house, CorruptError, LOSS, "engine.py", "expected", "found", patch.touched[0].after
    )


def test_every_oid_of_the_lock_is_checked(house: House) -> None:
    """Change any one OID, mode, digest or path, and apply says no."""
    ensure_clone(house.toy, quiet)
    original = json.loads((house.patches / "lock").read_bytes())
    changed = 0

    def walk(node: Any, store: Callable[[Any], None]) -> None:
        nonlocal changed
        if isinstance(node, dict):
            for key in node:
                walk(node[key], lambda value, key=key, node=node: node.__setitem__(key, value))
        elif isinstance(node, list):
            for place in range(len(node)):
                walk(node[place], lambda value, p=place, node=node: node.__setitem__(p, value))
        else:
            other: Any = {"100644": "100755", 1: 2, None: "1" * 40}.get(node)
            if other is None:
                other = node.replace(node[-1], "0" if node[-1] != "0" else "1")
            store(other)
            (house.patches / "lock").write_bytes((json.dumps(original, indent=2) + "\n").encode())
            expect_refused(house, CorruptError)
            store(node)
            changed += 1

    walk(original, lambda _: None)
    assert changed > 50
    (house.patches / "lock").write_bytes((json.dumps(original, indent=2) + "\n").encode())
    apply(house.toy, quiet)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda b: b.replace(b"\n", b"\r\n"), "CRLF"),
        (lambda b: b[:-20], "not a lock"),
        (lambda b: b"", "not a lock"),
        (lambda b: b + b"\n", "one byte form"),
        (lambda b: b.replace(b'"format": 1', b'"format": 9'), "this mto reads 1"),
        (lambda b: b.replace(b'"layer": "mto"', b'"layer": "compat"'), "not of layer"),
        (lambda b: b.replace(b'"path": "engine.py"', b'"path": "zzz.py"'), "out of order"),
        (lambda b: b.replace(b'"mode": "100644"', b'"mode": "120000"', 1), "touched.0.mode"),
        (lambda b: b.replace(b'"mode":', b'"mood":', 1), "not a lock"),
    ],
)
def test_damaged_lock(house: House, change: Callable[[bytes], bytes], words: str) -> None:
    file = house.patches / "lock"
    file.write_bytes(change(file.read_bytes()))
    error = expect_refused(house, CorruptError, str(file), words)
    assert error.hint
    assert not house.clone.exists()


def test_lock_has_one_byte_form(house: House) -> None:
    data = (house.patches / "lock").read_bytes()
    assert format_lock(parse_lock(data, house.patches)) == data


def test_missing_added_and_misnamed_files(house: House) -> None:
    (house.patches / "0003-mto-loss.patch").rename(house.patches / "saved")
    expect_refused(house, CorruptError, "expected number 0003")
    (house.patches / "saved").rename(house.patches / "0003-mto-loss.patch")
    extra = house.patches / "0005-deepspeed-more.patch"
    extra.write_bytes(patch_of("engine.py", (1, ["more"])))
    expect_refused(house, CorruptError, "name different patches: 0005-deepspeed-more.patch")
    for name, words in {
        "0005-mto-late.patch": "must come before deepspeed",
        "0005-speed-x.patch": "named 000N-<layer>-<slug>.patch",
        "0005-deepspeed-X.patch": "named 000N",
        "fix.patch": "named 000N",
    }.items():
        extra = extra.rename(house.patches / name)
        expect_refused(house, CorruptError, name, words)
    extra.unlink()
    (house.patches / "lock").unlink()
    expect_refused(house, MissingError, "lock is missing, but there are 4 patches")


def test_lock_of_another_base(house: House) -> None:
    toml = house.patches / "upstream.toml"
    toml.write_text(toml.read_text().replace(house.pin, "a" * 40))
    expect_refused(house, CorruptError, f"base is {house.pin}", f"pins {'a' * 40}")


@pytest.mark.parametrize(
    ("patch", "words"),
    [
        (patch_of("nowhere.py", (1, ["x"])), "does not apply"),
        (b"not a patch\n", "does not apply"),
        (
            b"diff --git a/run.sh b/run.sh\nold mode 100755\nnew mode 100644\n",
            "run.sh goes from mode 100755 to 100644",
        ),
        (
            b"diff --git a/README.md b/README.md\ndeleted file mode 100644\n"
            b"--- a/README.md\n+++ /dev/null\n@@ -1 +0,0 @@\n-first\n",
            "README.md goes from mode 100644 to 000000",
        ),
        (
            b"diff --git a/link b/link\nnew file mode 120000\n--- /dev/null\n+++ b/link\n"
            b"@@ -0,0 +1 @@\n+/etc/passwd\n\\ No newline at end of file\n",
            "link goes from mode 000000 to 120000",
        ),
        (
            b"diff --git a/../evil b/../evil\nnew file mode 100644\n--- /dev/null\n+++ b/../evil\n"
            b"@@ -0,0 +1 @@\n+x\n",
            "does not apply",
        ),
        (
            b"diff --git a/.git/hooks/x b/.git/hooks/x\nnew file mode 100755\n--- /dev/null\n"
            b"+++ b/.git/hooks/x\n@@ -0,0 +1 @@\n+x\n",
            "does not apply",
        ),
    ],
)
def test_patch_that_does_not_fit_or_does_more(house: House, patch: bytes, words: str) -> None:
    with pytest.raises(CorruptError) as caught:
        build_series(Git(house.origin), house.pin, [("0001-mto-x.patch", patch)])
    assert words in caught.value.message
    assert "0001-mto-x.patch" in caught.value.message
    assert raw_git(house.origin, "status", "--porcelain") == ""


def test_additions_are_not_moved_to_the_end_of_the_file(house: House) -> None:
    """Without --unidiff-zero git puts zero-context additions there, and leaves with status 0."""
    lock = build_series(Git(house.origin), house.pin, list(SERIES.items())[:1])
    text = raw_git(house.origin, "show", f"{lock.tree}:main.py").splitlines()
    assert text[1] == "import compat"


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
        ("home", '"/tmp"', "home"),
        ("pin", '"abc1234"', "pin is 'abc1234'"),
        ("pin", f'"{"A" * 40}"', "pin is 'AAA"),
        ("pin", "7", "pin is 7"),
        ("pin", None, "'pin' is missing"),
        ("pin_date", '"last year"', "pin_date is 'last year'"),
        ("name", '"other"', "the folder is 'toy'"),
        ("licence", '"MIT"', "licence is 'MIT'"),
        ("licence", '{ name = "MIT" }', "licence.spdx"),
        ("url", None, "'url'"),
        ("repository", '"toy"', "repository is 'toy'"),
        ("source", '"ftp"', "source is 'ftp'"),
        ("source", '"embedded"', "'path'"),
        ("entry", '"main.py"', "entry is 'main.py'"),
        ("entry", "[1]", "entry.0 is 1"),
        ("note", '"unclosed', "not TOML"),
        ("url", "1\nurl = 2", "not TOML"),
    ],
)
def test_upstream_toml(house: House, key: str, value: str | None, words: str) -> None:
    table = {**BASE, key: value}
    file = house.patches / "upstream.toml"
    file.write_text("".join(f"{k} = {v}\n" for k, v in table.items() if v is not None))
    with pytest.raises(CorruptError) as caught:
        load_upstream(house.home, "toy")
    assert words in caught.value.message
    assert str(file) in caught.value.message
    assert caught.value.hint or key == "name"


def test_upstream_names(house: House) -> None:
    assert [upstream.name for upstream in all_upstreams(house.home)] == ["toy"]
    for name in ("moon", "../toy", ".", "Toy", ""):
        with pytest.raises(MissingError, match="there is no upstream"):
            load_upstream(house.home, name)
    (house.patches / "recipe.toml").write_text("anything = 1\n")
    assert house.toy.entry == ["main.py"]
    house.patches.rename(house.patches.with_name("Toy"))
    for name in ("Toy", "toy"):
        with pytest.raises(CorruptError, match="small letters"):
            load_upstream(house.home, name)


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["apply"], 2, "Missing argument"),
        (["apply", "toy", "--repo", "/no/such/folder"], 3, "no clone in /no/such/folder"),
        (["apply", "toy", "--source", "/no/such"], 3, "three ways"),
        (["revert", "toy"], 3, "mto checkout toy"),
        (["diff", "toy"], 3, "mto checkout toy"),
        (["verify", "toy"], 3, "mto checkout toy"),
        (["status", "--repo", "."], 5, "not a git clone"),
    ],
)
def test_command_line(house: House, args: list[str], code: int, words: str) -> None:
    run = house.mto(*args)
    if args[0] == "status":  # a state, not an error
        assert (run.returncode, words in run.stdout) == (1, True)
        return
    assert run.returncode == code
    assert words in run.stderr
    assert run.stdout == ""
