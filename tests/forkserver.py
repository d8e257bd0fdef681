"""Real processes without the seconds that importing torch costs: a server forks each of them.

The server imports its modules once and has a single thread, since a fork while another thread holds
a lock leaves that lock closed for ever. Each process it forks has a command line, an environment, a
folder, files for its output, an exit code, and a process group of its own:

    with ForkServer("torch", "timm") as server:
        process = server.start("main_pretrain.py", "--epochs", "1", out=folder / "log")
        assert process.wait() == 0

`server.command` stands for the interpreter in a command that another program starts (torchrun): it
has the forked process's output, its end and its signals. A forked process dies with its client.
Variables that Python itself reads at its start, such as PYTHONIOENCODING, have no effect.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import socket
import sys
from pathlib import Path

TYPE_CHECKING = False
if TYPE_CHECKING:  # a client is started without site-packages and must be there at once
    from collections.abc import Mapping
    from typing import Any


def run_python(argv: list[str]) -> None:
    """Do what `python ARGV...` does: a script, `-m` a module or `-c` a program."""
    import runpy

    if argv[0] == "-m":
        sys.argv, sys.path[:0] = argv[1:], [str(Path.cwd())]
        sys.modules.pop(argv[1], None)  # preloaded: run again as __main__
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
    elif argv[0] == "-c":
        sys.argv, sys.path[:0] = ["-c", *argv[2:]], [str(Path.cwd())]
        exec(compile(argv[1], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv, sys.path[:0] = argv, [str(Path(argv[0]).resolve().parent)]
        runpy.run_path(argv[0], run_name="__main__")


def die_before(number: int) -> None:
    """Kill this process before its `number`-th change of a file below its folder."""
    folder, left = Path.cwd(), number

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal left
        writes = event == "open" and isinstance(args[2], int) and args[2] & os.O_ACCMODE
        if (writes or event in ("os.rename", "os.remove")) and isinstance(args[0], (str, Path)):
            left -= folder in Path(args[0]).absolute().parents
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def become(job: dict[str, Any], fds: list[int]) -> None:
    """Run a job in this process, which was forked for it, and exit."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, fd in enumerate((os.open(os.devnull, os.O_RDONLY), *fds)):
        os.dup2(fd, number)
        os.close(fd)
    # New streams: those of the server know whether its own output can seek.
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", buffering=1, closefd=False)
    os.environ.clear()
    os.environ.update(job["env"])
    os.chdir(job["cwd"])
    if job["file_size"]:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (job["file_size"],) * 2)
    if job["die_before"]:
        die_before(job["die_before"])
    try:
        run_python(job["argv"])
    except SystemExit:
        raise
    except BaseException:
        sys.excepthook(*sys.exc_info())
        sys.exit(1)  # by the interpreter's shutdown, as a failed process ends
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def serve(path: str, modules: list[str]) -> None:
    """Import the modules, then fork a process for each client until stdin is closed."""
    import gc
    import importlib
    import select

    sys.path.pop(0)  # this file's folder
    for name in modules:
        importlib.import_module(name)
    gc.freeze()  # or a collection in a child would look through, and so copy, all of this
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path + ".new")
    listener.listen(64)
    Path(path + ".new").rename(path)  # whoever sees the path may connect
    clients: dict[Any, int] = {}
    while True:
        sources = [sys.stdin, listener, *clients]
        ready = select.select(sources, [], [], 0.01 if clients else None)[0]
        if sys.stdin in ready:
            break
        for connection in ready:
            if connection is listener:
                client = listener.accept()[0]
                message, fds, _, _ = socket.recv_fds(client, 1 << 20, 2)
                pid = os.fork()
                if not pid:
                    for inherited in (listener, client, *clients):
                        inherited.close()
                    become(json.loads(message), list(fds))
                with contextlib.suppress(OSError):  # the child may have done it, and be gone
                    os.setpgid(pid, pid)
                for fd in fds:
                    os.close(fd)
                clients[client] = pid
                client.sendall(b"%d\n" % pid)
            elif connection in clients:  # a client speaks once: it is gone
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(clients[connection], signal.SIGKILL)
        for connection, pid in list(clients.items()):
            gone, status = os.waitpid(pid, os.WNOHANG)
            if gone:
                del clients[connection]
                with connection, contextlib.suppress(OSError):
                    connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
    for pid in clients.values():
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


class Forked:
    """A process that was forked by the server.

    Attributes:
        pid: Its process id, and the id of its process group.
    """

    def __init__(self, path: str, job: dict[str, Any], fds: list[int]) -> None:
        self.connection = socket.socket(socket.AF_UNIX)
        self.connection.connect(path)
        socket.send_fds(self.connection, [json.dumps(job).encode()], fds)
        self.answers = self.connection.makefile()
        self.pid = int(self.answers.readline())
        self.code: int | None = None

    def wait(self) -> int:
        """Return the exit code, `-N` after signal N; pytest's timeout is the limit."""
        if self.code is None:
            self.code = int(self.answers.readline())
            self.connection.close()
        return self.code

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to the process group; harmless after its end."""
        if self.code is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)


class ForkServer:
    """A server whose processes find `modules` imported; use it in a `with` statement."""

    def __init__(self, *modules: str, env: Mapping[str, str] | None = None) -> None:
        import subprocess
        import tempfile

        self.folder = tempfile.TemporaryDirectory()  # a socket's path must be short
        self.path = Path(self.folder.name) / "socket"
        argv = [sys.executable, __file__, "serve", str(self.path), *modules]
        self.process = subprocess.Popen(argv, env={**os.environ, **(env or {})}, stdin=-1)

    @property
    def command(self) -> list[str]:
        """The client: a command that stands for `python`."""
        self.wait_until_ready()
        return [sys.executable, "-S", __file__, "client", str(self.path)]

    def wait_until_ready(self) -> None:
        """Wait for the imports to end."""
        import time

        while not self.path.exists():
            assert self.process.poll() is None, "the fork server's imports failed"
            time.sleep(0.02)

    def start(
        self,
        *argv: str | Path,
        out: Path,
        err: Path | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        file_size: int = 0,
        die_before: int = 0,
    ) -> Forked:
        """Start `python ARGV...`.

        Args:
            argv: A script, or `-m` or `-c`, and its arguments.
            out: The file that stdout is appended to.
            err: The file that stderr is appended to, `out` where it is None.
            env: Variables added to those of this process.
            cwd: The folder it runs in, that of this process where it is None.
            file_size: No file may grow beyond this many bytes, as on a full disk; 0 for no limit.
            die_before: The process kills itself before so many changes of files below `cwd`.
        """
        self.wait_until_ready()
        job = {
            "argv": [str(word) for word in argv],
            "env": {**os.environ, **(env or {})},
            "cwd": str(cwd or Path.cwd()),
            "file_size": file_size,
            "die_before": die_before,
        }
        with out.open("ab") as stdout, (err or out).open("ab") as stderr:
            return Forked(str(self.path), job, [stdout.fileno(), stderr.fileno()])

    def __enter__(self) -> ForkServer:
        return self

    def __exit__(self, *exception: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        self.folder.cleanup()


def stand_in(path: str, argv: list[str]) -> None:
    """Have a process forked, and stand for it: the same output, signals and end."""
    job = {"argv": argv, "env": dict(os.environ), "cwd": str(Path.cwd())}
    job |= {"file_size": 0, "die_before": 0}
    process = Forked(path, job, [1, 2])
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: process.kill(number))
    code = process.wait()
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2], sys.argv[3:])
    else:
        stand_in(sys.argv[2], sys.argv[3:])
