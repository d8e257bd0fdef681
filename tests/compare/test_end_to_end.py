"""`mto compare mini` as a user runs it: real recipe, real patches, real processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mto_tools.compare.folder import read
from mto_tools.compare.report import Report
from mto_tools.home import find_home

CLONE = find_home()


def test_compare_mini(home: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mto_tools.cli", "compare", "mini", "--seeds", "1"]
    command += ["--steps", "6", "--", "--batch_size", "16", "--eval_every", "6"]
    command += ["--mto_singularity", "0.5"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1, "stdout holds the path and nothing else"
    page = Path(done.stdout.strip())
    assert page.name == "report.html"
    assert page.parents[1] == home / "reports" / "mini"
    report = read(page.parent / "report.json", Report)
    assert report.sentence in " ".join(done.stderr.split())
    assert report.fair
    assert all(check.passed for check in report.checks)

    baseline, mto = report.records
    assert baseline.loss.values[0] == mto.loss.values[0]
    assert baseline.loss.values[-1] != mto.loss.values[-1], "MTO has moved the weights"
    log = (page.parent / "runs/mto-0/log.jsonl").read_text().splitlines()
    own = [line["loss"] for line in map(json.loads, log) if "loss" in line]
    assert own == mto.loss.values, "the recipe's own log holds L_ss alone"
    assert mto.affinity is not None
    assert mto.affinity.step == 6
    rows = mto.affinity.masked_to_visible[0]
    assert [sum(row) for row in rows] == pytest.approx([1] * len(rows), abs=0.01)
    assert {len(depths) for depths in mto.heterogeneity.values} == {3}
    assert all(record.grad_ratio["sparsity"].steps == [1, 5] for record in report.records)
    assert set(baseline.weights["sparsity"].values) == {0.0}
    assert set(mto.weights["singularity"].values) == {0.5}
    for key in ("torch", "timm", "numpy", "python", "CPU", "mini pin", "mini commit", "mto commit"):
        assert report.plan.versions[key], key
    assert len(report.plan.versions["mini pin"]) == 40

    status = subprocess.run(
        [sys.executable, "-m", "mto_tools.cli", "status", "mini", "--json"],
        capture_output=True,
        check=True,
    )
    (state,) = json.loads(status.stdout)
    assert state["word"] == "applied", "running a comparison leaves the checkout as it was"
