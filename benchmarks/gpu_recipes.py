"""A patched upstream at its real batch, with MTO off, observing and on, on images of noise.

Each run is a process of its own, of `--steps` steps in one epoch. A step's time is taken over the
last four fifths of them, loading of images included: the median is a step that is not logged, the
mean has the logged ones. Steps that loss scaling skips do not count. The last run repeats the
first, which shows the noise. `peak` is what torch allocated at most; `planned` is the estimate of
`mto plan` for it, without reserves. The batch is halved until that estimate fits the card.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from table import Row, show

from mto_tools.home import find_home
from mto_tools.launch.command import Launch
from mto_tools.launch.digits import lay_out
from mto_tools.launch.inputs import ready
from mto_tools.launch.process import start
from mto_tools.plan.memory import GIB, Memory, estimate
from mto_tools.upstreams.facts import Facts
from mto_tools.upstreams.recipe import Data, Recipe, load_recipe
from mto_tools.upstreams.upstream import load_upstream

CLOCK = Path(__file__).with_name("gpu_clock.py")
ARMS = ("off", "observe", "on", "off again")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("--style")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--steps", type=int, help="default: 50")
    parser.add_argument("--batch", type=int, help="images of a step; default: upstream's")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--tiny", action="store_true", help="5 steps of 8 images")
    parser.add_argument("--save", type=Path)
    args = parser.parse_args()
    home = find_home()
    recipe = load_recipe(load_upstream(home, args.name))
    style = recipe.style(args.style, args.name)
    checkout, _ = ready(home, args.name, print, allow_edited=True)
    steps = args.steps or (5 if args.tiny else 50)
    device = torch.device(args.device)
    batch = args.batch or (8 if args.tiny else real_batch(recipe, style, device))
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="mto-gpu-") as folder:
        work = Path(folder)
        data = noise(recipe.data, work / "images", steps * batch)
        for arm in args.arms[: 3 if args.tiny else None]:
            row = run(recipe, args.name, style, checkout, data, work, arm, steps, batch, device)
            rows.append(row)
            if "ms" in row:
                row["added"] = f"{100 * (row['ms'] / rows[0].get('ms', row['ms']) - 1):+.2f} %"
            file = args.save / f"recipe_{args.name}_{style}_{args.device}" if args.save else None
            title = f"{args.name}, {style}: {steps} steps of {batch} images"
            show(title, rows, device, file)
    return any("failed" in row for row in rows)


def run(
    recipe: Recipe,
    name: str,
    style: str,
    checkout: Path,
    data: Path,
    work: Path,
    arm: str,
    steps: int,
    batch: int,
    device: torch.device,
) -> Row:
    """One run from start to end, as a row."""
    out, clock = work / arm.replace(" ", "-"), work / "clock.json"
    clock.unlink(missing_ok=True)
    options = {"observe": recipe.options.mto({"preset": "observe"}), "on": recipe.options.mto({})}
    words = arguments(recipe, style, checkout, data, out, steps, batch) + options.get(arm, [])
    launch = Launch(
        name,
        recipe,
        checkout / recipe.pretrain,
        words,
        cpu=device.type == "cpu",
        before=[CLOCK],
        seed=0,
    )
    variables = launch.environment() | {"MTO_CLOCK": str(clock)}
    log = work / "log.txt"
    started = start(launch.argv(), cwd=data.parent, log=log, environment=variables)
    code = started.wait()
    row: Row = {"recipe": name, "style": style, "batch": batch, "MTO": arm}
    if code or not clock.is_file():
        print(started.cause())
        return row | {"failed": code or "no optimizer step was made"}
    found = json.loads(clock.read_text())
    seconds = found["seconds"][len(found["seconds"]) // 5 :]
    took = [1e3 * (end - start) for start, end in pairwise(seconds)]
    row |= {"steps": len(found["seconds"]), "mean": f"{statistics.mean(took):.2f} ms"}
    row |= {"ms": round(statistics.median(took), 2), "added": ""}
    planned = memory(recipe.plan, words, batch)
    row["planned"] = f"{planned.sum('state', 'images') / GIB:.2f} GiB" if planned else ""
    if found["peak"]:
        row |= {"peak": f"{found['peak'] / GIB:.2f} GiB"}
        row |= {"reserved": f"{found['reserved'] / GIB:.2f} GiB"}
    return row


def arguments(
    recipe: Recipe, style: str, checkout: Path, data: Path, out: Path, steps: int, batch: int
) -> list[str]:
    """The script's own, for one epoch of so many steps."""
    return recipe.words(
        f"{recipe.arguments} {recipe.smoke}",
        style,
        **{"checkout": checkout, "data": data, "out": out, "seed": 0, "epochs": 1, "warmup": 1},
        **{"batch": batch, "total": batch, "workers": min(16, os.cpu_count() or 1)},
        **{"steps": steps, "middle": steps, "eval_every": 2 * steps, "save": 1, "log_every": 10},
    )


def memory(facts: Facts | None, words: list[str], batch: int, limit: int = 0) -> Memory | None:
    """The planner's estimate under DDP, for the counted model that the arguments name."""
    for model, counts in facts.memory.items() if facts else ():
        if any(model in word for word in words):
            return estimate(counts, stage=0, micro=batch, beside=facts.bytes_beside, limit=limit)
    return None


def real_batch(recipe: Recipe, style: str, device: torch.device) -> int:
    """Images of a GPU in upstream's own run, halved until the planner's estimate fits."""
    facts = recipe.plan
    if facts is None:
        return 64
    words = arguments(recipe, style, Path("/"), Path("/"), Path("/"), 1, 1)
    named = [s for s in facts.schedules if any(s.model in word for word in words)]
    batch = (named or facts.schedules)[0].images_per_gpu or 64
    batch = min(batch, facts.largest_micro_batch or batch)
    limit = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0
    while batch > 1 and limit and (m := memory(facts, words, batch, limit)) and m.sum() > limit:
        batch //= 2
    return batch


def noise(spec: Data, root: Path, images: int, different: int = 64) -> Path:
    """A folder as the recipe expects ImageNet: links to a few images of noise, and its lists."""
    lay_out(spec, root, per_class=1)
    pool = root.parent / "noise"
    pool.mkdir()
    random = np.random.default_rng(0)
    for number in range(different):
        pixels = random.integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(pool / f"{number}.png")
    classes = sorted((root / "train").iterdir())
    lines = []
    for number in range(images - len(classes)):  # each has one image already
        folder = classes[number % len(classes)]
        link = folder / f"noise{number}.png"
        link.symlink_to(pool / f"{number % different}.png")
        label = folder.name.removeprefix("digit")
        lines.append(spec.line.format(file=link.relative_to(root / "train"), label=label))
    if spec.listing:
        with (root.parent / spec.listing.format(data=root, phase="train")).open("a") as file:
            file.writelines(f"{line}\n" for line in lines)
    return root


if __name__ == "__main__":
    sys.exit(main())
