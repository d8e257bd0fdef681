"""Measure a batch instead of training on it: `worker --before` runs this file.

The recipe's script builds model, images and masks as it does for training. `Probe` stands where
`mto.attach` makes its `Run`: it puts in the checkpoint's weights, and ends the script at its first
`mto.add`. `MTO_PROBE` names a file that holds a `Task`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from mto_core import affinity
from mto_core.inputs import align
from mto_tools import recipe
from mto_tools.inspect.measure import measure
from mto_tools.recipe.run import Run
from mto_tools.recipe.settings import Settings

VARIABLE = "MTO_PROBE"


@dataclass(frozen=True)
class Task:
    """What a probe gets and where it leaves what it found, as JSON."""

    weights: str  # file of `torch.save`, tensors by name
    result: str  # `.npz` to write
    error: str  # text file to write where the weights do not fit
    images: int  # of the batch
    seed: int
    settings: dict[str, Any] = field(default_factory=dict)  # of the checkpoint, by option

    def save(self, path: Path) -> None:
        """Write it."""
        path.write_text(json.dumps(asdict(self), default=str))


class Probe(Run):
    """Takes the place of a training run."""

    task: Task  # of this process

    def __init__(
        self,
        model: nn.Module,
        blocks: tuple[Iterable[nn.Module], ...],
        num_prefix_tokens: int,
        output_dir: str | Path | None,
        settings: Settings,
    ) -> None:
        groups = [list(group) for group in blocks]
        super().__init__(model, tuple(groups), num_prefix_tokens, None, settings)
        for hook in self.hooks:
            hook.remove()
        for trace in self.traces:
            trace.require_grad = False
        self.model, self.prefix = model, num_prefix_tokens
        self.names = [_name(model, group) for group in groups]
        self.weights = torch.load(self.task.weights, map_location="cpu", weights_only=True)
        self.load()
        self.seen = ""  # checksum of the images
        # Functions and not methods: a copy of the model copies a method's object with it.
        self.hooks = [
            model.register_forward_pre_hook(lambda owner, args: self.before(owner, args)),
            model.register_forward_hook(lambda owner, args, output: self.after(owner)),
        ]
        seed_all(self.task.seed)  # not after as many draws as this model's initialisation takes

    def load(self) -> None:
        """Put the weights in; end the process where they do not fit."""
        own = self.model.state_dict()
        needed = {name for name, _ in self.model.named_parameters()}
        found = self.weights.keys()
        wrong = [f"{name} is missing" for name in sorted(needed - found)]
        wrong += [f"{name} is not in the model" for name in sorted(found - own.keys())]
        wrong += [
            f"{name} is {list(self.weights[name].shape)}, not {list(own[name].shape)}"
            for name in sorted(own.keys() & found)
            if self.weights[name].shape != own[name].shape
        ]
        if wrong:
            more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            self.fail(f"the weights do not fit the model: {'; '.join(wrong[:3])}{more}")
        self.weights = {name: w.to(own[name].dtype) for name, w in self.weights.items()}
        self.model.load_state_dict(self.weights, strict=False)

    def fail(self, text: str) -> NoReturn:
        """End the process with an error of the checkpoint."""
        Path(self.task.error).write_text(text)
        raise SystemExit(1)

    def before(self, owner: nn.Module, args: Any) -> None:
        """Arm the traces, as `recipe.run` does, but to look only."""
        if owner is not self.model:
            return
        own = self.model.state_dict()
        changed = [n for n, w in self.weights.items() if not torch.equal(own[n].cpu(), w)]
        if changed:
            self.fail(f"{changed[0]} was changed by the script before its first step")
        images = next(x for x in args if isinstance(x, Tensor) and x.ndim == 4)
        if len(images) != self.task.images:
            self.fail(f"the script takes {len(images)} images, not {self.task.images}")
        self.seen = checksum(images)
        seed_all(self.task.seed + 1)  # the same masks whatever the sizes of models drew before
        self.model.eval()
        torch.set_grad_enabled(False)
        torch.set_autocast_enabled(images.device.type, False)
        for trace in self.traces:
            trace.arm()

    def after(self, owner: nn.Module) -> None:
        """Behind the forward pass."""
        for trace in self.traces if owner is self.model else ():
            trace.disarm()

    def add(self, loss: Tensor, mask: Tensor, *_: Any) -> NoReturn:
        """Measure, write, end the process."""
        mask = mask.detach() != 0
        found: dict[str, Any] = {
            "groups": self.names,
            "images": self.seen,
            "mask": checksum(mask),
            "scale": self.config.scale,
        }
        for group, trace in enumerate(self.traces):
            self._group(found, f"{group}/", trace.tokens_by_depth.whole, mask)
        np.savez(self.task.result, **found)
        raise SystemExit(0)

    def _group(self, found: dict[str, Any], key: str, tokens: list[Tensor], mask: Tensor) -> None:
        """Measures of one list of blocks; affinity maps where all depths have as many tokens."""
        layers = align(tokens, self.prefix, mask, range(len(tokens))).values()
        patches = [(grid[:, self.prefix :], split.mask) for grid, split in layers]
        rows = [measure(x, m, self.config.scale) for x, m in patches]
        for name in rows[0]:
            found[key + name] = torch.stack([row[name] for row in rows]).numpy()
        found[key + "tokens"] = [x.shape[1] for x, _ in patches]
        found[key + "masked"] = [float(m.sum(1).double().mean()) for _, m in patches]
        if len({x.shape[1] for x, _ in patches}) == 1:
            maps = [affinity(x[:1].float(), m[:1], scale=self.config.scale)[0] for x, m in patches]
            found[key + "maps"] = torch.stack(maps).cpu().numpy()
            found[key + "first"] = int(patches[0][1][0].sum())  # masked tokens of the first image


def seed_all(seed: int) -> None:
    """Seed Python's, numpy's and torch's generators."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def checksum(tensor: Tensor) -> str:
    """16 digits for shape and values."""
    plain = tensor.detach().to("cpu", torch.float32).contiguous().numpy()
    return hashlib.sha1(repr(plain.shape).encode() + plain.tobytes()).hexdigest()[:16]


def _name(model: nn.Module, blocks: list[nn.Module]) -> str:
    """What the blocks' names in the model have in common, such as `decoder_blocks`."""
    known = {id(module): name.replace(".", "/") for name, module in model.named_modules()}
    folders = [os.path.dirname(known[id(block)]) for block in blocks]  # noqa: PTH120
    return os.path.commonpath(folders).replace("/", ".")


def install(task: Task) -> None:
    """Let this process's `mto.attach` make a `Probe`, and its parser start from the settings."""
    Probe.task = task
    recipe.Run = Probe  # type: ignore[misc]
    parser_class: Any = argparse.ArgumentParser
    parse = parser_class.parse_known_args

    def parse_known_args(parser: Any, *args: Any, **more: Any) -> Any:
        known = {action.dest for action in parser._actions}
        parser.set_defaults(**{k: v for k, v in task.settings.items() if k in known})
        return parse(parser, *args, **more)

    parser_class.parse_known_args = parse_known_args


if VARIABLE in os.environ:
    install(Task(**json.loads(Path(os.environ[VARIABLE]).read_text())))
