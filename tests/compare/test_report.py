"""The page is whole, says everything twice (picture and JSON), and is never half written."""

from __future__ import annotations

import json
import math
import re
import shutil
import warnings
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mto_tools.compare import svg
from mto_tools.compare.collect import by_seed
from mto_tools.compare.command import redraw
from mto_tools.compare.page import render, write_report
from mto_tools.compare.plan import Options, make_plan
from mto_tools.compare.report import (
    Report,
    close_folder,
    open_folder,
    read_report,
    write,
)
from mto_tools.compare.run import execute
from mto_tools.compare.spec import LogSpec
from mto_tools.compare.verdict import judge
from mto_tools.errors import CorruptError, MissingError, RefusedError

from .conftest import HERE, LAUNCH, quiet

FIGURES = ["scores", "loss", "heterogeneity", "affinity", "terms", "gradients", "guards", "time"]
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
    return read_report(finished)


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


def test_attention_that_underflows_is_drawn_blank(report: Report) -> None:
    """Masked tokens may give visible ones less than float16 holds, in some rows or in all."""
    shown = report.records[0].affinity[-1]
    for rows in (shown.maps[0][:1], shown.maps[1][: shown.num_masked]):
        for row in rows:
            row[shown.num_masked :] = [0.0] * (len(row) - shown.num_masked)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        page = render(report)
    assert page.count("all underflow") == 1


def test_json_holds_what_the_runs_wrote(report: Report, finished: Path) -> None:
    found = json.loads((finished / "report.json").read_text())
    for record in found["records"]:
        folder = finished / "runs" / f"{record['arm']}-{record['seed']}"
        lines = [json.loads(line) for line in (folder / "mto.jsonl").read_text().splitlines()]
        assert record["heterogeneity"]["values"] == [line["heterogeneity"] for line in lines]
        assert record["token_norm"]["values"] == [line["token_norm"] for line in lines]
        for term in ("sparsity", "singularity", "ranking"):
            assert record["terms"][term]["values"] == [line[term] for line in lines]
        logged = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        assert record["loss"]["values"] == [line["loss"] for line in logged if "loss" in line]
        probes = [(line["step"], line["probe"]) for line in logged if "probe" in line]
        assert list(zip(*record["scores"]["probe"].values(), strict=True)) == probes
        kept = [3, 3, 3] if record["seed"] == 0 else []  # megabytes for a ViT: of one seed only
        assert [len(a["maps"]) for a in record["affinity"]] == kept
    assert found["plan"]["seeds"] == [0, 1]
    assert found["sentence"] == report.sentence


def test_commands_name_the_final_folder(report: Report) -> None:
    for run in report.plan.runs:
        out = run.command[run.command.index("--output_dir") + 1]
        assert out.endswith(f"/now/runs/{run.name}")


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
    report.verdict.reach[0].shares = shares
    assert f"<b>{value}</b><span>{label}" in render(report)


def test_page_says_what_decides_and_how_surely(report: Report) -> None:
    assert "each uses a 97.5 % interval (Bonferroni)" in " ".join(render(report).split())
    report.verdict = judge(by_seed(report.records), [], moving_target=True)
    report.plan.scores = []
    page = render(report)
    assert "Nothing decides: L_ss could, but its target comes" in page
    assert 'class="decides"' not in page
    caption = re.findall(r"<figcaption>(The recipe.*?)</figcaption>", page)[0]
    assert "its target comes, in whole or in part, from a moving copy" in caption
    assert "MTO is lower at" not in caption
    assert re.findall(r'<div class="tile">.*?<span>(.*?)</span>', page) == [
        "step time, MTO / baseline"
    ]
    for record in report.records:
        record.step_ms.values = []
    assert 'class="tile"' not in render(report)


@pytest.mark.parametrize("text", ["{}", "not json", '{"schema_version": 1}'])
def test_report_of_something_else(tmp_path: Path, text: str) -> None:
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(CorruptError, match="is not a report"):
        redraw(tmp_path)
    assert not (tmp_path / "report.html").exists()


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
    ],
)
def test_unfair_comparison_is_noticed(
    run_fake: Callable[..., Report], drift: str, name: str
) -> None:
    report = run_fake("--drift", drift)
    assert not report.fair
    assert [check.name for check in report.checks if not check.passed] == [name]


def test_recipe_that_logs_next_to_nothing(work: Path) -> None:
    """No log, no scores, no data digests of its own: what MTO measures is enough."""
    options = Options(seeds=2, steps=185, jobs=2)  # a line every 2 steps: the last one has none
    plan = make_plan(LAUNCH, options, upstream="fake", checkout=HERE, out=work, data=work)
    plan = plan.model_copy(update={"scores": [], "logs": LogSpec(train="", data="")})
    execute(plan, work, quiet())
    write(work / "plan.json", plan.model_dump_json())
    assert redraw(work) == 0
    report = read_report(work)
    assert report.fair
    assert report.records[0].loss == report.records[0].own_loss
    assert report.records[0].loss.steps[-1] == 184
    assert "L_ss ended at" in report.sentence
    assert report.secondary.startswith("L_ss decides, as the recipe logs no score")
    page = Page(render(report))
    assert [i for i in page.ids if i in FIGURES] == [f for f in FIGURES[1:] if f != "time"]


def test_unfair_comparison_is_said_loudly(report: Report) -> None:
    assert report.fair
    assert 'role="alert"' not in render(report)
    report.fair = report.checks[2].passed = False
    page = render(report)
    assert page.index('role="alert">This comparison is not fair') < page.index("<h1>")
    assert f"<li>{report.checks[2].name}: " in page


def test_numbers_that_are_not_finite_survive(report: Report, finished: Path) -> None:
    report.records[0].loss.values[3] = float("nan")
    report.records[0].grad_ratio["ranking"].values[0] = float("inf")
    write_report(report, finished)
    again = read_report(finished)
    assert again.records[0].loss.values[3] != again.records[0].loss.values[3]
    assert again.records[0].grad_ratio["ranking"].values[0] == float("inf")
    json.loads((finished / "report.json").read_text(), parse_constant=pytest.fail)


def test_folders_are_never_reused(tmp_path: Path) -> None:
    pairs = [open_folder(tmp_path, "mini", 1) for _ in range(3)]
    assert len({work for work, _ in pairs}) == 3
    work, final = pairs[0]
    final.mkdir()
    (final / "report.html").write_text("mine")
    with pytest.raises(RefusedError, match="has appeared meanwhile"):
        close_folder(work, final)
    assert (final / "report.html").read_text() == "mine"
    assert close_folder(*pairs[1]) == pairs[1][1]


def test_disk_without_room(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"the runs need about 10\d+ MB, but .* has only"):
        open_folder(tmp_path, "mini", 10**12)
    assert list((tmp_path / "mini").iterdir()) == []


def test_reports_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "reports").write_text("a file in the way")
    with pytest.raises(MissingError, match=r"cannot be written: (Not a directory|File exists)"):
        open_folder(tmp_path / "reports", "mini", 1)
    assert (tmp_path / "reports").read_text() == "a file in the way"
