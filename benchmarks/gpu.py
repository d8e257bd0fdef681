"""Parts of the day on a GPU, one process each; `gpu.sh` starts it.

| part     | what it measures                                                                      |
|----------|---------------------------------------------------------------------------------------|
| tests    | the tests marked `gpu`                                                                |
| accuracy | every backend against float64: float16, bfloat16, TensorFloat-32 allowed              |
| overhead | time and peak memory of a step with and without MTO, real shapes, eager and compiled  |
| recipes  | the patched upstreams with MTO off, observing and on; peak memory beside the plan's   |

A process that takes longer than `--limit` is ended; what it has measured by then stays. Exit status
1: one has failed or was ended.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from table import RESULTS

from mto_tools.home import find_home
from mto_tools.upstreams.recipe import load_recipe
from mto_tools.upstreams.upstream import all_upstreams

HERE = Path(__file__).parent
PARTS = ("tests", "accuracy", "overhead", "recipes")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small shapes, few steps, mini alone")
    parser.add_argument("--recipes", nargs="+", metavar="NAME", help="default: those of the paper")
    parser.add_argument("--limit", type=int, default=600, help="seconds of a process")
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu")
    args = parser.parse_args()
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"unknown part {', '.join(sorted(unknown))}: choose of {', '.join(PARTS)}")
    failed = []
    for part in args.parts or PARTS:
        for command in commands(part, args):
            print(f"== {part}: {' '.join(command)}", flush=True)
            start = time.monotonic()
            try:
                code = subprocess.run([sys.executable, *command], timeout=args.limit).returncode
            except subprocess.TimeoutExpired:
                code = "ended by --limit"  # type: ignore[assignment]
            print(f"== {part}: {code or 'done'}, {time.monotonic() - start:.0f} s\n", flush=True)
            failed += [part] if code else []
    print(f"results: {args.out}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return bool(failed)


def commands(part: str, args: argparse.Namespace) -> list[list[str]]:
    """The processes of a part, as arguments of Python."""
    device, tiny = ["--device", args.device], ["--tiny"] if args.tiny else []
    save = ["--save", str(args.out)]
    if part == "tests":
        where = "tests/mto_core/test_devices.py" if args.tiny else "tests"
        return [["-m", "pytest", "-q", "-m", "gpu", where]]
    if part == "accuracy":
        return [[str(HERE / "gpu_accuracy.py"), *device, *tiny, *save]]
    if part == "overhead":
        script = str(HERE / "overhead.py")
        shapes = ["tiny"] if args.tiny else ["simmim", "mae", "swin"]
        rounds = ["--rounds", "2" if args.tiny else "9"]
        how = [*device, *rounds, "--compiled", *save]
        return [[script, "--shapes", shape, *how] for shape in shapes]
    # The paper's recipes ask for CUDA; mini, in small, does not.
    known = {u.name: load_recipe(u) for u in all_upstreams(find_home())}
    if unknown := set(args.recipes or ()) - known.keys():
        sys.exit(f"unknown recipe {', '.join(sorted(unknown))}: choose of {', '.join(known)}")
    names = args.recipes or [n for n, recipe in known.items() if recipe.cuda_only != args.tiny]
    script = str(HERE / "gpu_recipes.py")
    return [
        [script, name, "--style", style, *device, *tiny, *save]
        for name in names
        for style in list(known[name].styles)[: 1 if args.tiny else None]
    ]


if __name__ == "__main__":
    sys.exit(main())
