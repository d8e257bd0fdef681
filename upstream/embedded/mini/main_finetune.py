"""Fine-tune a pre-trained encoder with a linear head; OUT/log.txt has a line for each epoch."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler
from torchvision import transforms
from torchvision.datasets import ImageFolder

import checkpoint
import data
from engine import learning_rate, parameter_groups
from main_pretrain import count
from models import MAE, MaskedImageModel, SimMIM
from runtime import CORRUPT, MISSING, join, stop

ENCODER = ("patch_embed", "cls_token", "blocks", "norm")  # what features are made with


def get_args_parser() -> argparse.ArgumentParser:
    """All settings of a run."""
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--data_path", required=True, help="folder with train/<class>/* and val/<class>/*")
    add("--finetune", required=True, help="checkpoint of main_pretrain.py")
    add("--output_dir", default="finetuned", help="checkpoint and log, written anew")
    add("--seed", type=int, default=0, help="fixes the head, order, crops and drop path")
    add("--scratch", action="store_true", help="the checkpoint's model with new weights")
    add("--epochs", type=count, default=30)
    add("--batch_size", type=count, default=64, help="images per step and rank")
    add("--lr", type=float, default=1e-3, help="peak learning rate; warm-up over a tenth")
    add("--weight_decay", type=float, default=0.05, help="AdamW's, for weight matrices")
    add("--crop_scale", type=float, default=0.67, help="smallest area of a random crop")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", choices=["cpu", device], default=device, help="where to compute")
    add("--workers", type=int, default=0, help="processes that prepare batches, per rank")
    return parser


class Classifier(nn.Module):
    """An encoder and a linear layer on its mean patch token."""

    def __init__(self, encoder: MaskedImageModel, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        for name, parameter in encoder.named_parameters():
            parameter.requires_grad_(name.split(".")[0] in ENCODER)
        self.head = nn.Linear(encoder.cls_token.shape[-1], classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, classes] of images [B, 3, H, W]."""
        return self.head(self.encoder.features(images))


def load(path: str) -> tuple[dict[str, Tensor], argparse.Namespace]:
    """Weights and settings in a checkpoint of main_pretrain.py."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return state["model"], argparse.Namespace(**state["args"])
    except FileNotFoundError:
        stop(f"no checkpoint {path}", MISSING)
    except Exception as error:  # whatever zip, pickle or torch make of a foreign file
        stop(f"{path} is not a checkpoint of this recipe ({type(error).__name__})", CORRUPT)


def folders(root: Path, size: int, crop_scale: float) -> tuple[ImageFolder, ImageFolder]:
    """Random crops of train, whole images of val; both with the same classes."""
    normalise = transforms.Normalize(data.MEAN.flatten().tolist(), data.STD.flatten().tolist())
    bicubic = transforms.InterpolationMode.BICUBIC
    crop = transforms.RandomResizedCrop(size, scale=(crop_scale, 1), interpolation=bicubic)
    whole = transforms.Lambda(lambda image: data.centre_crop(image, size).copy())
    try:
        train, val = (
            ImageFolder(
                str(root / phase), transforms.Compose([view, transforms.ToTensor(), normalise])
            )
            for phase, view in (("train", crop), ("val", whole))
        )
    except FileNotFoundError as error:
        stop(f"{error}; --data_path must hold train/<class>/* and val/<class>/*", MISSING)
    if train.classes != val.classes or len(train.classes) < 2:
        stop(f"train and val of {root} have no two classes in common, so no labels", MISSING)
    return train, val


@torch.no_grad()
def accuracy(model: Classifier, loader: DataLoader, device: torch.device) -> float:
    """Share of images that are classified correctly, in per cent."""
    model.eval()
    right = sum(int((model(x.to(device)).argmax(1).cpu() == y).sum()) for x, y in loader)
    return 100 * right / len(loader.dataset)


def main(args: argparse.Namespace) -> None:
    """Train all epochs; rank 0 scores val after each and writes the files."""
    run = join(args.device)
    torch.manual_seed(args.seed)
    weights, settings = load(args.finetune)
    encoder = {"simmim": SimMIM, "mae": MAE}[settings.style](settings)
    if not args.scratch:
        encoder.load_state_dict(weights)
    train, val = folders(Path(args.data_path), settings.img_size, args.crop_scale)
    model = Classifier(encoder, len(train.classes)).to(run.device)
    torch.manual_seed(args.seed + run.rank)
    network = DistributedDataParallel(model) if run.world_size > 1 else model
    order = DistributedSampler(train, run.world_size, run.rank, seed=args.seed)
    loader = DataLoader(train, args.batch_size, sampler=order, num_workers=args.workers)
    scored = DataLoader(val, args.batch_size, num_workers=args.workers)
    optimizer = torch.optim.AdamW(parameter_groups(model, args.weight_decay), lr=args.lr)
    steps, step, out = args.epochs * len(loader), 0, Path(args.output_dir)
    if run.rank == 0:
        out.mkdir(parents=True, exist_ok=True)
        (out / "log.txt").write_text("")
    for epoch in range(args.epochs):
        order.set_epoch(epoch)
        model.train()
        total = 0.0
        for images, labels in loader:
            step += 1
            warmup = max(1, steps // 10)
            lr = learning_rate(step, peak=args.lr, warmup=warmup, steps=steps)
            for group in optimizer.param_groups:
                group["lr"] = lr
            logits = network(images.to(run.device))
            loss = nn.functional.cross_entropy(logits, labels.to(run.device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total += loss.item() / len(loader)
        if run.rank == 0:
            acc = accuracy(model, scored, run.device)
            line = json.dumps({"epoch": epoch, "train_loss": total, "test_acc1": acc})
            print(line, flush=True)
            with (out / "log.txt").open("a") as log:
                log.write(line + "\n")
    if run.rank == 0:
        state = {"model": model.state_dict(), "epoch": args.epochs - 1, "args": vars(args)}
        checkpoint.save(out / "checkpoint.pth", state)


if __name__ == "__main__":
    main(get_args_parser().parse_args())
