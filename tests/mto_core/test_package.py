import importlib.metadata
import inspect
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

import mto_core

ROOT = Path(__file__).parents[2]
ALLOWED = {"torch", "einops", "mto_core", *sys.stdlib_module_names}
FIVE_LINES = """
import torch, mto_core
from torch import nn
from mto_core import MaskedTokenOptimization, MTOConfig, TokenTrace
blocks = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
x, mask = torch.randn(2, 9, 8, requires_grad=True), torch.arange(8).repeat(2, 1) < 5
trace = TokenTrace(blocks, num_prefix_tokens=1)
mto = MaskedTokenOptimization(MTOConfig.preset("mae"))
with trace:
    loss = blocks(x).square().mean()
terms = mto(trace.tokens_by_depth, mask)
(loss + terms.total).backward()
assert x.grad.isfinite().all()
"""


def run(*command, **how):
    done = subprocess.run(list(command), capture_output=True, text=True, **how)
    assert done.returncode == 0, done.stderr
    return done.stdout


def python(code, folder, **env):
    """Not from the sources: python -c would import from there."""
    return run(sys.executable, "-c", code, cwd=folder, env={**os.environ, **env})


@pytest.mark.parametrize("name", mto_core.__all__)
def test_every_public_name_is_documented(name):
    thing = getattr(mto_core, name)
    doc = inspect.getdoc(thing)
    assert doc
    if inspect.isfunction(thing):
        # A signature's every parameter is described, and so are result and errors.
        for parameter in inspect.signature(thing).parameters:
            assert re.search(rf"^ +{parameter}: ", doc, re.MULTILINE), parameter
        assert "Returns:" in doc
        assert "Raises:" in doc
    elif thing is not mto_core.TraceError:
        assert any(section in doc for section in ("Args:", "Attributes:"))


def test_the_documented_names_are_the_exported_ones():
    table = (ROOT / "docs" / "method.md").read_text().split("## All public names")[1]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert sorted(re.findall(r"`(\w+)`", " ".join(rows))) == mto_core.__all__


def test_importing_and_using_it_loads_nothing_else(tmp_path):
    before = "import sys, torch, einops, torch.distributed; before = set(sys.modules)"
    after = "print(*{name.split('.')[0] for name in set(sys.modules) - before})"
    loaded = set(python("\n".join([before, FIVE_LINES, after]), tmp_path).split())
    assert "mto_core" in loaded
    assert not loaded - ALLOWED


def test_the_version_is_that_of_the_distribution():
    found = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert found is not None
    assert mto_core.__version__ == found[1]


TYPED = """
import mto_tools.errors
from mto_core import MaskedTokenOptimization, MTOConfig, MTOTerms
mto = MaskedTokenOptimization(MTOConfig.preset("mae"))
reveal_type(mto([], None))
MTOConfig(scale="cosine")
MTOConfig.preset("beit")
"""


def test_type_checkers_see_an_editable_install(tmp_path, monkeypatch):
    pytest.importorskip("mypy", reason="mypy is not installed")
    backend = pytest.importorskip("hatchling.build", reason="no backend to build")
    monkeypatch.chdir(ROOT)
    wheel = backend.build_editable(str(tmp_path))
    venv.create(tmp_path / "venv")
    site = next((tmp_path / "venv").rglob("site-packages"))
    with zipfile.ZipFile(tmp_path / wheel) as archive:
        archive.extractall(site)
    (site / "others.pth").write_text("\n".join(path for path in sys.path if "site-" in path))
    (tmp_path / "user.py").write_text(TYPED)
    mypy = [sys.executable, "-m", "mypy", "--config-file=", "--cache-dir", tmp_path / "cache"]
    found = subprocess.run(
        [*mypy, "--python-executable", tmp_path / "venv" / "bin" / "python", "user.py"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={key: value for key, value in os.environ.items() if key != "MYPYPATH"},
    ).stdout
    assert "import-not-found" not in found
    assert 'Revealed type is "mto_core.module.MTOTerms"' in found
    lines = [line.split(": error:")[0] for line in found.splitlines() if "Literal" in line]
    assert lines == ["user.py:6", "user.py:7"], found


def test_kernels_are_not_imported_before_a_gpu_needs_them(tmp_path):
    code = FIVE_LINES + "import sys; assert 'mto_core.kernels' not in sys.modules"
    python(code, tmp_path, PYTHONPATH=str(ROOT), CUDA_VISIBLE_DEVICES="")


def test_distribution_needs_torch_and_einops_only():
    needs = [r for r in importlib.metadata.requires("mto-core") if "extra ==" not in r]
    assert {re.match(r"[\w-]+", need)[0] for need in needs} == {"torch", "einops"}


def test_it_installs_and_runs_from_the_installed_files(tmp_path):
    """From a copy of the sources, so that no build folder is left in them."""
    pytest.importorskip("hatchling", reason="no backend to build")
    source, target = tmp_path / "source", tmp_path / "target"
    ignore = shutil.ignore_patterns("__pycache__")
    for folder in ("mto_core", "tools/mto_tools"):
        shutil.copytree(ROOT / folder, source / folder, ignore=ignore)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    run(*pip, "--no-index", "--disable-pip-version-check", "--target", target, source)
    kept = list((ROOT / "tools" / "mto_tools").rglob("*.html"))
    assert kept
    for path in (ROOT / "mto_core" / "py.typed", *kept):
        base = ROOT / "tools" if path in kept else ROOT
        assert (target / path.relative_to(base)).exists(), path
    where = python(FIVE_LINES + "print(mto_core.__file__)", tmp_path, PYTHONPATH=str(target))
    assert Path(where.strip()).is_relative_to(target)
