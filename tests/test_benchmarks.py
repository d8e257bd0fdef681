"""The benchmark runs on a tiny model and prints a row per variant beside its baseline."""

import importlib
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

FOLDER = Path(__file__).parents[1] / "benchmarks"


class Tiny(nn.Module):
    title, dim, prefix, pixels, batch_cpu, batch_cuda = "tiny", 8, 1, 12, 2, 2

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(27, 8)
        self.blocks = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))

    @staticmethod
    def masks(batch):
        return torch.arange(16).lt(9).repeat(batch, 1)

    def forward(self, images, mask):
        x = self.embed(images.unfold(2, 3, 3).unfold(3, 3, 3).transpose(1, 3).reshape(-1, 16, 27))
        x = self.blocks(torch.cat((x[:, :1], x), 1))
        return x[:, 1:][mask].square().mean()


PRESET = ["preset simmim, logged", "preset simmim, unlogged"]
VARIANTS = ["dense", "recompute", "default, logged", *PRESET]


def test_the_benchmark_prints_all_its_variants(monkeypatch, capsys):
    pytest.importorskip("timm", reason="timm is not installed")
    monkeypatch.syspath_prepend(FOLDER)
    overhead = importlib.import_module("overhead")
    monkeypatch.setitem(overhead.SHAPES, "tiny", Tiny)
    monkeypatch.setattr(sys, "argv", ["overhead", "--shapes", "tiny", "--rounds", "2"])
    overhead.main()
    out = capsys.readouterr().out.splitlines()
    table = [line for line in out if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table]
    assert [row[0] for row in rows[2:]] == ["none", *VARIANTS]
    assert len({len(row) for row in rows}) == 1
    notes = [line.split(",")[0] for line in out if "% of a" in line]
    assert notes == ["balance", "calibrate"]
