"""Files of this repository that the planner writes: `patches/NAME/deepspeed/`, tables in docs/."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from mto_tools.errors import RefusedError
from mto_tools.plan import config
from mto_tools.plan.memory import GIB, estimate
from mto_tools.plan.planner import Plan, Request, make_plan
from mto_tools.upstreams.facts import Facts
from mto_tools.upstreams.recipe import load_recipe
from mto_tools.upstreams.upstream import Upstream, all_upstreams

GPUS, MEMORIES = 8, (24.0, 40.0, 80.0)  # the machines; GB of a GPU


def recipes(home: Path) -> list[tuple[Upstream, Facts]]:
    """Every upstream that can be planned."""
    found = [up for up in all_upstreams(home) if (up.folder / "recipe.toml").is_file()]
    facts = [(upstream, load_recipe(upstream).plan) for upstream in found]
    return [(upstream, known) for upstream, known in facts if known]


def plans(home: Path) -> Iterator[tuple[str, str, Plan | None]]:
    """Upstream, model and plan of every counted model on every machine; `None`: does not fit."""
    for upstream, facts in recipes(home):
        for model in facts.memory:
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


def plan_table(home: Path) -> str:
    """The plans as a Markdown table: images x micro batches, ZeRO 2 where it is, memory."""
    rows: dict[str, list[str]] = {"model": [f"{GPUS} x {gpu_mem:g} GB" for gpu_mem in MEMORIES]}
    for name, model, plan in plans(home):
        cell = "does not fit"
        if plan:
            zero = ", ZeRO 2" if plan.stage == 2 else ""
            cell = f"{plan.micro} x {plan.accumulation}{zero}, {plan.memory.sum() / GIB:.1f} GiB"
        rows.setdefault(f"{name} `{model}`", []).append(cell)
    return _markdown([[model, *cells] for model, cells in rows.items()])


def ddp_table(home: Path) -> str:
    """Memory under upstream's own DDP, for the micro batches in docs/recipes.md."""
    rows = [["model", "state", "per image", "images", "together", "card of"]]
    for upstream, facts in recipes(home):
        images = {s.model: s.images_per_gpu for s in facts.schedules if s.images_per_gpu}
        for model, count in images.items():
            beside = facts.bytes_beside
            taken = estimate(facts.memory[model], stage=0, micro=count, beside=beside)
            state, each = taken.sum("state"), taken.sum("images") // count
            cells = [f"{state / GIB:.1f} GiB", f"{each / 2**20:.0f} MiB", str(count)]
            cells += [f"{taken.sum('state', 'images') / GIB:.1f} GiB", f"{taken.card} GB"]
            rows.append([f"{upstream.name} `{model}`", *cells])
    return _markdown(rows)


# Pages under docs/: the name of their table, and the function that makes it.
PAGES = {"deepspeed.md": ("plans", plan_table), "recipes.md": ("memory", ddp_table)}


def documented(home: Path, page: str, text: str) -> str:
    """The text of a page of `PAGES` with the table of today."""
    name, table = PAGES[page]
    begin, end = f"<!-- {name}: mto plan --write-all -->\n", f"<!-- end of {name} -->"
    before, rest = text.split(begin)
    return f"{before}{begin}{table(home)}{end}{rest.split(end)[1]}"


def write_all(home: Path) -> list[Path]:
    """Write the configurations and tables, and delete other configurations; return the files."""
    wanted = {home / "patches" / path: text for path, text in files(home).items()}
    for file in set((home / "patches").glob("*/deepspeed/*.json")) - wanted.keys():
        file.unlink()
    for file, text in wanted.items():
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    for file, page in ((home / "docs" / page, page) for page in PAGES):
        if file.exists():
            file.write_text(documented(home, page, file.read_text()))
    return list(wanted)


def _markdown(rows: list[list[str]]) -> str:
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
