"""`report.html`: one file without network, scripts or a missing piece."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from mto_tools.compare import figures, words
from mto_tools.compare.canvas import NAMES, Figure
from mto_tools.compare.collect import Curve
from mto_tools.compare.plan import Run
from mto_tools.compare.report import Report
from mto_tools.compare.verdict import LOSS, Quantity, Reach


def render(report: Report) -> str:
    """Return the whole page."""
    drawn = _draw(report) if report.records else []
    body = [
        _head(report),
        _tiles(report) if report.records else "",
        *(_figure(figure) for figure in drawn),
        _numbers(report),
        _checks(report),
        _runs(report),
        _how(report),
    ]
    template = files("mto_tools.compare").joinpath("template.html").read_text("utf-8")
    title = escape(f"{report.plan.upstream} with and without MTO")
    return Template(template).substitute(title=title, body="\n".join(body))


def _draw(report: Report) -> list[Figure]:
    moving = report.verdict.moving_target
    return figures.draw(report.records, report.plan.scores, moving_target=moving)


def _head(report: Report) -> str:
    plan = report.plan
    seeds = words.number(len(plan.seeds), "seed")
    when = report.made[:16].replace("T", " ")
    over = f"{plan.upstream} · style {plan.style} · {plan.steps} steps · {seeds} · {when}"
    banner = ""
    wrong = [check for check in report.checks if not check.passed]
    if not report.fair:
        items = "".join(f"<li>{escape(c.name)}: {escape(c.detail)}</li>" for c in wrong)
        banner = (
            '<div class="banner" role="alert">This comparison is not fair: the arms did not meet '
            f"the same conditions. Do not use its numbers.<ul>{items}</ul></div>"
        )
    if report.failed:
        items = "".join(f"<li>{escape(name)}</li>" for name in report.failed)
        banner += (
            '<div class="banner" role="alert">Runs that failed, and whose seeds are left out:'
            f"<ul>{items}</ul></div>"
        )
    return f"""<header>
<p class="over">{escape(over)}</p>
{banner}<h1>{escape(report.sentence)}</h1>
<p class="also">{escape(report.also)}</p>
<p class="arms"><span><i class="key baseline"></i>baseline</span>
<span><i class="key mto"></i>MTO, preset {escape(plan.preset)}</span></p>
</header>"""


def _tiles(report: Report) -> str:
    verdict = report.verdict
    end, loss = verdict.quantities[0], verdict.loss_at_the_end()
    # What decides and the loss, which may be one; never a loss that cannot be compared.
    shown = [q for q in ([end] if end is loss else [end, loss]) if _comparable(report, q.key)]
    tiles = [(words.gap(quantity), f"{quantity.label}, MTO − baseline") for quantity in shown]
    tiles += [
        _reach_tile(reach)
        for reach in verdict.reach
        if reach.key in [quantity.key.removesuffix("_end") for quantity in shown]
    ]
    for rauc in verdict.rauc[: len(shown[:1])]:
        known = [v for v in rauc.values if v is not None]
        text = f"{np.mean(known):.2f}" if known else "undefined"
        tiles.append((text, f"RAUC of {words.lower(rauc.label)}, {_range(rauc.start, rauc.stop)}"))
    if all(record.step_ms.values for record in report.records):
        ratio = np.mean(figures.step_time_ratios(report.records))
        tiles.append((f"{ratio:.2f} ×", "step time, MTO / baseline"))
    cells = "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(label)}</span></div>'
        for value, label in tiles
    )
    return f'<div class="tiles">{cells}</div>' if cells else ""


def _comparable(report: Report, key: str) -> bool:
    """False for all that is made of an L_ss whose target moves with each arm's own model."""
    return not (
        report.verdict.moving_target and key.removesuffix("_end").removesuffix("_mean") == LOSS.key
    )


def _reach_tile(reach: Reach) -> tuple[str, str]:
    final = f"final {words.lower(reach.label)}"
    known = [share for share in reach.shares if share is not None]
    finite = [share for share in known if math.isfinite(share)]
    if finite and len(finite) < len(known):
        return f"{len(finite)} of {len(known)} seeds", f"reached the baseline's {final}"
    text = f"{100 * float(np.mean(finite)):.0f} %" if finite else "not reached"
    return text if known else "undefined", f"of the baseline's steps to its {final}"


def _figure(figure: Figure) -> str:
    return f"""<section class="figure" id="{figure.key}"><h2>{escape(figure.title)}</h2>
<figure>{figure.svg}<figcaption>{escape(figure.caption)}</figcaption></figure></section>"""


def _numbers(report: Report) -> str:
    head = "<tr><th></th><th>baseline</th><th>MTO</th><th>difference</th><th>95 % interval</th>"
    head += "<th>97.5 %, decides</th><th>better in</th></tr>"
    rows = "".join(
        _quantity_row(quantity, index, comparable=_comparable(report, quantity.key))
        for index, quantity in enumerate(report.verdict.quantities)
    )
    more = [
        "<tr><td>Share of the baseline's steps to its final "
        f"{escape(words.lower(reach.label))}</td>"
        f"<td>{_each(reach.shares, lambda v: f'{100 * v:.0f} %' if math.isfinite(v) else 'never')}"
        "</td></tr>"
        for reach in report.verdict.reach
        if _comparable(report, reach.key)
    ]
    more += [
        f"<tr><td>RAUC of {escape(words.lower(rauc.label))}, {_range(rauc.start, rauc.stop)}</td>"
        f"<td>{_each(rauc.values, lambda v: f'{v:.2f}')}</td></tr>"
        for rauc in report.verdict.rauc
        if _comparable(report, rauc.key)
    ]
    return f"""<section class="plain" id="numbers"><h2>Numbers</h2>
<div class="scroll"><table>{head}{rows}</table></div>
<p class="note">Means over seeds; differences are MTO − baseline, paired by seed, with the
t-interval of their mean. {_rule(report)} All else is reported and decides nothing.</p>
<div class="scroll"><table><tr><th>by seed</th><th>{_each(_seeds(report), str)}</th></tr>
{"".join(more)}</table></div>
<p class="note">L_ss is smoothed here (mean of the last fifteenth of the run before each point).
The baseline's steps count to where it first stood at its own final value. RAUC (eq. 8) is the area
gained over the baseline's score at the start of the range, relative to the baseline's own; it is
undefined where the baseline hardly improves.</p></section>"""


def _rule(report: Report) -> str:
    """What decides, and how often that goes wrong."""
    first = report.verdict.quantities[0]
    if not _comparable(report, first.key):
        return f"Nothing decides: L_ss could, but {words.NOT_COMPARABLE}."
    label = escape(words.lower(report.verdict.reach[0].label))
    return (
        f"What decides was fixed beforehand: {label} at the end (bold); if its 97.5 % interval "
        "holds zero, that of its mean over the run. With 97.5 % for each of these two decisions, "
        "at most 5 % of comparisons say that MTO helped or harmed where it does nothing. The 95 % "
        "intervals are for reading."
    )


def _seeds(report: Report) -> list[int]:
    return [record.seed for record in report.records if record.arm == "mto"]


def _quantity_row(quantity: Quantity, index: int, *, comparable: bool) -> str:
    """A row; the first quantity decides, then the second. Without comparison, levels alone."""
    sure = quantity.sure if index < 2 else None
    compared = [
        words.gap(quantity),
        words.interval(quantity).removeprefix("95 % interval ")
        if quantity.low is not None
        else "–",
        words.span(sure, quantity.percent) if sure else "–",
        f"{quantity.better} of {len(quantity.differences)}",
    ]
    cells = [
        escape(quantity.label),
        words.show(quantity.baseline, quantity.percent),
        words.show(quantity.mto, quantity.percent),
        *(compared if comparable else ["–"] * len(compared)),
    ]
    mark = ' class="decides"' if index == 0 and comparable else ""
    return f"<tr{mark}>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _each(values: Sequence[Any], show: Callable[[Any], str]) -> str:
    return ", ".join("undefined" if value is None else show(value) for value in values) or "–"


def _range(start: float, stop: float) -> str:
    return f"steps {start:.0f} to {stop:.0f}"


def _checks(report: Report) -> str:
    items = "".join(
        f'<li class="{"yes" if check.passed else "no"}">{escape(check.name)} '
        f"<small>{escape(check.detail)}</small></li>"
        for check in report.checks
    )
    verdict = "The comparison is fair" if report.fair else "The comparison is not fair"
    return f"""<section class="plain" id="fairness"><h2>{verdict}</h2>
<ul class="checks">{items}</ul></section>"""


def _runs(report: Report) -> str:
    rows = []
    for record in report.records:
        scores = "".join(
            f"<td>{words.show(record.scores[s.key].values[-1:], s.percent)}</td>"
            for s in report.plan.scores
        )
        rows.append(
            f"<tr><td>{NAMES[record.arm]}</td><td>{record.seed}</td>"
            f"<td>{record.loss.values[-1]:.4g}</td>{scores}<td>{_median(record.step_ms)}"
            f"</td><td>{record.seconds:.0f} s</td><td>{record.bytes / 1e6:.1f} MB</td></tr>"
        )
    labels = "".join(f"<th>{escape(s.label)}</th>" for s in report.plan.scores)
    return f"""<section class="plain" id="runs"><h2>Runs</h2><div class="scroll"><table>
<tr><th>arm</th><th>seed</th><th>last L_ss</th>{labels}<th>step, ms</th><th>duration</th>
<th>folder</th></tr>{"".join(rows)}</table></div>
<p class="note">Logs, output and checkpoints are in runs/ beside this page.</p></section>"""


def _median(curve: Curve) -> str:
    return f"{np.median(curve.values):.1f}" if curve.values else "–"


def _how(report: Report) -> str:
    plan = report.plan
    facts = {
        "made by": plan.made_by,
        "when": report.made,
        "data": plan.data,
        "at once": f"{plan.jobs} runs, {words.number(plan.threads, 'thread')} each",
        **plan.versions,
    }
    rows = "".join(f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in facts.items())
    commands = "\n".join(_command(run) for run in plan.runs)
    return f"""<section class="plain" id="reproduce"><h2>How to repeat it</h2>
<div class="scroll"><table class="words">{rows}</table></div>
<details><summary>The exact command of every run</summary>
<p class="note">Run in {escape(plan.cwd)} with OMP_NUM_THREADS={plan.threads}.</p>
<pre>{escape(commands)}</pre></details></section>
<footer>Every number of this page stands in report.json beside it.</footer>"""


def _command(run: Run) -> str:
    return f"# {run.name}\n{shlex.join([Path(run.command[0]).name, *run.command[1:]])}"
