"""Errors a person can act on; docs/patches.md lists their exit codes, which are a promise."""

from __future__ import annotations

import errno


class MtoError(Exception):
    """What failed, on which object, and the command that mends it.

    Args:
        message: One sentence that names the object, what was expected and what was found.
        hint: A command or a short instruction that mends it; shown on a line of its own.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(f"{message}\nhint: {hint}" if hint else message)  # in a traceback
        self.message = message
        self.hint = hint


class MissingError(MtoError):
    """Something needed is not there (source, program, data, disk space)."""

    exit_code = 3


class RefusedError(MtoError):
    """Going on would overwrite something of the user's."""

    exit_code = 4


class CorruptError(MtoError):
    """An object differs from its lock, or cannot be read in its format."""

    exit_code = 5


class ConflictError(MtoError):
    """A person must decide."""

    exit_code = 6


def from_os_error(error: OSError) -> MtoError:
    """Turn a refusal of the operating system into an error with a hint."""
    where = error.filename or "the output"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return MissingError(
            f"no space left on the disk of {where}",
            hint="free some disk space, then run the command again; it finishes or undoes an "
            "interrupted step",
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return MtoError(
            f"cannot write {where}: {error.strerror}",
            hint="see that it is yours and not read-only; the next mto command finishes or undoes "
            "an interrupted step",
        )
    return MtoError(f"{where}: {error.strerror or error}")


def printable(text: str) -> str:
    """Replace the bytes of file names that are not UTF-8."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
