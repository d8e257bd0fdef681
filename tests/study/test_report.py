"""The page is whole, says everything twice (picture and JSON), and is never half written."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mto_tools.app import app
from mto_tools.errors import MissingError
from mto_tools.study import svg
from mto_tools.study.fairness import fairness
from mto_tools.study.figures import draw, weighted
from mto_tools.study.folder import make_folder
from mto_tools.study.measures import Passage
from mto_tools.study.record import TERMS, Curve, Record, by_seed, of_arm
from mto_tools.study.report import Report, render, write_report
from mto_tools.study.session import Session
from mto_tools.study.spec import FILE, Arm, load_study
from mto_tools.study.tasks import State
from mto_tools.study.verdict import judge
from mto_tools.upstreams.recipe import Logs, Score

from .conftest import FAKE, fake_session, open_fake, run

FIGURES = ["scores", "loss", "heterogeneity", "affinity", "terms", "gradients", "guards"]


@pytest.fixture
def report(finished: Path) -> Report:
    return Report.load(finished / "report.json")


def redraw(folder: Path) -> int:
    """`mto report FOLDER`, whose output ends with the path of the page."""
    done = CliRunner().invoke(app, ["report", str(folder)])
    assert done.stdout.splitlines() == [str(folder / "report.html")]
    return done.exit_code


def wrong(report: Report) -> dict[str, str]:
    assert report.fair is all(check.passed is not False for check in report.checks)
    return {check.name: check.detail for check in report.checks if check.passed is False}


def titles(report: Report) -> dict[str, list[str]]:
    drawn = draw(report.records, report.scores)
    return {key: re.findall('aria-label="(.*?)"', " ".join(svgs)) for key, svgs in drawn.items()}


def test_page_is_self_contained_and_whole(report: Report, finished: Path) -> None:
    text = (finished / "report.html").read_text()
    opened = Counter(re.findall(r"<(\w+)(?:\s[^>]*)?(?<!/)>", text))
    closed = Counter(re.findall(r"</(\w+)>", text))
    assert set(opened - closed) == {"meta"}
    assert not closed - opened
    assert not {"script", "link", "iframe", "object"} & set(opened)
    ids = re.findall(r'\sid="(.*?)"', text)
    assert len(ids) == len(set(ids)), "ids are unique"
    references = re.findall(r'\s(?:src|href|data|action|srcset|poster)="([^"]*)"', text)
    for reference in references + re.findall(r"url\((.*?)\)", text):
        picture = reference.startswith("data:image/png;base64,")
        assert picture or reference in {f"#{i}" for i in ids}, reference[:80]
    for name in ("http:", "https:", "@import", "file:"):
        assert name not in text
    assert text.count("<svg") > 2 * len(FIGURES), "panels are pictures of their own: they stack"
    assert [i for i in ids if i in FIGURES] == FIGURES
    assert not re.search(r"\b(nan|None|inf)\b", re.sub(r"<svg.*?</svg>", "", text, flags=re.S))
    assert f"<h1>{report.sentence}</h1>".replace("'", "&#39;") in text
    assert text.index("<h1>") < text.index("<svg")


def test_panels(report: Report, finished: Path) -> None:
    """Colours come from the page, for dark mode and print; weighted terms; H below ln |V|."""
    drawn = draw(report.records, report.scores)
    text = "".join(map("".join, drawn.values()))
    for css in ("var(--arm-0)", "var(--arm-1)", "var(--grid)", "currentColor"):
        assert css in text
    for colour in (svg.INK, *svg.COLOURS, "#000000"):
        assert colour not in text
    assert "Weighted terms, MTO" in drawn["terms"][-1]
    assert all("MTO × weight" in panel for panel in drawn["gradients"])
    assert all("ln |V|" in panel for panel in drawn["heterogeneity"])
    assert len(drawn["affinity"]) == 6
    for panel in drawn["affinity"]:  # least and largest value of two maps
        assert len(re.findall(r">-?[\d.]+(?:e[-+−]\d+)?</text>", panel)) == 4


@pytest.mark.parametrize("sign", [1, -1])
def test_an_arrow_shows_the_steps_saved_of_any_score(sign: int) -> None:
    """From step 300 to step 200, also where lower is better (Figure 4)."""
    score = Score(key="s", label="S", percent=False, higher_is_better=sign > 0)
    ends = {"baseline": [1.0, 2.0, 3.0], "mto": [2.0, 3.0, 4.0], "behind": [0.0, 1.0, 2.0]}
    curves = {
        arm: Curve(at=[100, 200, 300], values=[sign * value for value in values])
        for arm, values in ends.items()
    }
    records = [Record(arm=arm, seed=0, scores={"s": curve}) for arm, curve in curves.items()]
    (panel,) = draw(records, [score])["scores"]
    assert re.findall(r">(\N{MINUS SIGN}\d+ %) *<", panel) == ["\N{MINUS SIGN}33 %"]


def test_weighted_is_the_value_times_the_weight_of_that_step(report: Report) -> None:
    record = of_arm(report.records, "mto")[0]
    curve, weight = record.curve("sparsity"), record.curve("weights.sparsity")
    weight.values[:2] = [0.0, 0.5]  # as in a warm-up
    del weight.at[-1], weight.values[-1]
    found = weighted([record], "sparsity")
    assert found.at == curve.at[:-1]
    assert found.values[:3] == pytest.approx([0, 0.5 * curve.values[1], 0.01 * curve.values[2]])


def test_no_panel_for_a_constant(report: Report) -> None:
    for record in report.records:
        for name, value in ("grad_ratio.ranking", 0.0), ("ranking", math.nan), ("masked_mass", 0.5):
            record.curves[name] = record.curve(name).map(lambda _, value=value: value)
    found = titles(report)
    assert found["terms"] == ["L_spa, before weighting", "Weighted terms, MTO"]
    assert found["gradients"] == ["L_spa: gradient norm / L_ss"]
    assert found["guards"] == ["Diagonal mass where L_spa acts", "Token norm at the end"]


def test_json_holds_what_the_runs_wrote(report: Report, finished: Path) -> None:
    for record in report.records:
        folder = finished / "runs" / f"{record.arm}-{record.seed}"
        lines = [json.loads(line) for line in (folder / "mto.jsonl").read_text().splitlines()]
        for name in ("heterogeneity", "token_norm"):
            assert record.rows[name].values == [line[name] for line in lines]
        for name in (*TERMS, "loss"):
            assert record.curve(name).values == [line[name] for line in lines]
        for term in TERMS:
            weights = [line["weights"][term] for line in lines]
            assert record.curve(f"weights.{term}").values == weights
        times = [line["step_ms"] for line in lines if "step_ms" in line]
        assert record.curve("step_ms").values == times
        assert len(times) == len(lines) - 1
        logged = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        probes = [(line["step"], line["probe"]) for line in logged if "probe" in line]
        assert record.scores["probe"].points() == probes
        drawn = record.affinity  # megabytes for a ViT: of one seed only
        assert (drawn is not None and len(drawn.maps) == 3) is (record.seed == 0)


def test_report_draws_the_same_page_again(finished: Path) -> None:
    before = (finished / "report.html").read_text()
    (finished / "report.html").unlink()
    shutil.rmtree(finished / "runs")  # report.json is enough
    assert redraw(finished) == 0
    assert (finished / "report.html").read_text() == before


def test_reach_tile(report: Report) -> None:
    for shares, value in {
        (0.5, 0.6, math.inf): "55 % in 2 of 3 seeds",
        (None,): "undefined",
    }.items():
        report.verdicts[0].results[0].passages = [
            None if share is None else Passage(baseline=200, arm=200 * share) for share in shares
        ]
        assert f"<b>{value}</b><span>" in render(report, {})


def test_page_of_a_loss_that_cannot_be_compared(report: Report) -> None:
    assert 'class="decides"' in render(report, {})
    report.verdicts = [judge("mto", by_seed(report.records, "mto"), [], moving_target=True)]
    report.moving_target, report.scores = True, []
    page = render(report, {})
    assert 'class="decides"' not in page
    assert 'class="tile"' not in page


SPOILED: dict[str, Callable[[Record, Record], object]] = {
    "Same first loss, bit for bit": lambda _, mto: add(mto.curve("loss").values, 0, 1e-9),
    "Same initial weights": lambda _, mto: add(mto.rows["token_norm"].values[0], 2, 1e-9),
    "Same data in the same order": lambda _, mto: mto.data.update({10: "others"}),
    "Same random numbers": lambda _, mto: mto.rng.update({10: "others"}),
    "Baseline without MTO": lambda base, _: add(base.curve("weights.ranking").values, 9, 1e-3),
    "Both arms ran to the end": lambda _, mto: mto.scores["knn"].at.pop(),
    "Every loss is finite": lambda _, mto: add(mto.curve("loss").values, 9, math.nan),
}


def add(values: list[float], index: int, more: float) -> None:
    values[index] += more


@pytest.mark.parametrize("name", SPOILED)
def test_unfair_comparison_is_noticed(report: Report, name: str) -> None:
    baseline, mto = by_seed(report.records, "mto")[0]
    SPOILED[name](baseline, mto)
    found = fairness(by_seed(report.records, "mto"), report.scores)
    assert {check.name for check in found} == {*SPOILED, "Same settings of the recipe"}
    assert [check.name for check in found if check.passed is False] == [name]


@pytest.mark.parametrize("null", ["null", "NaN"])
def test_values_that_were_not_measured(report: Report, finished: Path, null: str) -> None:
    """Null in mto.jsonl, or NaN as older recipes wrote it: a gap, and no reason for a verdict."""
    for path in finished.glob("runs/*/mto.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in lines:
            line["heterogeneity"][1] = line["masked_mass"] = None
        path.write_text("".join(json.dumps(line).replace("null", null) + "\n" for line in lines))
    again = open_fake(finished).report()
    assert again.fair
    assert again.verdicts == report.verdicts
    rows = again.records[0].rows["heterogeneity"].values
    assert all(math.isnan(row[1]) and row[2] == 0.3 for row in rows)
    assert all(map(math.isnan, again.records[0].curve("masked_mass").values))
    write_report(again, finished)
    assert "Masked mass at" not in (finished / "report.html").read_text(), "nobody measured it"
    loaded = Report.load(finished / "report.json")
    assert math.isnan(loaded.records[0].rows["heterogeneity"].values[0][1])
    json.loads((finished / "report.json").read_text(), parse_constant=pytest.fail)


def test_data_that_make_fewer_steps_than_planned(finished: Path) -> None:
    """Not the fault of an arm."""
    session = open_fake(finished)
    assert not wrong(session.report())
    longer = session.study.model_copy(update={"steps": 190})
    found = wrong(Session(longer, finished, FAKE).report())
    assert list(found) == ["Both arms ran to the end"]


def test_recipe_that_logs_next_to_nothing(work: Path) -> None:
    """No log, no scores, no data digests of its own: what MTO measures is enough."""
    assert FAKE.compare
    compare = FAKE.compare.model_copy(update={"scores": ()})
    recipe = FAKE.model_copy(update={"logs": Logs(), "compare": compare})
    session = fake_session(work, steps=185)  # a line every 2 steps: the last one has none
    report = run(Session(session.study, work, recipe))
    assert report.fair
    assert report.records[0].curve("loss").at[-1] == 184
    assert list(draw(report.records, report.scores)) == FIGURES[1:]


def test_unfair_comparison_is_said_loudly(report: Report) -> None:
    assert 'role="alert"' not in render(report, {})
    report.fair = report.checks[2].passed = False
    page = render(report, {})
    assert page.index('role="alert">') < page.index("<h1>")
    assert f"<li>{report.checks[2].name}: " in page


def test_folders_are_never_reused(tmp_path: Path) -> None:
    make_folder(tmp_path / "mini" / "now", 1)
    with pytest.raises(MissingError) as caught:
        make_folder(tmp_path / "mini" / "now", 1)
    assert "--reports" in caught.value.hint
    with pytest.raises(MissingError) as caught:
        make_folder(tmp_path / "full" / "now", 10**12)
    assert "--reports" in caught.value.hint
    assert not (tmp_path / "full").exists()


def end(folder: Path, name: str, code: int | None) -> None:
    """Let the run have ended with `code`, or not at all."""
    path = folder / "tasks" / f"pretrain-{name}.json"
    status = "running" if code is None else "failed" if code else "done"
    State.load(path).model_copy(update={"status": status, "exit_code": code}).save(path)


@pytest.mark.parametrize(
    ("baseline", "mto", "failed", "lost"),
    [
        (0, None, ["mto-1"], 0),
        (None, None, ["baseline-1", "mto-1"], 0),
        (0, 7, ["mto-1"], 1),
        (None, 7, ["baseline-1", "mto-1"], 1),  # stopped because the other arm had failed
        (7, 7, ["baseline-1", "mto-1"], 0),
        (7, 0, ["baseline-1"], 0),
    ],
)
def test_only_whole_seeds_count(
    finished: Path, baseline: int | None, mto: int | None, failed: list[str], lost: int
) -> None:
    """A seed is held against MTO where its arm failed by itself, and its baseline did not."""
    end(finished, "baseline-1", baseline)
    end(finished, "mto-1", mto)
    report = open_fake(finished).report()
    assert sorted(report.failed) == failed
    assert [record.seed for record in report.records] == [0, 0]
    assert report.verdicts[0].lost == lost


def test_an_arm_that_has_not_begun_is_named_once_for_each_seed(finished: Path) -> None:
    study = load_study(finished / FILE)
    arms = {**study.arms, "later": Arm(mto={"preset": "mae"})}
    study.model_copy(update={"arms": arms}).save_as(finished / FILE)
    assert open_fake(finished).report().failed == ["later-0", "later-1"]


def test_report_of_an_unfinished_comparison(finished: Path) -> None:
    (finished / "report.json").unlink()
    (finished / "report.html").unlink()
    end(finished, "mto-1", None)
    with (finished / "runs/mto-1/mto.jsonl").open("ab") as file:
        file.write('{"step": 180, "µ'.encode()[:-1])  # as a kill leaves it
    assert open_fake(finished).report().failed == ["mto-1"]
