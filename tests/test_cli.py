"""The command `mto` as a process: where it acts, and what it says when it cannot."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mto_tools.home import find_home

from .command import HOME, make_home, mto


@pytest.fixture(autouse=True)
def no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MTO_HOME", raising=False)


def test_the_working_folder_s_clone_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also over the clone that the package is installed from; MTO_HOME wins over both."""
    monkeypatch.chdir(tmp_path)
    assert find_home() == HOME.resolve()
    second = make_home(tmp_path / "second")
    (second / "deep" / "er").mkdir(parents=True)
    monkeypatch.chdir(second / "deep" / "er")
    assert find_home() == second
    monkeypatch.setenv("MTO_HOME", str(make_home(tmp_path / "third")))
    assert find_home() == tmp_path / "third"


def test_a_working_folder_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTO_HOME", str(make_home(tmp_path / "home")))
    gone = tmp_path / "gone"
    gone.mkdir()
    program = f"import os, shutil; os.chdir({str(gone)!r}); shutil.rmtree({str(gone)!r}); "
    program += "import sys; sys.argv[1:] = ['status']; from mto_tools.cli import main; main()"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_version(tmp_path: Path) -> None:
    run = mto("--version", cwd=tmp_path)
    assert run.returncode == 0
    assert re.fullmatch(r"mto \d+\.\d+\S*\n", run.stdout)


def test_without_the_extra_packages(tmp_path: Path) -> None:
    """Python without site-packages: the standard library and mto_tools only."""
    run = subprocess.run(
        [sys.executable, "-S", "-m", "mto_tools.cli", "status"],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(HOME / "tools")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 3
    assert "pip install -e '.[tools]'" in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("command", ["status", "--help", "--version"])
def test_output_that_cannot_be_written(tmp_path: Path, command: str) -> None:
    run = shell(f"{command} > /dev/full", cwd=make_home(tmp_path))
    assert run.returncode not in (0, 2)
    assert "space" in run.stderr
    assert "Traceback" not in run.stderr


def test_output_that_is_closed(tmp_path: Path) -> None:
    assert "Traceback" not in shell("status >&-", cwd=make_home(tmp_path)).stderr


def shell(words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    line = f"{sys.executable} -m mto_tools.cli {words}"
    return subprocess.run(["sh", "-c", line], cwd=cwd, capture_output=True, text=True)


def test_output_in_ascii(tmp_path: Path) -> None:
    run = mto("--help", cwd=tmp_path, PYTHONIOENCODING="ascii")
    assert run.returncode == 0
    assert run.stdout.isascii()
    run = mto("apply", "größe", cwd=make_home(tmp_path / "home"), PYTHONIOENCODING="ascii")
    assert run.returncode == 3
    assert "gr??e" in run.stderr


def test_two_makes_install_one_after_the_other(tmp_path: Path) -> None:
    """A stand-in for the environment's Python logs when an installation starts and ends."""
    shutil.copy(HOME / "Makefile", tmp_path)
    shutil.copy(HOME / "pyproject.toml", tmp_path)
    log, python = tmp_path / "log", tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(
        "#!/bin/sh\ncase \"$*\" in *'pip install'*)\n"
        f"  echo start >> {log}; sleep 0.5; echo end >> {log} ;;\nesac\n"
    )
    python.chmod(0o755)
    makes = [
        subprocess.Popen(["make", "-s", f"PYTHON={sys.executable}", target], cwd=tmp_path)
        for target in ("status", "status", "apply-mini")
    ]
    assert [make.wait() for make in makes] == [0, 0, 0]
    words = log.read_text().split()
    assert words in (["start", "end"], ["start", "end"] * 2)


def test_a_command_that_writes_names_the_folder(tmp_path: Path) -> None:
    """MTO_HOME, or the installed clone, may be another one than the person thinks of."""
    home = make_home(tmp_path, "mini")
    clone, series = home / "upstream/mini", home / "patches/mini"
    for words, folder in (
        (["checkout", "mini"], clone),
        (["apply", "mini"], clone),
        (["export", "mini"], series),
        (["upgrade", "mini", "--to", "embedded", "--accept"], series),
        (["apply", "mini"], clone),
        (["revert", "mini"], clone),
    ):
        if words[0] == "export":
            with (clone / "engine.py").open("a") as file:
                file.write("mto_line_of_this_test = 1\n")
        done = mto(*words, cwd=Path("/"), MTO_HOME=str(home))
        assert done.returncode == 0, done.stderr
        assert str(folder) in done.stderr, words
