"""Masked image modeling on a folder of images.

python make_digits.py --out digits
python main_pretrain.py --data_path digits --output_dir out --style mae
torchrun --nproc_per_node 4 main_pretrain.py --data_path DIR --output_dir out --batch_size 1024
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.distributed as dist

import runtime
from data import BrokenImageError, Images
from engine import train
from models import MAE, MaskedImageModel, SimMIM
from runtime import CORRUPT, MISSING, stop


def count(text: str) -> int:
    """An integer of at least 1, for argparse."""
    if int(text) < 1:
        raise ValueError
    return int(text)


def steps(text: str) -> list[int]:
    """Integers with commas, for argparse."""
    return [int(step) for step in text.split(",") if step]


def get_args_parser() -> argparse.ArgumentParser:
    """All settings of a run, with defaults for small images on one core."""
    parser = argparse.ArgumentParser(
        description="Pre-train a small ViT by masked image modeling",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
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
    add("--norm_pix_loss", action="store_true", help="normalise the target pixels per patch")
    add("--drop_path", type=float, default=0.0, help="stochastic depth of the encoder")

    add("--steps", type=count, default=900, help="optimizer steps in the whole run")
    add("--batch_size", type=count, default=64, help="images per step, over all ranks")
    add("--accum_steps", type=count, default=1, help="micro batches per step")
    add("--lr", type=float, default=2e-3, help="peak learning rate")
    add("--warmup_steps", type=int, default=90, help="linear warm-up, then cosine to zero")
    add("--weight_decay", type=float, default=0.05, help="AdamW's, for weight matrices")
    add("--clip_grad", type=float, default=0.0, help="largest gradient norm; 0 does not clip")
    add("--crop_scale", type=float, default=0.67, help="smallest area of a random crop; 1: none")
    add("--hflip", action="store_true", help="flip half of the images; not for digits")

    add("--log_every", type=count, default=10, help="steps per line of the log")
    add("--eval_every", type=count, default=150, help="steps between scores by k-NN and probes")
    add("--save_every", type=count, default=100, help="steps between checkpoints")
    add("--save_steps", type=steps, default=[], help="steps to keep a checkpoint of, as 0,450,900")

    add("--device", choices=["auto", "cpu", "cuda"], default="auto", help="where to compute")
    add("--amp", choices=["auto", "none", "bf16", "fp16"], default="auto", help="mixed precision")
    add("--threads", type=int, default=0, help="CPU threads of torch; 0: as torch chooses")
    add("--workers", type=int, default=0, help="processes that prepare batches, per rank")
    add("--cache_mb", type=int, default=512, help="MiB of decoded images to keep in memory")
    return parser


def check(args: argparse.Namespace, run: runtime.Run) -> None:
    """Refuse settings that cannot work, and fill in those that depend on others."""
    parts = run.world_size * args.accum_steps
    if args.batch_size % parts:
        stop(
            f"--batch_size {args.batch_size} is the total batch and must be a multiple of "
            f"{run.world_size} ranks x {args.accum_steps} accumulation steps = {parts}",
            2,
        )
    if args.img_size % args.patch_size:
        stop(f"--img_size {args.img_size} is no multiple of --patch_size {args.patch_size}", 2)
    ratio, cell = {"simmim": (0.6, 2), "mae": (0.75, 1)}[args.style]
    args.mask_ratio = ratio if args.mask_ratio is None else args.mask_ratio
    args.mask_cell = args.mask_cell or cell
    if args.img_size // args.patch_size % args.mask_cell:
        stop(f"--mask_cell {args.mask_cell} does not divide the grid of patches", 2)
    if args.amp == "auto":
        on_gpu = run.device.type == "cuda"
        args.amp = ("bf16" if torch.cuda.is_bf16_supported() else "fp16") if on_gpu else "none"


def make_model(args: argparse.Namespace) -> MaskedImageModel:
    """The model of the chosen style, its weights drawn from the global generator."""
    names = ["img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "drop_path"]
    decoder = ["decoder_dim", "decoder_depth", "decoder_num_heads"] if args.style == "mae" else []
    names += ["norm_pix_loss", *decoder]
    model = {"mae": MAE, "simmim": SimMIM}[args.style]
    return model(**{name: getattr(args, name) for name in names})


def main(args: argparse.Namespace) -> None:
    """Run pre-training from checked arguments to the last checkpoint."""
    if args.threads:
        torch.set_num_threads(args.threads)
    run = runtime.locate(args.device)
    check(args, run)

    root = Path(args.data_path)
    train_set = Images(root / "train", args.cache_mb)
    val_set = Images(root / "val", args.cache_mb) if (root / "val").is_dir() else None
    if val_set is None or val_set.classes != train_set.classes or len(val_set.classes) < 2:
        val_set = None
        if run.is_main:
            print(f"no {root}/val with the classes of train: k-NN and probes are left out")
    try:
        Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        stop(f"could not make --output_dir {args.output_dir} ({error.strerror})", MISSING)

    runtime.join(run)
    runtime.seed_everything(args.seed)
    model = make_model(args)
    model.to(run.device)
    try:
        train(model, train_set, val_set, args, run)
    except BrokenImageError as error:  # a worker wraps it in a traceback
        stop(str(error)[str(error).index("cannot decode") :].strip(), CORRUPT)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main(get_args_parser().parse_args())
