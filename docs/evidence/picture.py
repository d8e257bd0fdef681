"""The picture of `make evidence`: held-out L_ss by step, with and without MTO."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mto_tools.study.record import Record, combine, of_arm

if TYPE_CHECKING:
    from evidence import Found

KEY = "val_loss"  # of the log: the held-out L_ss, lower is better
FIRST = 1 / 8  # of a run is left out: its steep descent would flatten the rest
TITLES = {"mae": "MAE-style", "simmim": "SimMIM-style"}
COLOURS = {"baseline": "#6e7781", "default": "#1f9e89", "default_half": "#d9662b"}


def draw(studies: Sequence[Found], file: Path) -> None:
    """Write an SVG with a panel of each study: a bold mean over thin seeds."""
    with mpl.rc_context({"svg.hashsalt": "mto", "font.size": 11, "axes.spines.top": False}):
        figure = Figure(figsize=(4.9 * len(studies), 3.6), layout="constrained")
        panels = figure.subplots(1, len(studies), squeeze=False)[0]
        for axes, study in zip(panels, studies, strict=True):
            _panel(axes, study)
        figure.savefig(file, format="svg", facecolor="white", metadata={"Date": None})


def _panel(axes: Axes, study: Found) -> None:
    records = study.report.records
    shown = {
        f"baseline, best of {len(study.rates)} learning rates": ("baseline", study.opponent),
        "MTO": ("default", "default"),
        "MTO, half of the steps": ("default_half", "default_half"),
    }
    for label, (colour, arm) in shown.items():
        _lines(axes, of_arm(records, arm), COLOURS[colour], label)
    end = np.mean([r.scores[KEY].values[-1] for r in of_arm(records, study.opponent)])
    axes.axhline(float(end), color=COLOURS["baseline"], lw=1, ls=":")
    axes.set_title(TITLES.get(study.study.style, study.name))
    axes.set_xlabel("step")
    axes.set_ylabel("held-out $L_{ss}$")
    axes.spines["right"].set_visible(False)
    axes.legend(frameon=False)


def _lines(axes: Axes, records: Sequence[Record], colour: str, label: str) -> None:
    curves = [record.scores[KEY] for record in records if KEY in record.scores]
    if not curves:
        return
    for curve in [*curves, mean := combine(curves, np.mean)]:
        late = [at >= FIRST * curve.at[-1] for at in curve.at]
        at, values = (np.asarray(x)[late] for x in (curve.at, curve.values))
        bold = curve is mean
        axes.plot(at, values, color=colour, lw=2 if bold else 0.6, label=label if bold else None)
