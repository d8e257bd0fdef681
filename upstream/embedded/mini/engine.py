"""The training loop."""

from __future__ import annotations

import argparse
import math
import time
import zlib
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

import checkpoint
import data
from evaluate import evaluate, held_out_loss, save_images
from models import MaskedImageModel
from runtime import REFUSED, Run, stop

AMP = {"none": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def parameter_groups(
    model: nn.Module, weight_decay: float, mask_token_lr: float = 1.0
) -> list[dict[str, Any]]:
    """Weight decay for matrices; none for biases, norms and the cls and mask tokens.

    With a learning rate of its own, in units of the others', the mask token has its own group.
    """
    groups: list[dict[str, Any]] = [{"params": [], "weight_decay": w} for w in (weight_decay, 0.0)]
    for name, parameter in model.named_parameters():
        if name == "mask_token" and mask_token_lr != 1:
            groups.append({"params": [parameter], "weight_decay": 0.0, "share": mask_token_lr})
        else:
            groups[parameter.ndim <= 1 or name.endswith("_token")]["params"].append(parameter)
    return groups


def learning_rate(step: int, *, peak: float, warmup: int, steps: int) -> float:
    """Linear warm-up to `peak` at step `warmup`, then half a cosine to zero after step `steps`."""
    if step <= warmup:
        return peak * step / warmup
    done = (step - warmup) / (steps + 1 - warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * done))


def train(
    model: MaskedImageModel,
    train_set: data.Images,
    val_set: data.Images | None,
    args: argparse.Namespace,
    run: Run,
) -> None:
    """Train to step `args.steps`, from the checkpoint in `args.output_dir` if there is one."""
    config = {**vars(args), "images": train_set.fingerprint()}
    output_dir = Path(args.output_dir)
    groups = parameter_groups(model, args.weight_decay, args.mask_token_lr)
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.95))
    scaler = torch.amp.GradScaler(run.device.type, enabled=args.amp == "fp16")
    # "loss" is the sum over "summed" steps since the last line of the log
    start, progress = 0, {"loss": 0.0, "summed": 0, "data": 0}

    last = output_dir / "checkpoint.pth"
    if last.exists():
        state = checkpoint.load(last, config)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        scaler.load_state_dict(state["scaler"])
        start, progress = state["step"], state["progress"]
    elif (output_dir / "log.jsonl").exists():
        stop(f"{output_dir} has a log.jsonl, but no checkpoint; use another --output_dir", REFUSED)

    network = DistributedDataParallel(model) if run.world_size > 1 else model
    batches = data.MaskedBatches(train_set, args, run)
    steps, on_gpu = range(start + 1, args.steps + 1), run.device.type == "cuda"
    loader = DataLoader(
        batches, batch_size=None, sampler=steps, num_workers=args.workers, pin_memory=on_gpu
    )

    def save(step: int) -> None:
        names = [f"checkpoint-{step:06d}.pth"] if step in args.save_steps else []
        if step % args.save_every == 0 or step == args.steps:
            names.append("checkpoint.pth")
        if names and run.rank == 0:
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "scaler": scaler.state_dict(),
                "step": step,
                "args": config,
                "progress": progress,
            }
            for name in names:
                checkpoint.save(output_dir / name, state)

    if start == 0:
        save(0)
    log = checkpoint.Log(output_dir / "log.jsonl", start) if run.rank == 0 else None

    model.train()
    clock, timed = time.perf_counter(), start
    for step, batch in zip(steps, loader, strict=True):
        torch.manual_seed(batch.seed)
        lr = learning_rate(step, peak=args.lr, warmup=args.warmup_steps, steps=args.steps)
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get("share", 1.0)
        images = batch.images.to(run.device, non_blocking=True)
        masks = batch.mask.to(run.device, non_blocking=True)

        step_loss = torch.zeros((), device=run.device)
        for i in range(args.accum_steps):
            # DDP averages gradients in the backward of the last micro batch only
            network.require_backward_grad_sync = i == args.accum_steps - 1
            image, mask = images.chunk(args.accum_steps)[i], masks.chunk(args.accum_steps)[i]
            with torch.autocast(run.device.type, AMP[args.amp], enabled=args.amp != "none"):
                loss, _, mask = network(image, mask)
            step_loss += loss.detach() / args.accum_steps
            scaler.scale(loss / args.accum_steps).backward()
        scaler.unscale_(optimizer)
        if args.clip_grad > 0:
            nn.utils.clip_grad_norm_(model.parameters(), args.clip_grad)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)

        if run.world_size > 1:
            dist.all_reduce(step_loss)
            step_loss /= run.world_size
        if not step_loss.isfinite():
            stop(f"the loss is {step_loss} at step {step}; lower --lr, or use --clip_grad 1", 1)
        progress["loss"] += step_loss.item()
        progress["summed"] += 1
        progress["data"] = zlib.crc32(batch.record, progress["data"])

        if step % args.log_every == 0 or step == args.steps:
            now = time.perf_counter()
            record = {
                "step": step,
                "loss": progress["loss"] / progress["summed"],
                "lr": lr,
                "step_ms": round(1000 * (now - clock) / (step - timed), 3),
                "data": f"{progress['data']:08x}",
            }
            if log is not None:
                log.write(record)
            progress["loss"], progress["summed"], clock, timed = 0.0, 0, now, step
        due = step % args.eval_every == 0 or step == args.steps
        if log is not None and val_set is not None and due:
            model.eval()
            scores = evaluate(model, train_set, val_set, args.img_size)
            loss_there = held_out_loss(model, val_set, batches)
            log.write({"step": step, "val_loss": loss_there, **scores})
            if step == args.steps:
                save_images(output_dir / "images.png", model, val_set, batches)
            model.train()
        save(step)
