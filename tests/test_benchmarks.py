"""The benchmarks run in small, and what they count is right for a product made by hand."""

from __future__ import annotations

import csv
import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("timm", reason="timm is not installed")

HOME = Path(__file__).parents[1]
FOLDER = HOME / "benchmarks"
VARIANTS = [
    "dense",
    "recompute",
    "default, logged",
    "preset simmim, logged",
    "preset simmim, unlogged",
]


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a benchmark by name."""
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module


def cells(text: str) -> list[list[list[str]]]:
    """The tables in a text, each a list of rows."""
    tables: list[list[list[str]]] = []
    before = ""
    for line in text.splitlines():
        if line.startswith("| "):
            if not before.startswith("| "):
                tables.append([])
            tables[-1].append([cell.strip() for cell in line.strip("|").split(" | ")])
        before = line
    return tables


def test_overhead_prints_all_its_variants(
    module: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    argv = ["overhead", "--shapes", "tiny", "--rounds", "2", "--save", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", argv)
    module("overhead").main()
    out = capsys.readouterr().out
    [rows] = cells(out)
    names = [row[0] for row in rows[2:]]
    assert names[0] == "none"
    assert {*VARIANTS} <= {*names}
    assert len({len(row) for row in rows}) == 1
    notes = [line.split(",")[0] for line in out.splitlines() if "% of a" in line]
    assert notes == ["balance", "calibrate"]
    with (tmp_path / "overhead_tiny_cpu.csv").open() as file:
        assert [row[0] for row in csv.reader(file)][1:] == names


def test_roofline_predicts_all_variants_and_checks_them(
    module: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["roofline", "--shapes", "tiny", "--rounds", "1"])
    module("roofline").main()
    predicted, checked = cells(capsys.readouterr().out)
    assert predicted[0][-3:] == ["RTX 3090", "A100", "H100"]
    assert {*VARIANTS} <= {row[0] for row in predicted} & {row[0] for row in checked}
    assert all(float(row[-1].removesuffix(" %")) > 0 for row in predicted[3:])


def test_products_and_traffic_are_counted_from_the_tensors(module: Any) -> None:
    counting = module("counting")
    a = torch.randn(4, 5, requires_grad=True)
    b = torch.randn(5, 6)
    with counting.Counting() as counter:
        c = (a @ b).t()  # a view moves nothing
        c.sum().backward()
    flop = 2 * 4 * 5 * 6
    assert counter.count.flop("float32") == 2 * flop  # forward, and the gradient by a
    products = [k for k in counter.count.kernels if k.flop]
    assert products[0].bytes == 4 * (4 * 5 + 5 * 6 + 4 * 6)
    assert not [k for k in counter.count.kernels if k.name in ("aten::t", "aten::expand")]
    with counting.Counting() as counter:
        torch.randn(100, 8)[:, None].expand(100, 3, 8).half().bfloat16()
        torch.randn(100, 8).index_select(0, torch.arange(10))
    by_name = {k.name: k.bytes for k in counter.count.kernels}
    assert by_name["aten::index_select"] == 2 * 10 * 8 * 4 + 10 * 8


def test_the_kind_of_a_product_follows_dtype_and_setting(
    module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = module("counting")

    def kind(dtype: torch.dtype) -> str:
        with counting.Counting() as counter:
            torch.mm(torch.ones(2, 2, dtype=dtype), torch.ones(2, 2, dtype=dtype))
        return str(next(k.kind for k in counter.count.kernels if k.flop))

    before = torch.backends.cuda.matmul.allow_tf32
    try:
        assert kind(torch.bfloat16) == kind(torch.float16) == "16 bit"
        torch.backends.cuda.matmul.allow_tf32 = False
        assert kind(torch.float32) == "float32"
        torch.backends.cuda.matmul.allow_tf32 = True
        assert kind(torch.float32) == "tf32"
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def test_a_kernel_takes_what_is_longer(module: Any) -> None:
    counting = module("counting")
    rates = counting.Rates("toy", {"float32": 10.0}, 100.0)
    kernels = [counting.Kernel("a", "float32", 50, 100), counting.Kernel("b", "float32", 0, 200)]
    assert counting.Count(kernels).seconds(rates) == 5 + 2


def gpu_day(tmp_path: Path, *parts: str, **env: str) -> dict[str, list[list[str]]]:
    """Runs gpu.sh in small; the rows of its CSV files."""
    out = tmp_path / "out"
    script = [str(FOLDER / "gpu.sh"), "--device", "cpu", "--tiny", "--out", str(out), *parts]
    env = {**os.environ, "PYTHON": sys.executable, **env}
    done = subprocess.run(script, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return {file.stem: list(csv.reader(file.open())) for file in out.glob("*.csv")}


def test_the_day_on_a_gpu_runs_in_small(tmp_path: Path) -> None:
    found = gpu_day(tmp_path, "tests", "accuracy")
    rows = found["accuracy_cpu"]
    assert {row[4] for row in rows[1:]} == {"dense", "recompute"}
    assert all(row[-1] == "met" for row in rows[1:])


@pytest.mark.timeout(600)
def test_recipes_of_that_day_run_in_small(tmp_path: Path, recipes: dict[str, Path]) -> None:
    home = recipes["patched"].parents[1]
    found = gpu_day(tmp_path, "recipes", MTO_HOME=str(home))
    rows = found["recipe_mini_mae_cpu"]
    assert [row[3] for row in rows[1:]] == ["off", "observe", "on"]
    assert all(float(row[4]) > 0 for row in rows[1:])


def test_an_unknown_part_is_refused() -> None:
    command = [sys.executable, str(FOLDER / "gpu.py"), "acuracy"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "overhead" in done.stderr
