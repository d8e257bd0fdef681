"""Searches over the fake recipe of the studies."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from rich.console import Console

from mto_tools.study.builtin import BASELINE
from mto_tools.study.spec import Arm, Study
from mto_tools.tune.runs import Runs

from ..study.conftest import FAKE, inputs_of

RECIPE = FAKE.model_copy(update={"options": FAKE.options.model_copy(update={"rate": "--lr"})})
RATES = {f"rate{n}": Arm(mto=BASELINE, arguments=("--lr", str(n + 1))) for n in range(2)}
ASKED = Study(upstream="fake", style="mae", steps=60, seeds=(0, 1), arms=RATES)
FRESH = 3


def search(folder: Path, **changes: Any) -> Runs:
    """A search in `folder`, one run at a time."""
    study = ASKED.model_copy(update=changes)
    folder.mkdir(parents=True, exist_ok=True)
    return Runs(study, FRESH, RECIPE, inputs_of("fake"), folder, Console(file=io.StringIO()))
