"""git with everything taken away that would make its answer depend on who asks.

A user's `diff.noprefix`, `core.autocrlf`, hooks or an exported `GIT_DIR` must not change what a
series builds. Locations and credentials (ssh, proxies, `url.*.insteadOf`, `safe.directory`) stay
the user's, because fetching needs them.
"""

from __future__ import annotations

import os
import re
import shlex
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mto_tools.errors import CorruptError, MissingError, MtoError

OLDEST = (2, 31)  # rev-parse --path-format; `mto upgrade` asks for 2.38 itself

# Results never depend on these; last on the command line wins over every configuration file.
# safe.bareRepository: every folder is named by the user, none is found by git.
_NEUTRAL = f"""
advice.detachedHead=false apply.ignoreWhitespace=no apply.whitespace=nowarn color.ui=false
commit.gpgSign=false core.fsmonitor=false core.hooksPath={os.devnull} core.quotePath=false
diff.algorithm=default diff.context=3 diff.dstPrefix=b/ diff.ignoreSubmodules=none
diff.indentHeuristic=true diff.interHunkContext=0 diff.mnemonicPrefix=false diff.noprefix=false
diff.orderFile={os.devnull} diff.renames=false diff.srcPrefix=a/ gc.auto=0
i18n.commitEncoding=UTF-8 log.showSignature=false maintenance.auto=false merge.conflictStyle=merge
merge.renames=true rerere.enabled=false safe.bareRepository=all status.renames=false
submodule.recurse=false user.useConfigOnly=false
""".split()
# Line ends belong to the work tree, and the work tree to the user: a clone made elsewhere under
# autocrlf=true holds CRLF on purpose. Blobs are compared without conversion, files with it.
_NO_CONVERSION = f"core.attributesFile={os.devnull} core.autocrlf=false core.safecrlf=false".split()
_ENVIRONMENT = {
    "LC_ALL": "C",
    "LANGUAGE": "C",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_DEFAULT_HASH": "sha1",  # of what we init; pins and locks are SHA-1
    "GIT_NO_REPLACE_OBJECTS": "1",  # a pin is the object of that name, not a stand-in
    "GIT_OPTIONAL_LOCKS": "0",  # reading changes nothing
}
# These variables name another repository, index, format or identity. All others stay: credentials,
# proxies, and the variables a user's own filters, helpers and hooks read.
_REDIRECTING = re.compile(
    r"GIT_(DIR|WORK_TREE|IMPLICIT_WORK_TREE|COMMON_DIR|INDEX_FILE|INDEX_VERSION|OBJECT_DIRECTORY|"
    r"ALTERNATE_OBJECT_DIRECTORIES|QUARANTINE_PATH|NAMESPACE|PREFIX|CONFIG|CONFIG_PARAMETERS|"
    r"SHALLOW_FILE|GRAFT_FILE|REPLACE_REF_BASE|CEILING_DIRECTORIES|DISCOVERY_ACROSS_FILESYSTEM|"
    r"(LITERAL|GLOB|NOGLOB|ICASE)_PATHSPECS|EXTERNAL_DIFF|DIFF_OPTS|ATTR_SOURCE|TEMPLATE_DIR|"
    r"DEFAULT_REF_FORMAT|REFLOG_ACTION|INTERNAL_\w+|TEST_\w+|(AUTHOR|COMMITTER)_\w+)"
)


class GitError(MtoError):
    """git itself failed; the message holds its own words."""


@contextmanager
def clean_environment() -> Iterator[None]:
    """Hide the `GIT_*` variables that redirect git; a child only ever adds to what it inherits."""
    hidden = {k: v for k, v in os.environ.items() if _REDIRECTING.fullmatch(k)}
    for key in hidden:
        del os.environ[key]
    try:
        yield
    finally:
        os.environ.update(hidden)


class Git:
    """Runs git, by way of GitPython, bound to one folder.

    Args:
        folder: Work tree, bare repository, or the folder in which one will be made.
        env: Variables added to every call, such as `GIT_INDEX_FILE`.
        held: Descriptor every git process inherits. A lock taken on it is released only when the
            last of them is gone, even when mto itself was killed before.
    """

    def __init__(
        self, folder: Path | str, env: Mapping[str, str] | None = None, held: int | None = None
    ) -> None:
        self.folder = Path(folder).absolute()
        self.env = dict(env or {})
        self.held = held
        self._git_dir: Path | None = None

    def with_env(self, **env: str) -> Git:
        """Return the same folder with more variables, e.g. another `GIT_INDEX_FILE`."""
        return Git(self.folder, {**self.env, **env}, self.held)

    def try_run(
        self, *args: str, input: bytes = b"", convert: bool = False
    ) -> tuple[int, bytes, str]:
        """Run `git ARGS` and return (exit status, stdout, stderr); never raises on a status.

        `convert` leaves line-end conversion and attributes to the user's configuration; for
        commands that read or write the work tree, such as `status` and `checkout`.

        Raises:
            MissingError: There is no such folder, no git, or one that cannot say its version.
        """
        if not self.folder.is_dir():
            raise MissingError(f"there is no folder {self.folder}")
        os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
        try:  # here, for the import takes 0.2 s and starts git
            from git.cmd import Git as GitPython
            from git.exc import GitCommandNotFound
        except ImportError as error:
            words = " ".join(str(error).split())
            hint = "git --version shows the same; mend what it names, such as ~/.gitconfig"
            raise MissingError(f"git does not start: {words}", hint=hint) from error
        settings = [*_NEUTRAL, *(() if convert else _NO_CONVERSION)]
        # -C although cwd is given: GitPython falls back to its own cwd where it may not enter.
        command = ["git", "-C", str(self.folder)]
        command += [word for setting in settings for word in ("-c", setting)] + list(args)
        with clean_environment(), tempfile.TemporaryFile() as stdin:
            stdin.write(input)
            stdin.seek(0)
            try:
                rc, out, err = GitPython(str(self.folder)).execute(
                    command,
                    istream=stdin,
                    env={**_ENVIRONMENT, **self.env},
                    with_extended_output=True,
                    with_exceptions=False,
                    stdout_as_string=False,
                    strip_newline_in_stdout=False,
                    pass_fds=() if self.held is None else (self.held,),
                )
            except GitCommandNotFound as error:
                hint = "install git 2.31 or newer, as by conda install git, onto PATH"
                raise MissingError("there is no git on PATH", hint=hint) from error
        return rc, out, err if isinstance(err, str) else err.decode(errors="replace")

    def run(self, *args: str, check: bool = True, **options: Any) -> bytes:
        """Run `git ARGS` and return its stdout; `try_run` explains the options.

        Raises:
            GitError: git left with a non-zero status, and `check` is true.
            MissingError: There is no git, or no such folder.
        """
        rc, out, err = self.try_run(*args, **options)
        if rc and check:
            raise _explain(self.folder, args, rc, err)
        return out

    def text(self, *args: str, check: bool = True, **options: Any) -> str:
        """Run `git ARGS` and return its stdout as text without the last line feed."""
        out = self.run(*args, check=check, **options)
        return out.decode("utf-8", "surrogateescape").removesuffix("\n")

    def ok(self, *args: str) -> bool:
        """Whether `git ARGS` leaves with status 0."""
        return self.try_run(*args)[0] == 0

    def command(self, *args: str) -> str:
        """Return the shell command `git -C FOLDER ARGS`, for a hint."""
        return shlex.join(["git", "-C", str(self.folder), *args])

    def toplevel(self) -> Path | None:
        """Return the top folder of the work tree around the folder; None where there is none.

        Raises:
            GitError: There is a repository, but git cannot or will not read it.
        """
        args = ("rev-parse", "--show-toplevel")
        rc, out, err = self.try_run(*args)
        if rc and ("not a git repository" in err or "must be run in a work tree" in err):
            return None
        if rc:
            raise _explain(self.folder, args, rc, err)
        return Path(os.fsdecode(out.removesuffix(b"\n"))).resolve()

    def is_toplevel(self) -> bool:
        """Whether the folder is itself a repository, not merely a folder inside one."""
        return self.toplevel() == self.folder.resolve()

    def require_toplevel(self) -> None:
        """Refuse a folder that is not a clone of its own.

        Inside another repository `git apply` skips every file and leaves with status 0.

        Raises:
            CorruptError: The folder is no clone, or lies inside another one.
            GitError: git cannot or will not read the clone.
        """
        top = self.toplevel()
        if top == self.folder.resolve():
            return
        what = f"not a clone of its own but a folder inside {top}" if top else "not a git clone"
        if self.text("rev-parse", "--is-bare-repository", check=False) == "true":
            what = "a bare repository, which has no files to patch"
        raise CorruptError(
            f"{self.folder} is {what}",
            hint="give --repo the top folder of a clone, or move this folder away",
        )

    def git_dir(self) -> Path:
        """The repository's own folder; in a linked work tree the one under `worktrees/`."""
        if self._git_dir is None:
            self._git_dir = Path(self.text("rev-parse", "--absolute-git-dir"))
        return self._git_dir

    def common_dir(self) -> Path:
        """The folder that linked work trees share: objects, branches, configuration."""
        return Path(self.text("rev-parse", "--path-format=absolute", "--git-common-dir"))

    def resolve(self, revision: str) -> str:
        """Return the full OID of `revision`, or "" where there is none.

        Raises:
            GitError: There is a repository, but git cannot or will not read it.
        """
        args = ("rev-parse", "--verify", "--quiet", "--end-of-options", revision)
        rc, out, err = self.try_run(*args)
        if rc == 128 and err and "not a git repository" not in err:
            raise _explain(self.folder, args, rc, err)
        return out.decode().strip() if rc == 0 else ""

    def head(self) -> tuple[str, str]:
        """Return the branch HEAD is on and its commit; each is "" where there is none."""
        return self.text("symbolic-ref", "--quiet", "HEAD", check=False), self.resolve("HEAD")


def restore_command(path: Path) -> str:
    """Return the command that gives a tracked file or folder its committed content again."""
    folder, name = (path, ".") if path.is_dir() else (path.parent, path.name)
    return Git(folder).command("checkout", "--", name)


def hide(text: str) -> str:
    """Return `text` with user and password taken out of every URL in it."""
    return re.sub(r"://[^/\s]*@", "://***@", text)


def _explain(folder: Path, args: tuple[str, ...], rc: int, err: str) -> MtoError:
    """Turn git's own words into our error; they name the command that mends it, where one can."""
    words = hide(" ".join(err.split())) or f"status {rc}"
    what = f"git {' '.join(args[:2])} failed in {folder}: {words}"
    if any(w in err for w in ("No space left", "Disk quota exceeded", "Out of diskspace")):
        return MissingError(what, hint="free some disk space, then run the command again")
    return GitError(what)
