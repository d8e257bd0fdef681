"""A process that writes what a patched recipe writes, with synthetic numbers, in no time.

For tests of what stands around the runs: launching, watching, ending, collecting. `--mto_preset
observe` is the baseline, anything else reaches scores `--gain` better. The options at the end make
it misbehave in the MTO arm.
"""

import argparse
import contextlib
import hashlib
import json
import math
import os
import pickle
import random
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np

parser = argparse.ArgumentParser()
for flag in ("data_path", "output_dir", "style", "mto_preset", "mto_affinity_steps"):
    parser.add_argument(f"--{flag}", default="")
for flag in ("seed", "steps", "log_every", "eval_every", "mto_log_every", "mto_grad_every"):
    parser.add_argument(f"--{flag}", type=int, default=1)
parser.add_argument("--mto", action="store_true")
parser.add_argument("--gain", type=float, default=0.05)
for flag in ("lr", "mto_sparsity", "mto_singularity", "mto_ranking"):
    parser.add_argument(f"--{flag}", type=float)
for flag in ("mto_sparsity_depth", "mto_scale", "mto_sparsity_scale"):
    parser.add_argument(f"--{flag}")
parser.add_argument("--fail_at", type=int)
parser.add_argument("--fail_seed", type=int)
parser.add_argument("--fail_signal", type=int)
parser.add_argument("--sleep_at", type=int)
parser.add_argument("--save_every", type=int, default=1000)
parser.add_argument("--save_steps", type=int, nargs="*", default=[])
parser.add_argument("--kill", help="folder with a file for each step at which to kill the driver")
parser.add_argument("--immortal", action="store_true", help="go on after that")
parser.add_argument("--helper", action="store_true", help="start a process that outlives us")
args = parser.parse_args()
WEIGHTS = {"sparsity": 0.01, "singularity": 0.1, "ranking": 0.001}

out = Path(args.output_dir)
arm = "baseline" if args.mto_preset == "observe" else "mto"
odd = arm == "mto"
noise, timing = random.Random(args.seed), random.Random(args.seed)
gain = args.gain * (1 + 0.2 * noise.uniform(-1, 1)) * (arm == "mto")
if args.mto_sparsity is not None:  # best at 0.1, alone
    gain *= math.exp(-(math.log10((args.mto_sparsity or 1e-4) / 0.1) ** 2))
    gain -= 0.01 * (args.mto_singularity > 0) + 0.01 * (args.mto_ranking > 0)
print(f"{arm} with {args.data_path}", flush=True)
if odd and args.helper:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (out / "helper.pid").write_text(str(child.pid))
affinity_steps = [int(s) for s in args.mto_affinity_steps.split(",") if s]


def write(name, record):
    with (out / name).open("a") as file:
        file.write(json.dumps(record) + "\n")


def kill_driver(step):
    """Once: the study's driver dies, and then we do, as its guard sees to it."""
    for how in ("", "-cut"):
        event = Path(args.kill or out) / f"{out.name}-{step}{how}"
        if args.kill and event.exists():
            event.unlink()
            if how:
                (out / "checkpoint.pth").write_bytes(b"half a checkpoint")
            words = (out.parents[1] / ".lock").read_text().split()
            os.kill(int(words[1]), signal.SIGKILL)
            time.sleep(0 if args.immortal else 600)


def whole(log):
    """Lines and their steps, but for one that a full disk has cut."""
    for line in log.read_text().splitlines():
        with contextlib.suppress(ValueError):
            yield line, json.loads(line)["step"]


def save(path, step):
    """A checkpoint as torch writes it: a zip file."""
    part = path.with_suffix(".part")
    with zipfile.ZipFile(part, "w") as file:
        file.writestr("state", pickle.dumps((step, noise.getstate(), timing.getstate())))
    part.replace(path)


def load():
    """Step to go on after; logs keep what the checkpoint has."""
    with zipfile.ZipFile(out / "checkpoint.pth") as file:
        step, *states = pickle.loads(file.read("state"))
    for generator, state in zip((noise, timing), states, strict=True):
        generator.setstate(state)
    for log in out.glob("*.jsonl"):
        lines = "".join(f"{line}\n" for line, at in whole(log) if at <= step)
        log.with_suffix(".part").write_text(lines)
        log.with_suffix(".part").replace(log)
    return step


def digest(*parts):
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


begin = load() if (out / "checkpoint.pth").exists() else 0
for step in range(begin + 1, args.steps + 1):
    kill_driver(step)
    done = (step - 1) / args.steps
    level = 1 - math.exp(-4 * done * (1 + 4 * gain)) * 0.7
    level *= 1 - 0.1 * abs(math.log2(args.lr or 1))  # best at 1
    loss = 0.35 - 0.25 * level + noise.gauss(0, 0.004) * (step > 1)
    if odd and step == args.fail_at and args.fail_seed in (None, args.seed):
        print("RuntimeError: the fake recipe was told to fail [/red]", flush=True)
        if args.fail_signal:
            os.kill(os.getpid(), args.fail_signal)
        sys.exit(7)
    if odd and step == args.sleep_at:
        time.sleep(600)
    if step == 1 or step % args.mto_log_every == 0:
        decay = 1 if step == 1 else (0.8 if arm == "mto" else 1.0)
        record = {
            "step": step,
            "loss": loss,
            "sparsity": 3 - 2 * done * decay,
            "singularity": 0.4,
            "ranking": 0.7 + gain * done,
            "weights": {name: weight * (arm == "mto") for name, weight in WEIGHTS.items()},
            "heterogeneity": [2.5 * decay, 0.8 * decay, 0.3],
            "diagonal_mass": 0.3 + 0.2 * done,
            "masked_mass": 0.4 - 0.2 * done,
            "token_norm": [5, 7 + done, 9 + 2 * done],
            "rng": digest("rng", args.seed, step),
        }
        if step > 1:
            record["step_ms"] = 5 + timing.random() + (arm == "mto") * 0.4
        if step == 1 or step % args.mto_grad_every == 0:
            record["grad_ratio"] = {"sparsity": 5.0 + done, "singularity": 0.3, "ranking": 0.9}
        write("mto.jsonl", record)
    if step % args.log_every == 0 or step == args.steps:
        ids = digest("data", args.seed, step)
        write("log.jsonl", {"step": step, "data": ids})
    if step % args.eval_every == 0 or step == args.steps:
        probe = 0.1 + 0.7 * level + noise.gauss(0, 0.005)
        write("log.jsonl", {"step": step, "probe": probe, "knn": probe - 0.05})
    if step in affinity_steps:
        logits = np.random.default_rng(args.seed).normal(size=(3, 16, 16)) * (2 + done)
        maps = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        quadrant = maps[:, :12, 12:] / maps[:, :12, 12:].sum(-1, keepdims=True)
        path = out / f"mto-affinity-{step:06d}.npz"
        np.savez(path, affinity=maps, masked_to_visible=quadrant, num_masked=12)
    if step % args.save_every == 0 or step == args.steps:
        save(out / "checkpoint.pth", step)
    if step in args.save_steps:
        save(out / f"checkpoint-{step:06d}.pth", step)
