"""Files of this repository that the planner writes: `patches/NAME/deepspeed/`, tables in docs/."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mto_tools.errors import RefusedError
from mto_tools.plan import config, memory
from mto_tools.plan.memory import GIB
from mto_tools.plan.planner import Plan, Request, make_plan
from mto_tools.upstreams.facts import Facts
from mto_tools.upstreams.recipe import load_recipe
from mto_tools.upstreams.upstream import Upstream, all_upstreams

MACHINES = tuple((8, memory) for memory in (24.0, 40.0, 80.0))  # GPUs, GB each


def recipes(home: Path) -> list[tuple[Upstream, Facts]]:
    """Every upstream that can be planned."""
    found = [up for up in all_upstreams(home) if (up.folder / "recipe.toml").is_file()]
    facts = [(upstream, load_recipe(upstream).plan) for upstream in found]
    return [(upstream, known) for upstream, known in facts if known]


def plans(home: Path) -> Iterator[tuple[str, Request, Plan | RefusedError]]:
    """Every counted model on every machine; the refusal where it does not fit."""
    for upstream, facts in recipes(home):
        for model in facts.memory:
            for gpus, gpu_mem in MACHINES:
                request = Request(gpus=gpus, gpu_mem=gpu_mem, model=model)
                try:
                    yield upstream.name, request, make_plan(upstream, request)
                except RefusedError as error:
                    yield upstream.name, request, error


def files(home: Path) -> dict[str, str]:
    """Content of each configuration, by its path under `patches/`."""
    return {
        f"{name}/deepspeed/{config.file_name(plan)}": config.text(plan)
        for name, _, plan in plans(home)
        if isinstance(plan, Plan)
    }


def plan_table(home: Path) -> str:
    """The plans as a Markdown table: images x micro batches, ZeRO 2 where it is, memory."""
    rows: dict[str, list[str]] = {}
    for name, request, plan in plans(home):
        cell = "does not fit"
        if isinstance(plan, Plan):
            zero = ", ZeRO 2" if plan.stage == 2 else ""
            cell = f"{plan.micro} x {plan.accumulation}{zero}, {plan.memory.total / GIB:.1f} GiB"
        rows.setdefault(f"{name} `{request.model}`", []).append(cell)
    header = ["model", *(f"{gpus} x {gpu_mem:g} GB" for gpus, gpu_mem in MACHINES)]
    return _markdown([header, *([model, *cells] for model, cells in rows.items())])


def ddp_table(home: Path) -> str:
    """Memory under upstream's own DDP, for the micro batches in docs/recipes.md."""
    rows = [["model", "state", "per image", "images", "together", "card of"]]
    for upstream, facts in recipes(home):
        images = {s.model: s.images_per_gpu for s in reversed(facts.schedules) if s.images_per_gpu}
        for model in (model for model in facts.models if model in images):
            counts = facts.memory[model]
            state = memory.ddp_state(counts, facts.bytes_beside)
            each, count = memory.ddp_per_image(counts), images[model]
            taken = state + count * each
            cells = [f"{state / GIB:.1f} GiB", f"{each / 2**20:.0f} MiB", str(count)]
            cells += [f"{taken / GIB:.1f} GiB", f"{memory.ddp_card(taken)} GB"]
            rows.append([f"{upstream.name} `{model}`", *cells])
    return _markdown(rows)


# Pages under docs/: the name of their table, and the function that makes it.
PAGES = {"deepspeed.md": ("plans", plan_table), "recipes.md": ("memory", ddp_table)}


def documented(home: Path, page: str, text: str) -> str:
    """The text of a page of `PAGES` with the table of today."""
    name, table = PAGES[page]
    begin, end = f"<!-- {name}: mto plan --write-all -->\n", f"<!-- end of {name} -->"
    before, rest = text.split(begin)
    _, after = rest.split(end)
    return f"{before}{begin}{table(home)}{end}{after}"


def write_all(home: Path) -> list[Path]:
    """Write the configurations and tables, and delete other configurations; return the files."""
    wanted = {home / "patches" / path: text for path, text in files(home).items()}
    for file in (home / "patches").glob("*/deepspeed/*.json"):
        if file not in wanted:
            file.unlink()
    for file, text in wanted.items():
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    for page in PAGES:
        file = home / "docs" / page
        if file.exists():
            file.write_text(documented(home, page, file.read_text()))
    return list(wanted)


def _markdown(rows: list[list[str]]) -> str:
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
