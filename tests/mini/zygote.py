"""A process that has imported torch once and forks a fresh child per run.

Importing torch, torchvision and timm costs six CPU-seconds; a fork costs milliseconds. The children
are real processes, with a command line, an exit code and a pid that can be killed.

Reads one JSON job per line and answers each with one line:
    {"run": argv, "stdout": path, "stderr": path, "env": {}, "file_size": bytes}: the pid
    {"wait": pid}: its exit code, -9 after SIGKILL
    {"poll": pid}: the same, or an empty line while it runs
"""

import importlib
import json
import os
import resource
import runpy
import sys
from pathlib import Path

for name in ("torch.distributed", "timm.models.vision_transformer", "torchvision.datasets"):
    importlib.import_module(name)
for name in ("sklearn.datasets", "sklearn.linear_model"):
    importlib.import_module(name)


def child(job: dict) -> None:
    for name, fd in (("stdout", 1), ("stderr", 2)):
        os.dup2(os.open(job[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), fd)
    os.environ.update(job["env"])
    if job["file_size"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["file_size"], job["file_size"]))
    sys.argv = job["run"]
    sys.path.insert(0, str(Path(sys.argv[0]).parent))
    runpy.run_path(sys.argv[0], run_name="__main__")


def main() -> None:
    for line in sys.stdin:
        job = json.loads(line)
        if "poll" in job:
            pid, status = os.waitpid(job["poll"], os.WNOHANG)
            print(os.waitstatus_to_exitcode(status) if pid else "", flush=True)
            continue
        if "wait" in job:
            _, status = os.waitpid(job["wait"], 0)
            print(os.waitstatus_to_exitcode(status), flush=True)
            continue
        pid = os.fork()
        if pid:
            print(pid, flush=True)
            continue
        code = 0
        try:
            child(job)
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
