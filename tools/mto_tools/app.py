"""The command line: every area's commands, and `--version`."""

from __future__ import annotations

import importlib.metadata
from typing import Annotated

import typer

from mto_tools import doctor
from mto_tools.evaluate import cli as evaluate_cli
from mto_tools.inspect import cli as inspect_cli
from mto_tools.launch import cli as launch_cli
from mto_tools.patchset import authoring_cli
from mto_tools.patchset import cli as patchset_cli
from mto_tools.plan import cli as plan_cli
from mto_tools.study import cli as study_cli
from mto_tools.study import report_cli
from mto_tools.tune import cli as tune_cli

app = typer.Typer(
    name="mto",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    rich_markup_mode="markdown",
)
for area in (
    *(patchset_cli, authoring_cli, study_cli, report_cli, inspect_cli, evaluate_cli, launch_cli),
    *(tune_cli, plan_cli, doctor),
):
    area.register(app)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"mto {importlib.metadata.version('mto-core')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print it, exit."),
    ] = False,
) -> None:
    """Masked Token Optimization: patch the official MIM recipes, compare, see the effect."""
