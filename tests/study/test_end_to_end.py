"""`mto compare mini` as a user runs it: real recipe, real patches, real processes."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from mto_tools.app import app
from mto_tools.launch.digits import lay_out
from mto_tools.study.report import Report
from mto_tools.upstreams.recipe import Data


def test_compare_mini(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(Data(name="digits"), tmp_path / "data", per_class=12)
    command = ["compare", "mini", "--seeds", "1", "--steps", "6", "--data", "data"]
    command += ["--reports", "mine", "--", "--batch_size", "16", "--eval_every", "6"]
    command += ["--mto_singularity", "0.5"]
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert done.stdout.count("\n") == 1, "stdout holds the path and nothing else"
    page = Path(done.stdout.strip())
    assert page.name == "report.html"
    assert page.parents[1] == tmp_path / "mine" / "mini"
    report = Report.load(page.parent / "report.json")
    assert report.sentence in " ".join(done.stderr.split())
    assert report.fair
    assert all(check.passed is not False for check in report.checks)

    baseline, mto = report.records
    losses = [record.curve("loss").values for record in report.records]
    assert losses[0][0] == losses[1][0]
    assert losses[0][-1] != losses[1][-1], "MTO has moved the weights"
    pictures = [base64.b64decode(record.images) for record in report.records]
    assert pictures[0] != pictures[1]
    sizes = [Image.open(io.BytesIO(picture)).size for picture in pictures]
    assert sizes == [(3 * 32, 4 * 32)] * 2, "masked input, reconstruction and target of four"
    log = (page.parent / "runs/mto-0/log.jsonl").read_text().splitlines()
    own = [line["loss"] for line in map(json.loads, log) if "loss" in line]
    assert own == losses[1], "the recipe's own log holds L_ss alone"
    assert mto.affinity is not None
    assert mto.affinity.step == 6
    rows = mto.affinity.masked_to_visible[0]
    assert [sum(row) for row in rows] == pytest.approx([1] * len(rows), abs=0.01)
    assert {len(depths) for depths in mto.rows["heterogeneity"].values} == {3}
    assert all(record.curve("grad_ratio.sparsity").at == [1, 5] for record in report.records)
    assert set(baseline.curve("weights.sparsity").values) == {0.0}
    assert set(mto.curve("weights.singularity").values) == {0.5}
    for key in ("torch", "timm", "numpy", "python", "mini pin", "mini commit", "mto commit"):
        assert report.versions[key], key
    assert len(report.versions["mini pin"]) == 40

    status = CliRunner().invoke(app, ["status", "mini", "--json"])
    (state,) = json.loads(status.stdout)
    assert state["word"] == "applied", "running a comparison leaves the checkout as it was"
