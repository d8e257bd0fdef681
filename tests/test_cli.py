"""The command `mto` as a process: where it acts, and what it says when it cannot."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import mto_tools
from mto_tools.home import find_home

TOOLS = Path(mto_tools.__file__).parents[1]
ROOT = TOOLS.parent


def make_home(folder: Path) -> Path:
    """Make a clone of mto without any upstream."""
    for name in ("patches", "mto_core"):
        (folder / name).mkdir(parents=True)
    return folder


def mto(*args: str, cwd: Path, **more: object) -> subprocess.CompletedProcess[str]:
    options = {"capture_output": True, **more}
    command = [sys.executable, "-m", "mto_tools.cli", *args]
    return subprocess.run(command, text=True, cwd=cwd, check=False, **options)  # type: ignore[call-overload]


@pytest.fixture(autouse=True)
def no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MTO_HOME", raising=False)


def test_the_working_folder_s_clone_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also over the clone that the package is installed from; MTO_HOME wins over both."""
    monkeypatch.chdir(tmp_path)
    assert find_home() == ROOT.resolve()
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
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(TOOLS)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 3
    assert "pip install -e '.[tools]'" in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize("command", ["status", "--help", "--version"])
def test_output_that_cannot_be_written(tmp_path: Path, command: str) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full")
    home = make_home(tmp_path / "home")
    with full.open("w") as stream:
        run = mto(command, cwd=home, stdout=stream, capture_output=False, stderr=subprocess.PIPE)
    assert run.returncode not in (0, 2)
    assert "space" in run.stderr
    assert "Traceback" not in run.stderr


def test_output_that_is_closed(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home")
    line = f"{sys.executable} -m mto_tools.cli status >&-"
    run = subprocess.run(["sh", "-c", line], cwd=home, capture_output=True, text=True)
    assert "Traceback" not in run.stderr


def test_output_in_ascii(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    run = mto("--help", cwd=tmp_path, env=env)
    assert run.returncode == 0
    assert run.stdout.isascii()
    run = mto("apply", "größe", cwd=make_home(tmp_path / "home"), env=env)
    assert run.returncode == 3
    assert "gr??e" in run.stderr


def test_two_makes_install_one_after_the_other(tmp_path: Path) -> None:
    """A stand-in for the environment's Python logs when an installation starts and ends."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
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
    home = make_home(tmp_path)
    for path in ("patches/mini", "upstream/embedded"):
        shutil.copytree(ROOT / path, home / path)
    clone, series = home / "upstream/mini", home / "patches/mini"
    environment = {**os.environ, "MTO_HOME": str(home)}
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
        done = mto(*words, cwd=Path("/"), env=environment)
        assert done.returncode == 0, done.stderr
        assert str(folder) in done.stderr, words
