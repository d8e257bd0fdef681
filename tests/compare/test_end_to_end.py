"""`mto compare mini` as a user runs it: real recipe, real patches, real processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from mto_tools.compare.report import read_report
from mto_tools.home import find_home

CLONE = find_home()


def test_compare_mini(home: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mto_tools.cli", "compare", "mini", "--seeds", "1"]
    command += ["--steps", "6", "--", "--batch_size", "16", "--eval_every", "6"]
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
    report = read_report(page.parent)
    assert report.sentence in " ".join(done.stderr.split())
    assert report.fair
    assert all(check.passed for check in report.checks)

    baseline, mto = report.records
    assert baseline.own_loss.values[0] == mto.own_loss.values[0]
    assert baseline.own_loss.values[-1] != mto.own_loss.values[-1], "MTO has moved the weights"
    # The log must hold L_ss alone: with a line per step, the very number that MTO met.
    assert mto.loss.values == mto.own_loss.values
    assert baseline.initial_weights == mto.initial_weights != ""
    assert [a.step for a in mto.affinity] == [1, 3, 6]
    assert {len(depths) for depths in mto.heterogeneity.values} == {3}
    assert all(record.grad_ratio["sparsity"].steps == [1, 5] for record in report.records)
    assert set(baseline.weights["sparsity"].values) == {0.0}
    assert mto.weights["singularity"].values[-1] > 0
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
