"""The configurations in `patches/NAME/deepspeed/`: for every model, on the machines people have."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mto_tools.errors import RefusedError
from mto_tools.plan import config
from mto_tools.plan.estimate import GIB
from mto_tools.plan.planner import Plan, Request, make_plan
from mto_tools.plan.recipes import RECIPES

BEGIN, END = "<!-- plans: mto plan --write-all -->", "<!-- end of plans -->"
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


def documented(text: str) -> str:
    """`docs/deepspeed.md` with the table of today."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{table()}{END}{after}"


def write_all(home: Path) -> list[Path]:
    """Write these files, and no other into the folders, and the table; return the files."""
    wanted = {home / "patches" / path: text for path, text in files().items()}
    for file in (home / "patches").glob("*/deepspeed/*.json"):
        if file not in wanted:
            file.unlink()
    for file, text in wanted.items():
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    page = home / "docs" / "deepspeed.md"
    if page.exists():
        page.write_text(documented(page.read_text()))
    return list(wanted)
