"""One process of a recipe: prepare, then run the upstream's script as `__main__`.

    python -m mto_tools.launch.worker [--cpu] [--precision P] [--compat NAME]... [--seed S]
                                      [--before FILE]... SCRIPT [ARGUMENTS of the script]

`mto run` uses it for `--cpu` only; on a GPU the script itself is started. `--compat` activates a
recipe's shims for a script that no patch has touched, which the tests compare with a patched one.
`--before` runs a Python file first, in this process: measuring tools.
"""

from __future__ import annotations

import argparse
import os
import random
import runpy
import sys
from pathlib import Path


def main() -> None:
    """Read the launcher's own options up to the script's name, and leave the rest to the script."""
    parser = argparse.ArgumentParser(prog="mto_tools.launch.worker", allow_abbrev=False)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--compat", action="append", default=[])
    parser.add_argument("--seed", type=int)
    parser.add_argument("--before", action="append", default=[])
    parser.add_argument("script")
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    # torch.distributed.launch puts its flag in front; it belongs to the script.
    rank_flags = [a for a in sys.argv[1:2] if a.startswith(("--local-rank=", "--local_rank="))]
    options = parser.parse_args(sys.argv[1 + len(rank_flags) :])
    script = Path(options.script).resolve()
    sys.argv = [str(script), *rank_flags, *options.arguments]
    sys.path[0] = str(script.parent)
    if options.cpu:
        from mto_tools.launch.cpu import pretend_cuda

        pretend_cuda(options.precision)
    if options.seed is not None:
        # Two recipes leave Python's own generator unseeded, which nothing else here draws from.
        random.seed(options.seed + int(os.environ.get("RANK", "0")))
    for name in options.compat:
        from mto_tools import compat

        compat.shim(name)() if "." in name else compat.activate(name)
    for file in options.before:
        runpy.run_path(file)
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main()
