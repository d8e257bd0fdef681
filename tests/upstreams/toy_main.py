"""A recipe that no line of mto knows: its options, lists, files and folders are its own."""

import argparse
from pathlib import Path

import torch
from PIL import Image
from torch import nn
from torchvision.transforms.functional import to_tensor


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.mix, self.feed = nn.Linear(16, 16), nn.Linear(width, width)

    def forward(self, x):
        x = x + self.mix(x.mT).mT
        return x + self.feed(x).tanh()


class Toy(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.embed, self.head = nn.Linear(48, width), nn.Linear(width, 48)
        self.mask_token = nn.Parameter(torch.randn(width))
        self.places = nn.Parameter(torch.randn(16, width))
        self.layers = nn.ModuleList(Block(width) for _ in range(3))

    def forward(self, images):
        patches = (
            images.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(-1, 16, 48)
        )
        hidden = torch.rand(patches.shape[:2]).argsort(1) < 10
        x = torch.where(hidden[..., None], self.mask_token, self.embed(patches)) + self.places
        for layer in self.layers:
            x = layer(x)
        return (self.head(x) - patches)[hidden].square().mean(), hidden


def images(folder):
    names = [
        line.split(",")[0] for line in (folder / "lists" / "train.csv").read_text().splitlines()
    ]
    files = [Image.open(folder / "train" / name).resize((16, 16)) for name in names]
    return torch.stack([to_tensor(file) for file in files])


parser = argparse.ArgumentParser()
for name, kind in (("net", int), ("bs", int), ("rounds", int), ("rate", float), ("dice", int)):
    parser.add_argument(f"-{name}", type=kind)
parser.add_argument("-into", type=Path)
parser.add_argument("-images", type=Path)
parser.add_argument("-continue", dest="old", type=Path)
args = parser.parse_args()

torch.manual_seed(args.dice)
model = Toy(args.net).cuda()
optimizer = torch.optim.SGD(model.parameters(), lr=args.rate)
first = 0
if args.old:
    state = torch.load(args.old)
    model.load_state_dict(state["model"])
    first = state["round"] + 1
data = images(args.images)
(args.into / "states").mkdir(parents=True, exist_ok=True)
for number in range(first, args.rounds):
    for place, batch in enumerate(data.split(args.bs)):
        step = number * (len(data) // args.bs) + place + 1
        loss, hidden = model(batch.cuda())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(step, loss.item())
    torch.save(
        {"model": model.state_dict(), "round": number}, args.into / "states" / f"{number}.tar"
    )
