"""Masked image modeling on a folder of images; README.md shows the commands."""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from data import BrokenImageError, Images
from engine import train
from models import MAE, SimMIM
from runtime import CORRUPT, MISSING, Run, join, stop


def count(text: str) -> int:
    """An integer of at least 1, for argparse."""
    if int(text) < 1:
        raise ValueError
    return int(text)


def get_args_parser() -> argparse.ArgumentParser:
    """All settings of a run, with defaults for small images on one core."""
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--data_path", required=True, help="folder with train/<class>/* and, for scores, val/")
    add("--output_dir", default="out", help="checkpoints and log; a run here is gone on with")
    add("--seed", type=int, default=0, help="fixes weights, order, crops, masks and drop path")

    add("--style", choices=["simmim", "mae"], default="mae", help="which model")
    add("--img_size", type=count, default=32, help="side of the square input in pixels")
    add("--patch_size", type=count, default=4, help="side of a patch in pixels")
    add("--embed_dim", type=int, default=64, help="channels of the encoder")
    add("--depth", type=int, default=4, help="blocks of the encoder")
    add("--num_heads", type=int, default=4, help="attention heads of the encoder")
    add("--decoder_dim", type=int, default=64, help="channels of the decoder (mae)")
    add("--decoder_depth", type=int, default=2, help="blocks of the decoder (mae)")
    add("--decoder_num_heads", type=int, default=4, help="attention heads of the decoder (mae)")
    add("--mlp_ratio", type=float, default=2.0, help="hidden over outer channels in the blocks")
    add("--mask_ratio", type=float, help="share of masked patches; simmim 0.6, mae 0.75")
    add("--mask_cell", type=int, help="patches along a side of a masked cell; simmim 2, mae 1")
    add("--mask_token_std", type=float, default=0.02, help="of its initial values")
    add("--uniformity", type=float, default=0.0, help="weight of U-MAE's term, per micro batch")
    add("--norm_pix_loss", action="store_true", help="normalise the target pixels per patch")
    add("--drop_path", type=float, default=0.0, help="stochastic depth of the encoder")

    add("--steps", type=count, default=900, help="optimizer steps in the whole run")
    add("--batch_size", type=count, default=64, help="images per step, over all ranks")
    add("--accum_steps", type=count, default=1, help="micro batches per step")
    add("--lr", type=float, default=2e-3, help="peak learning rate")
    add("--mask_token_lr", type=float, default=1.0, help="its learning rate, in units of --lr")
    add("--warmup_steps", type=int, default=90, help="linear warm-up, then cosine to zero")
    add("--weight_decay", type=float, default=0.05, help="AdamW's, for weight matrices")
    add("--clip_grad", type=float, default=0.0, help="largest gradient norm; 0 does not clip")
    add("--crop_scale", type=float, default=0.67, help="smallest area of a random crop; 1: none")
    add("--hflip", action="store_true", help="flip half of the images; not for digits")

    add("--log_every", type=count, default=10, help="steps per line of the log")
    add("--eval_every", type=count, default=150, help="steps between scores by k-NN and probes")
    add("--save_every", type=count, default=100, help="steps between checkpoints")
    add("--save_steps", type=int, nargs="*", default=[], help="steps to keep a checkpoint of")

    device = "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", choices=["cpu", device], default=device, help="where to compute")
    add("--amp", choices=["none", "bf16", "fp16"], help="autocast; bf16 on a GPU, else none")
    add("--workers", type=int, default=0, help="processes that prepare batches, per rank")
    return parser


def check(args: argparse.Namespace, run: Run) -> None:
    """Refuse settings that cannot work, and fill in those that depend on others."""
    if args.batch_size % (run.world_size * args.accum_steps):
        parts = f"{run.world_size} ranks x --accum_steps {args.accum_steps}"
        stop(f"--batch_size {args.batch_size}, the total, is no multiple of {parts}", 2)
    ratio, cell = {"simmim": (0.6, 2), "mae": (0.75, 1)}[args.style]
    args.mask_ratio = ratio if args.mask_ratio is None else args.mask_ratio
    args.mask_cell = args.mask_cell or cell
    if args.img_size % (args.patch_size * args.mask_cell):
        cell = f"--patch_size {args.patch_size} x --mask_cell {args.mask_cell}"
        stop(f"--img_size {args.img_size} is no multiple of {cell}", 2)
    args.amp = args.amp or ("bf16" if args.device == "cuda" else "none")


def main(args: argparse.Namespace) -> None:
    """Run pre-training from parsed arguments to the last checkpoint."""
    run = join(args.device)
    check(args, run)
    random.seed(args.seed)
    np.random.seed(args.seed % 2**32)
    torch.manual_seed(args.seed)
    model = {"simmim": SimMIM, "mae": MAE}[args.style](args)
    model.to(run.device)
    try:
        root = Path(args.data_path)
        if not (root / "train").is_dir():
            stop(f"no folder {root}/train; --data_path must hold train/<class>/<image>", MISSING)
        train_set = Images(root / "train")
        val_set = Images(root / "val") if (root / "val").is_dir() else None
        if run.rank == 0 and not (val_set and train_set.labelled(val_set)):
            print(f"no {root}/val with two classes of train: k-NN and probes are left out")
        Path(args.output_dir).mkdir(parents=True, exist_ok=True)
        train(model, train_set, val_set, args, run)
    except OSError as error:
        reason = str(error).splitlines()[-1]  # a worker's traceback comes before it
        code = CORRUPT if isinstance(error, BrokenImageError) else MISSING
        stop(f"{reason}; mend this, and the same command goes on with {args.output_dir}", code)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main(get_args_parser().parse_args())
