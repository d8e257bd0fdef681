"""The configurations in this repository: `patches/NAME/deepspeed/`, which the planner writes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from mto_tools.errors import RefusedError
from mto_tools.plan import config
from mto_tools.plan.planner import Plan, Request, make_plan
from mto_tools.upstreams.recipe import load_recipe
from mto_tools.upstreams.upstream import all_upstreams

GPUS, MEMORIES = 8, (24.0, 40.0, 80.0)  # the machines; GB of a GPU


def plans(home: Path) -> Iterator[tuple[str, str, Plan | None]]:
    """Upstream, model and plan of every counted model on every machine; `None`: does not fit."""
    for upstream in all_upstreams(home):
        known = (upstream.folder / "recipe.toml").is_file()
        facts = load_recipe(upstream).plan if known else None
        for model in facts.memory if facts else ():
            for gpu_mem in MEMORIES:
                plan = None
                with contextlib.suppress(RefusedError):
                    plan = make_plan(upstream, Request(GPUS, gpu_mem, model=model))
                yield upstream.name, model, plan


def files(home: Path) -> dict[str, str]:
    """Content of each configuration, by its path under `patches/`."""
    return {
        f"{name}/deepspeed/{config.file_name(plan)}": config.text(plan)
        for name, _, plan in plans(home)
        if plan
    }


def write_all(home: Path) -> list[Path]:
    """Write the configurations, and delete others; return the files."""
    wanted = {home / "patches" / path: text for path, text in files(home).items()}
    for file in set((home / "patches").glob("*/deepspeed/*.json")) - wanted.keys():
        file.unlink()
    for file, text in wanted.items():
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    return list(wanted)
