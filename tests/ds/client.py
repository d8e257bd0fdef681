"""Stands for a process forked by zygote.py: `python -S client.py SOCKET SCRIPT ARGUMENTS...`.

It has the same output, the same end (exit code or signal), and hands SIGTERM and SIGINT on.
"""

import json
import os
import signal
import socket
import sys

with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
    server.connect(sys.argv[1])
    job = {"argv": sys.argv[2:], "env": dict(os.environ)}
    socket.send_fds(server, [json.dumps(job).encode()], [1, 2])
    answers = server.makefile()
    pid = int(answers.readline())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: os.kill(pid, number))
    code = int(answers.readline() or "1")
if code < 0:
    signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
    os.kill(os.getpid(), -code)
sys.exit(code)
