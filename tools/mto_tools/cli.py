"""The command `mto`."""

from __future__ import annotations

import sys

import typer
from rich.console import Console

from mto_tools import doctor
from mto_tools.compare import cli as compare_cli
from mto_tools.errors import MtoError
from mto_tools.launch import cli as launch_cli
from mto_tools.patchset import cli as patchset_cli
from mto_tools.plan import cli as plan_cli

app = typer.Typer(
    name="mto",
    help="Masked Token Optimization: patch the official MIM recipes, compare, see what it does.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    rich_markup_mode="markdown",
)
patchset_cli.register(app)
compare_cli.register(app)
launch_cli.register(app)
plan_cli.register(app)
doctor.register(app)


def main() -> None:
    """Run the command line; turn an `MtoError` into two lines on stderr and its exit code."""
    try:
        app()
    except MtoError as error:
        console = Console(stderr=True, soft_wrap=True, highlight=False)
        console.print(f"[bold red]error:[/] {_escape(error.message)}")
        if error.hint:
            console.print(f"[bold green]hint:[/]  {_escape(error.hint)}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


def _escape(text: str) -> str:
    return text.replace("[", r"\[")


if __name__ == "__main__":
    main()
