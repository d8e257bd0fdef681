"""A process that has imported torch and DeepSpeed once and forks a rank for each client.

These imports cost twelve CPU-seconds, and a run has up to eight ranks. The process has a single
thread, since a fork while another thread holds a lock leaves that lock closed for ever.

A client sends one JSON object, {"argv": [...], "env": {...}}, with its stdout and stderr, and gets
the pid and, at the end, the exit code, one line each. The rank dies with its client.
"""

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
from pathlib import Path

import deepspeed

# Its shared-memory op would be compiled on first use, for a minute; gloo does as well.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
for name in (
    *("mto_tools.recipe", "mto_tools.ds.engine", "torch.distributed.launcher.api"),
    "deepspeed.runtime.zero.muon.muon_optimizer",  # every ZeRO optimizer imports it when made
    *("timm.models.vision_transformer", "torchvision.datasets"),
):
    importlib.import_module(name)


def rank(job: dict, fds: list[int]) -> None:
    """What a child does."""
    for number, fd in enumerate(fds, start=1):
        os.dup2(fd, number)
    os.environ.update(job["env"])
    sys.argv = job["argv"]
    sys.path.insert(0, str(Path(sys.argv[0]).parent))
    runpy.run_path(sys.argv[0], run_name="__main__")


def fork(job: dict, fds: list[int], inherited: list[socket.socket]) -> int:
    if pid := os.fork():
        return pid
    for connection in inherited:
        connection.close()
    code = 0
    try:
        rank(job, fds)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        sys.exit(
            1
        )  # with an interpreter's own shutdown, which lasts: torchrun sees a killed rank first
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def serve(listener: socket.socket) -> None:
    clients: dict[socket.socket, int] = {}
    while True:
        ready, _, _ = select.select([listener, *clients], [], [], 0.02)
        for connection in ready:
            if connection is listener:
                client = listener.accept()[0]
                message, fds, _, _ = socket.recv_fds(client, 1 << 20, 2)
                clients[client] = fork(json.loads(message), fds, [listener, client, *clients])
                for fd in fds:
                    os.close(fd)
                client.sendall(b"%d\n" % clients[client])
            elif pid := clients.get(connection):  # a client speaks no more: it is gone
                os.kill(pid, signal.SIGKILL)
        for connection, pid in list(clients.items()):
            gone, status = os.waitpid(pid, os.WNOHANG)
            if gone:
                del clients[connection]
                with connection, contextlib.suppress(OSError):
                    connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    gc.freeze()  # or a collection in a child would look through, and so copy, all of this
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(sys.argv[1])
        listener.listen(64)
        serve(listener)
