"""Tables in docs/ that are made from the recipes. WRITE_DOCS=1 writes those of today."""

from __future__ import annotations

import os
import re

from .command import HOME


def check_table(page: str, name: str, rows: list[list[str]]) -> None:
    """Compare the table between the two comments that have its name."""
    file = HOME / "docs" / page
    text = file.read_text()
    begin, end = re.search(rf"<!-- {name}: .*-->\n", text), f"<!-- end of {name} -->"
    assert begin
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    wanted = text[: begin.end()] + table + text[text.index(end) :]
    if os.environ.get("WRITE_DOCS"):
        file.write_text(wanted)
    assert file.read_text() == wanted, "WRITE_DOCS=1 writes the table of today"
