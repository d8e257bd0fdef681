"""What the planner writes into this repository: the configurations in `patches/NAME/deepspeed/`,
for every model, on the machines people have; and two tables of the documentation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mto_tools.errors import RefusedError
from mto_tools.plan import config, ddp
from mto_tools.plan.estimate import GIB
from mto_tools.plan.planner import Plan, Request, make_plan
from mto_tools.plan.recipes import RECIPES

MACHINES = tuple((8, memory) for memory in (24.0, 40.0, 80.0))  # GPUs, GB each


def plans() -> Iterator[tuple[Request, Plan | RefusedError]]:
    """Every recipe's models on every machine, and why not where one does not fit."""
    for recipe in RECIPES.values():
        for model in recipe.models:
            for gpus, memory in MACHINES:
                request = Request(recipe.name, gpus=gpus, gpu_mem=memory, model=model)
                try:
                    yield request, make_plan(request)
                except RefusedError as error:
                    yield request, error


def files() -> dict[str, str]:
    """What stands in each file, by its path under `patches/`."""
    return {
        f"{request.name}/deepspeed/{config.file_name(plan)}": config.text(plan)
        for request, plan in plans()
        if isinstance(plan, Plan)
    }


def table() -> str:
    """The plans as a Markdown table: images x micro batches, ZeRO 2 where it is, memory."""
    header = ["model", *(f"{gpus} x {memory:g} GB" for gpus, memory in MACHINES)]
    rows: dict[str, list[str]] = {}
    for request, plan in plans():
        row = rows.setdefault(f"{request.name} `{request.model}`", [])
        if isinstance(plan, Plan):
            zero = ", ZeRO 2" if plan.stage == 2 else ""
            taken = plan.memory.total / GIB
            row.append(f"{plan.micro} x {plan.accumulation}{zero}, {taken:.1f} GiB")
        else:
            row.append("does not fit")
    lines = [header, ["---"] * len(header), *([name, *cells] for name, cells in rows.items())]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


# Pages under docs/: the name of their table, and what writes it.
PAGES = {"deepspeed.md": ("plans", table), "recipes.md": ("memory", ddp.table)}


def documented(page: str, text: str) -> str:
    """The text of a page of `PAGES` with the table of today."""
    name, write = PAGES[page]
    begin, end = f"<!-- {name}: mto plan --write-all -->\n", f"<!-- end of {name} -->"
    before, rest = text.split(begin)
    _, after = rest.split(end)
    return f"{before}{begin}{write()}{end}{after}"


def write_all(home: Path) -> list[Path]:
    """Write these files, and no other into the folders, and the tables; return the files."""
    wanted = {home / "patches" / path: text for path, text in files().items()}
    for file in (home / "patches").glob("*/deepspeed/*.json"):
        if file not in wanted:
            file.unlink()
    for file, text in wanted.items():
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    for page in PAGES:
        file = home / "docs" / page
        if file.exists():
            file.write_text(documented(page, file.read_text()))
    return list(wanted)
