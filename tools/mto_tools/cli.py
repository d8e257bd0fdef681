"""The command `mto`."""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING

from mto_tools.errors import MissingError, MtoError, from_os_error, printable

if TYPE_CHECKING:
    import typer


def load_app() -> typer.Typer:
    """Import the command line.

    Raises:
        MissingError: A package of the extra `tools` is not installed.
    """
    try:
        from mto_tools.app import app
    except ModuleNotFoundError as error:
        if str(error.name).startswith("mto_"):
            raise
        raise MissingError(
            f"the command mto needs the package {error.name}, which is not installed",
            hint="in your clone of mto: pip install -e '.[tools]'",
        ) from error
    return app


def main() -> None:
    """Run the command line; turn an `MtoError` into two lines on stderr and its exit code."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # an output in ASCII gets stand-ins
        elif stream is None:  # closed by the caller
            setattr(sys, name, open(os.devnull, "w"))  # noqa: PTH123, SIM115
    try:
        try:
            load_app()()
        finally:
            sys.stdout.flush()
    except MtoError as error:
        _fail(error)
    except OSError as error:
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115  not flushed again at exit
        _fail(from_os_error(error))
    except KeyboardInterrupt:
        sys.exit(130)


def _fail(error: MtoError) -> None:
    """Print error and hint; in color on a terminal."""
    bold = "\033[1;{}m{}\033[0m" if sys.stderr.isatty() else "{1}"
    print(bold.format(31, "error:"), printable(error.message), file=sys.stderr)
    if error.hint:
        print(bold.format(32, "hint:"), f" {printable(error.hint)}", file=sys.stderr)
    sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
