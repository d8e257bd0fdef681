"""What was found, as JSON, CSV and one page of HTML."""

from __future__ import annotations

import shlex
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from mto_tools.inspect.figures import draw
from mto_tools.inspect.report import Inspection, table
from mto_tools.inspect.run import Seen


def write_all(inspection: Inspection, seen: list[Seen], folder: Path) -> None:
    """Write `inspect.json`, `inspect.csv` and `inspect.html` into a folder."""
    (folder / "inspect.json").write_text(inspection.model_dump_json(indent=1) + "\n", "utf-8")
    (folder / "inspect.csv").write_text(table(inspection), "utf-8")
    page = Environment(
        loader=PackageLoader("mto_tools.inspect", "."), autoescape=True, undefined=StrictUndefined
    )
    page.globals.update(join=shlex.join)
    text = page.get_template("template.html").render(
        inspection=inspection, figures=draw(inspection, seen)
    )
    (folder / "inspect.html").write_text(text, "utf-8")
