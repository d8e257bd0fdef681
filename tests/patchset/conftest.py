"""Throw-away upstreams and a throw-away mto clone ("workspace"), made with git alone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mto_tools.patchset.export import write_series
from mto_tools.patchset.git import Git
from mto_tools.patchset.lock import (
    Lock,
    apply_patch,
    build_series,
    format_lock,
    lock_path,
    read_lock,
)
from mto_tools.patchset.series import Patch
from mto_tools.upstreams.upstream import Upstream, layer_of, load_upstream

IDENTITY = {
    "GIT_AUTHOR_NAME": "upstream",
    "GIT_AUTHOR_EMAIL": "up@stream",
    "GIT_COMMITTER_NAME": "upstream",
    "GIT_COMMITTER_EMAIL": "up@stream",
    "GIT_AUTHOR_DATE": "2022-01-01T00:00:00Z",
    "GIT_COMMITTER_DATE": "2022-01-01T00:00:00Z",
}
LINES = "".join(f"line {n}\n" for n in range(1, 21))
FILES = {
    "main.py": f"import sys\n{LINES}",
    "engine.py": LINES,
    "run.sh": "#!/bin/sh\necho run\n",
    "no_newline.py": f"{LINES}end",
    "crlf.py": LINES.replace("\n", "\r\n"),
    "sub/deep.py": LINES,
    "data.txt": "a list\n" * 50,
    ".gitignore": "out/\n*.log\n",
}


def quiet(_: str) -> None:
    """Say nothing."""


def raw_git(folder: Path, *args: str, **env: str) -> str:
    """git as any program would call it: the tests' own eyes and hands."""
    run = subprocess.run(
        ["git", "-C", str(folder), *args],
        env={**os.environ, **IDENTITY, **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, f"git {args}: {run.stdout}{run.stderr}"
    return run.stdout.removesuffix("\n")


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text.encode())
        if text.startswith("#!"):
            file.chmod(0o755)


def replace_in(file: Path, old: str, new: str) -> None:
    """Replace a text that the file must have."""
    data = file.read_bytes()
    assert old.encode() in data
    file.write_bytes(data.replace(old.encode(), new.encode()))


def make_repo(folder: Path, files: dict[str, str]) -> str:
    """Make a repository with two commits and return the second one's OID."""
    folder.mkdir(parents=True)
    raw_git(folder, "init", "-q", "-b", "main", ".")
    raw_git(folder, "config", "core.autocrlf", "false")
    write(folder, {"README.md": "first\n"})
    raw_git(folder, "add", "-A")
    raw_git(folder, "commit", "-q", "-m", "first")
    write(folder, files)
    raw_git(folder, "add", "-A")
    raw_git(folder, "commit", "-q", "-m", "second")
    return raw_git(folder, "rev-parse", "HEAD")


def patch_of(path: str, *hunks: tuple[int, list[str]], end: str = "\n") -> bytes:
    """A zero-context patch that inserts lines after the given ones of the file."""
    text = f"diff --git a/{path} b/{path}\n--- a/{path}\n+++ b/{path}\n"
    added = 0
    for after, lines in hunks:
        text += f"@@ -{after},0 +{after + added + 1},{len(lines)} @@\n"
        text += "".join(f"+{line}{end}" for line in lines)
        added += len(lines)
    return text.encode()


SERIES: dict[str, bytes] = {
    "0001-compat-import.patch": patch_of("main.py", (1, ["import compat"]))
    + patch_of("crlf.py", (3, ["compat = 1"]), end="\r\n"),
    "0002-compat-shim.patch": patch_of("sub/deep.py", (5, ["shim = 1"])),
    "0003-mto-loss.patch": patch_of("engine.py", (2, ["mto = 1"]), (9, ["mto.add()", "mto.log()"]))
    + patch_of("main.py", (2, ["import mto"])),
    "0004-deepspeed-engine.patch": patch_of("main.py", (10, ["engine = deepspeed"]))
    + b"diff --git a/ds.json b/ds.json\nnew file mode 100644\n--- /dev/null\n+++ b/ds.json\n"
    b'@@ -0,0 +1,1 @@\n+{"zero": 1}\n',
}


ONE_PATCH = {"0001-mto-loss.patch": patch_of("engine.py", (2, ["mto = 1"]))}


@dataclass
class Workspace:
    """A temporary mto clone with one upstream "toy".

    Attributes:
        home: Its root.
        origin: The toy's repository.
        pin: The toy's pin.
    """

    home: Path
    origin: Path
    pin: str
    env: dict[str, str] = field(default_factory=dict)

    @property
    def clone(self) -> Path:
        return self.home / "upstream" / "toy"

    @property
    def patches(self) -> Path:
        return self.home / "patches" / "toy"

    @property
    def toy(self) -> Upstream:
        return load_upstream(self.home, "toy")

    @property
    def lock(self) -> Lock:
        lock = read_lock(self.toy)
        assert lock
        return lock

    def commit_and_pin(self, files: dict[str, str], series: dict[str, bytes] | None = None) -> None:
        """Commit `files` and all that is staged in the origin, and pin that commit."""
        write(self.origin, files)
        raw_git(self.origin, "add", *files)
        raw_git(self.origin, "commit", "-q", "-m", "another")
        old, self.pin = self.pin, raw_git(self.origin, "rev-parse", "HEAD")
        toml = self.patches / "upstream.toml"
        toml.write_text(toml.read_text().replace(old, self.pin))
        self.write_series(series or ONE_PATCH)

    def write_series(self, series: dict[str, bytes]) -> None:
        """Write patch files and the lock that belongs to them."""
        for old in self.patches.glob("*.patch"):
            old.unlink()
        for name, data in series.items():
            (self.patches / name).write_bytes(data)
        lock = build_series(Git(self.origin), self.pin, sorted(series.items()))
        lock_path(self.patches).write_bytes(format_lock(lock))

    def mto(self, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run the command `mto` as a process of its own."""
        return subprocess.run(
            [sys.executable, "-m", "mto_tools.cli", *args],
            env={**os.environ, **self.env, **env},
            capture_output=True,
            text=True,
            check=False,
            cwd=self.home,
        )

    def head_tree(self) -> str:
        return raw_git(self.clone, "rev-parse", "HEAD^{tree}")


def make_workspace(root: Path, files: dict[str, str], series: dict[str, bytes]) -> Workspace:
    origin = root / "origin"
    pin = make_repo(origin, files)
    home = root / "workspace"
    (home / "mto_core").mkdir(parents=True)
    (home / "patches" / "toy").mkdir(parents=True)
    (home / "patches" / "toy" / "upstream.toml").write_text(
        f'name = "toy"\nrepository = "some/toy"\nurl = "{origin}"\npin = "{pin}"\n'
        'pin_date = "2022-01-01"\nlicence = { spdx = "MIT" }\n'
    )
    work = Workspace(home, origin, pin, {"MTO_HOME": str(home)})
    if series:
        work.write_series(series)
    return work


@pytest.fixture(autouse=True)
def own_git_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give every test a user configuration of its own, empty at first."""
    config = tmp_path / "gitconfig"
    config.write_text("")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    for name in list(os.environ):
        if name.startswith("MTO_"):
            monkeypatch.delenv(name)
    return config


@pytest.fixture
def work(tmp_path: Path) -> Workspace:
    """A workspace with the toy upstream and a series of four patches in three layers."""
    return make_workspace(tmp_path, FILES, SERIES)


@pytest.fixture
def own(work: Workspace, tmp_path: Path) -> Path:
    """A full clone that the user made, at the pin, its branch main checked out."""
    raw_git(tmp_path, "clone", "-q", f"file://{work.origin}", str(tmp_path / "own"))
    return tmp_path / "own"


@pytest.fixture
def said() -> list[str]:
    """Collects what a command says to the user."""
    return []


@pytest.fixture
def authored(tmp_path: Path) -> Workspace:
    """The workspace of `work`, its series in the canonical form that `mto export` writes."""
    work = make_workspace(tmp_path, FILES, {})
    git, tree, done = Git(work.origin), work.pin, []
    for name, data in SERIES.items():
        tree = apply_patch(git, tree, data, name)
        done.append((Patch(layer_of(name), name[5:-6], "So that it does.", (), name), tree))
    work.write_series(write_series(git, work.pin, done)[0])
    return work


@pytest.fixture
def raw() -> Callable[..., str]:
    """`raw_git`, for tests that cannot import it from here."""
    return raw_git
