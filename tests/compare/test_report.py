"""The page is whole, says everything twice (picture and JSON), and is never half written."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mto_tools.compare import svg
from mto_tools.compare.collect import by_seed
from mto_tools.compare.command import redraw
from mto_tools.compare.figures import draw, weighted
from mto_tools.compare.folder import open_folder, read, write
from mto_tools.compare.page import render, write_report
from mto_tools.compare.plan import VERSION
from mto_tools.compare.report import Report, build
from mto_tools.compare.run import execute
from mto_tools.compare.verdict import judge
from mto_tools.errors import CorruptError, MissingError, MtoError
from mto_tools.upstreams.recipe import Logs

from .conftest import fake_plan, quiet

FIGURES = ["scores", "loss", "heterogeneity", "affinity", "terms", "gradients", "guards"]
VOID = {"meta", "link", "img", "br", "hr", "input", "source", "image", "use", "path"}


class Page(HTMLParser):
    """Ids, references and unclosed tags of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.references: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            value = value or ""
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href", "data", "action", "srcset", "poster"):
                self.references.append(value)
            self.references += re.findall(r"url\(([^)]*)\)", value)
            if name == "aria-labelledby":
                self.references.append(f"#{value}")

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


@pytest.fixture
def report(finished: Path) -> Report:
    return read(finished / "report.json", Report)


def test_page_is_self_contained_and_whole(report: Report, finished: Path) -> None:
    text = (finished / "report.html").read_text()
    page = Page(text)
    assert page.open == []
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert len(page.ids) == len(set(page.ids)), "ids are unique"
    for reference in page.references:
        if reference.startswith("#"):
            assert reference[1:] in page.ids, reference
        else:
            assert reference.startswith("data:image/png;base64,"), reference[:80]
    for name in ("http:", "https:", "@import", "file:"):
        assert name not in text
    assert page.tags.count("svg") > 2 * len(FIGURES), "panels are pictures of their own: they stack"
    assert [i for i in page.ids if i in FIGURES] == FIGURES
    assert "mathdefault" not in text
    assert not re.search(r"\b(nan|None|inf)\b", re.sub(r"<svg.*?</svg>", "", text, flags=re.S))


def test_sentence_stands_first(report: Report, finished: Path) -> None:
    text = (finished / "report.html").read_text()
    assert f"<h1>{report.sentence}</h1>".replace("'", "&#39;") in text
    assert text.index("<h1>") < text.index("<svg")


def test_colours_come_from_the_page(report: Report, finished: Path) -> None:
    """So that dark mode and print need no second picture."""
    drawn = "".join(
        re.findall(r"<svg.*?</svg>", (finished / "report.html").read_text(), flags=re.S)
    )
    for css in ("var(--baseline)", "var(--mto)", "var(--grid)", "currentColor"):
        assert css in drawn
    for colour in (svg.INK, *svg.COLOURS.values(), "#000000"):
        assert colour not in drawn


def test_panels_show_what_a_run_adds_to_its_loss(report: Report) -> None:
    """Weighted terms and gradients beside the raw ones; H below the line at ln |V|."""
    drawn = {figure.key: figure.panels for figure in draw(report)}
    assert "Weighted terms, MTO" in drawn["terms"][-1]
    assert all("MTO × weight" in svg for svg in drawn["gradients"])
    assert all("ln |V|" in svg for svg in drawn["heterogeneity"])
    assert len(drawn["affinity"]) == 6
    for panel in drawn["affinity"]:  # least and largest value of two maps
        assert len(re.findall(r">-?[\d.]+(?:e[-+−]\d+)?</text>", panel)) == 4


def test_weighted_is_the_value_times_the_weight_of_that_step(report: Report) -> None:
    record = report.records[1]
    curve, weight = record.terms["sparsity"], record.weights["sparsity"]
    weight.values[:2] = [0.0, 0.5]  # as in a warm-up
    del weight.steps[-1], weight.values[-1]
    found = weighted(record, "sparsity", "terms")
    assert found.steps == curve.steps[:-1]
    assert found.values[:3] == pytest.approx([0, 0.5 * curve.values[1], 0.01 * curve.values[2]])


def test_no_panel_for_a_constant(report: Report) -> None:
    for record in report.records:
        record.grad_ratio["ranking"].values = [0.0] * len(record.grad_ratio["ranking"].values)
        record.terms["ranking"].values = [math.nan] * len(record.terms["ranking"].values)
        record.masked_mass.values = [0.5] * len(record.masked_mass.values)
    drawn = {figure.key: " ".join(figure.panels) for figure in draw(report)}
    titles = {key: re.findall("<title[^>]*>(.*?)</title>", text) for key, text in drawn.items()}
    assert titles["terms"] == ["L_spa, before weighting", "Weighted terms, MTO"]
    assert titles["gradients"] == ["L_spa: gradient norm / L_ss"]
    assert titles["guards"] == ["Diagonal mass at depth 0", "Token norm at the end"]


def test_json_holds_what_the_runs_wrote(report: Report, finished: Path) -> None:
    found = json.loads((finished / "report.json").read_text())
    for record in found["records"]:
        folder = finished / "runs" / f"{record['arm']}-{record['seed']}"
        lines = [json.loads(line) for line in (folder / "mto.jsonl").read_text().splitlines()]
        assert record["heterogeneity"]["values"] == [line["heterogeneity"] for line in lines]
        assert record["token_norm"]["values"] == [line["token_norm"] for line in lines]
        for term in ("sparsity", "singularity", "ranking"):
            assert record["terms"][term]["values"] == [line[term] for line in lines]
        assert record["loss"]["values"] == [line["loss"] for line in lines]
        times = [line["step_ms"] for line in lines if "step_ms" in line]
        assert record["step_ms"]["values"] == times
        assert len(times) == len(lines) - 1
        logged = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        probes = [(line["step"], line["probe"]) for line in logged if "probe" in line]
        assert list(zip(*record["scores"]["probe"].values(), strict=True)) == probes
        drawn = record["affinity"]  # megabytes for a ViT: of one seed only
        assert (len(drawn["maps"]) == 3) if record["seed"] == 0 else drawn is None
    assert found["plan"]["seeds"] == [0, 1]
    assert found["sentence"] == report.sentence


def test_report_draws_the_same_page_again(
    report: Report, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (finished / "report.html").read_text()
    (finished / "report.html").unlink()
    shutil.rmtree(finished / "runs")  # report.json is enough
    assert redraw(finished) == 0
    assert (finished / "report.html").read_text() == before
    assert capsys.readouterr().out.splitlines() == [str(finished / "report.html")]


@pytest.mark.parametrize(
    ("shares", "value", "label"),
    [
        ([0.5, 0.6, math.inf], "2 of 3 seeds", "reached the baseline&#39;s final linear probe"),
        ([0.5, 0.6, 0.7], "60 %", "of the baseline&#39;s steps to its final linear probe"),
        ([math.inf, math.inf], "not reached", "of the baseline&#39;s steps to its final linear"),
        ([None, None], "undefined", "of the baseline&#39;s steps to its final linear probe"),
    ],
)
def test_reach_tile(report: Report, shares: list[float | None], value: str, label: str) -> None:
    report.verdict.results[0].shares = shares
    assert f"<b>{value}</b><span>{label}" in render(report, [])


def test_page_says_what_decides_and_how_surely(report: Report) -> None:
    assert "each uses a 97.5 % interval (Bonferroni)" in " ".join(render(report, []).split())
    report.verdict = judge(by_seed(report.records), [], moving_target=True)
    report.plan.scores = ()
    page = render(report, draw(report))
    assert "Nothing decides: L_ss could, but its target comes" in " ".join(page.split())
    assert 'class="decides"' not in page
    caption = re.findall(r"<figcaption>(The recipe.*?)</figcaption>", page)[0]
    assert "its target comes, in whole or in part, from a moving copy" in caption
    assert "MTO is lower at" not in caption
    assert re.findall(r'<div class="tile">.*?<span>(.*?)</span>', page) == [
        "step time, MTO / baseline, roughly: runs share the machine"
    ]
    for record in report.records:
        record.step_ms.values = []
    assert 'class="tile"' not in render(report, [])


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("{}", CorruptError, "is not a report"),
        ("not json", CorruptError, "is not a report"),
        (f'{{"schema_version": {VERSION}}}', CorruptError, "report.json: made: Field required"),
        ('{"schema_version": 1, "records": []}', MtoError, f"schema_version 1; .* reads {VERSION}"),
    ],
)
def test_report_of_something_else(
    tmp_path: Path, text: str, error: type[MtoError], words: str
) -> None:
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(error, match=words):
        redraw(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_report_of_another_version_names_the_commit_that_reads_it(
    report: Report, tmp_path: Path
) -> None:
    report.schema_version = VERSION - 1
    report.plan.versions["mto commit"] = "1234abcd with local edits"
    write(tmp_path / "report.json", report.model_dump_json())
    with pytest.raises(MtoError) as caught:
        redraw(tmp_path)
    assert "git worktree add ../mto-before 1234abcd " in caught.value.hint


def test_report_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"there is no .*report\.json"):
        redraw(tmp_path)


@pytest.mark.parametrize(
    ("drift", "name"),
    [
        ("data", "Same data in the same order"),
        ("rng", "Same random numbers"),
        ("loss", "Same first loss, bit for bit"),
        ("norm", "Same initial weights"),
        ("weight", "Baseline without MTO"),
    ],
)
def test_unfair_comparison_is_noticed(
    run_fake: Callable[..., Report], drift: str, name: str
) -> None:
    report = run_fake("--drift", drift)
    assert not report.fair
    assert [check.name for check in report.checks if not check.passed] == [name]


def test_a_loss_that_is_not_finite(run_fake: Callable[..., Report]) -> None:
    """mto.jsonl holds null for it."""
    report = run_fake("--nan_at", "90")
    wrong = {check.name: check.detail for check in report.checks if not check.passed}
    assert wrong == {"Every loss is finite": "seed 0: mto has L_ss = nan at step 90"}


@pytest.mark.parametrize("null", ["null", "NaN"])
def test_values_that_were_not_measured(report: Report, finished: Path, null: str) -> None:
    """Null in mto.jsonl, or NaN as older recipes wrote it: a gap, and no reason for a verdict."""
    for path in finished.glob("runs/*/mto.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in lines:
            line["heterogeneity"][1] = line["masked_mass"] = None
        path.write_text("".join(json.dumps(line).replace("null", null) + "\n" for line in lines))
    again = build(report.plan, finished)
    assert again.fair
    assert again.verdict == report.verdict
    record = again.records[0]
    assert all(math.isnan(row[1]) and row[2] == 0.3 for row in record.heterogeneity.values)
    assert all(map(math.isnan, record.masked_mass.values))
    drawn = {figure.key: figure.panels for figure in draw(again)}
    assert len(drawn["guards"]) == 2, "a mass that nobody measured has no panel"


def test_data_that_make_fewer_steps_than_planned(report: Report, finished: Path) -> None:
    """Not the fault of an arm."""
    again = build(report.plan.model_copy(update={"steps": 190}), finished)
    wrong = {check.name: check.detail for check in again.checks if not check.passed}
    assert list(wrong) == ["Both arms ran to the end"]
    assert (
        f"both arms ended alike at step 180 of 190: the images in {report.plan.data}"
        in (wrong["Both arms ran to the end"])
    )


def test_recipe_that_logs_next_to_nothing(work: Path) -> None:
    """No log, no scores, no data digests of its own: what MTO measures is enough."""
    plan = fake_plan(work, steps=185)  # a line every 2 steps: the last one has none
    plan = plan.model_copy(update={"scores": (), "logs": Logs()})
    execute(plan, work, quiet())
    write(work / "plan.json", plan.model_dump_json())
    assert redraw(work) == 0
    report = read(work / "report.json", Report)
    assert report.fair
    assert report.records[0].loss.steps[-1] == 184
    assert "L_ss ended at" in report.sentence
    assert report.secondary.startswith("L_ss decides, as the recipe logs no score")
    assert [figure.key for figure in draw(report)] == FIGURES[1:]


def test_unfair_comparison_is_said_loudly(report: Report) -> None:
    assert report.fair
    assert 'role="alert"' not in render(report, [])
    report.fair = report.checks[2].passed = False
    page = render(report, [])
    assert page.index('role="alert">This comparison is not fair') < page.index("<h1>")
    assert f"<li>{report.checks[2].name}: " in page


def test_numbers_that_are_not_finite_survive(report: Report, finished: Path) -> None:
    report.records[0].loss.values[3] = float("nan")
    report.records[0].grad_ratio["ranking"].values[0] = float("inf")
    write_report(report, finished)
    again = read(finished / "report.json", Report)
    assert again.records[0].loss.values[3] != again.records[0].loss.values[3]
    assert again.records[0].grad_ratio["ranking"].values[0] == float("inf")
    json.loads((finished / "report.json").read_text(), parse_constant=pytest.fail)


def test_folders_are_never_reused(tmp_path: Path) -> None:
    assert len({open_folder(tmp_path, "mini", 1) for _ in range(3)}) == 3


def test_disk_without_room(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"the runs need about 10\d+ MB, but .* has only"):
        open_folder(tmp_path, "mini", 10**12)
    assert list((tmp_path / "mini").iterdir()) == []


def test_reports_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "reports").write_text("a file in the way")
    with pytest.raises(MissingError, match=r"cannot be written: (Not a directory|File exists)"):
        open_folder(tmp_path / "reports", "mini", 1)
    assert (tmp_path / "reports").read_text() == "a file in the way"
