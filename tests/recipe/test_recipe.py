"""The glue in one process: flags, identity when off, what is added and written when on."""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mto_core import MTOConfig, heterogeneity, ranking_loss, singularity_loss, sparsity_loss
from mto_tools import recipe
from mto_tools.recipe_files import JsonLines
from mto_tools.recipe_settings import settle


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(x).tanh()


class Tiny(nn.Module):
    """A recipe's model in miniature: residual blocks over [B, 1 + N, D], a scalar loss."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mask_token = nn.Parameter(torch.randn(8))
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.more = nn.ModuleList(Block() for _ in range(2))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        tokens = torch.where(mask[:, :, None], self.mask_token, x)
        tokens = torch.cat([tokens.new_zeros(len(x), 1, 8), tokens], 1)
        other = tokens * 0.5
        for block, more in zip(self.blocks, self.more, strict=True):
            tokens = block(tokens)
            other = more(other)
        return (tokens**2).mean() + (other**2).mean()


@pytest.fixture(autouse=True)
def _off_again() -> Iterator[None]:
    yield
    recipe.add_arguments(argparse.ArgumentParser())
    recipe.attach(nn.Linear(1, 1))


def flags(*argv: str, preset: str = "mae") -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float, default=1.0)
    recipe.add_arguments(parser, preset=preset)
    return parser.parse_args(argv)


def batch(size: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(size, 6, 8, generator=generator)
    mask = torch.rand(size, 6, generator=generator).argsort(1) < 3
    return x, mask


def test_flags_stay_out_of_the_namespace() -> None:
    args = flags("--lr", "2", "--mto", "--mto_sparsity", "0.5", "--mto_affinity_steps", "1,9")
    assert vars(args) == {"lr": 2.0}
    assert settle(None, None).on
    assert settle(None, None).affinity_steps == (1, 9)
    assert settle(None, None).config() == MTOConfig.preset("mae", sparsity=0.5)


def test_off_is_the_identity(tmp_path: Path) -> None:
    flags("--mto_sparsity", "5")
    model = Tiny()
    recipe.attach(model, model.blocks, num_prefix_tokens=1, output_dir=tmp_path)
    x, mask = batch()
    loss = model(x, mask)
    assert recipe.add(loss, mask) is loss
    assert recipe.log() == {}
    assert list(tmp_path.iterdir()) == []
    assert not model._forward_pre_hooks
    assert not any(block._forward_hooks for block in model.blocks)


def test_what_is_added_and_logged_is_mto_core_by_hand(tmp_path: Path) -> None:
    flags("--mto", "--mto_sparsity", "0.5", "--mto_singularity", "2", "--mto_ranking", "0.25")
    model = Tiny()
    seen: list[Tensor] = []
    model.blocks[0].register_forward_pre_hook(lambda block, inputs: seen.append(inputs[0]))
    recipe.attach(model, [*model.blocks], num_prefix_tokens=1, output_dir=tmp_path)
    x, mask = batch()
    loss = model(x, mask)
    total = recipe.add(loss, mask.float().reshape(4, 2, 3), step=1)

    tokens = [seen[0]]
    for block in model.blocks:
        tokens.append(block(tokens[-1]))
    h = torch.stack([heterogeneity(t[:, 1:], mask) for t in tokens])
    terms = {
        "sparsity": sparsity_loss(tokens[0][:, 1:], mask).mean(),
        "singularity": singularity_loss(h[0], eps=MTOConfig().eps).mean(),
        "ranking": ranking_loss(h).mean(),
    }
    extra = 0.5 * terms["sparsity"] + 2 * terms["singularity"] + 0.25 * terms["ranking"]
    torch.testing.assert_close(total, loss + extra)
    record = json.loads((tmp_path / "mto.jsonl").read_text())
    for name, value in terms.items():
        assert record[name] == pytest.approx(value.item(), rel=1e-5)
        assert recipe.log()[f"mto_{name}"] == pytest.approx(value.item(), rel=1e-5)
    assert record["loss"] == recipe.log()["mto_loss"] == loss.item()
    assert record["total"] == pytest.approx(extra.item(), rel=1e-5)
    assert record["heterogeneity"] == pytest.approx(h.mean(1).tolist(), rel=1e-5)
    assert record["weights"] == {"sparsity": 0.5, "singularity": 2.0, "ranking": 0.25}
    grad = torch.autograd.grad(total, model.mask_token, retain_graph=True)[0]
    assert not torch.equal(grad, torch.autograd.grad(loss, model.mask_token)[0])


def test_observing_leaves_the_loss_alone_but_writes(tmp_path: Path) -> None:
    flags("--mto", "--mto_preset", "observe", "--mto_grad_every", "1", "--mto_affinity_steps", "1")
    model = Tiny()
    recipe.attach(model, model.blocks, num_prefix_tokens=1, output_dir=tmp_path)
    x, mask = batch()
    loss = model(x, mask)
    assert recipe.add(loss, mask, step=1) is loss
    record = json.loads((tmp_path / "mto.jsonl").read_text())
    assert record["total"] == 0
    assert set(record["grad_ratio"]) == {"sparsity", "singularity", "ranking"}
    saved = np.load(tmp_path / "mto-affinity-000001.npz")
    assert saved["affinity"].shape == (3, 6, 6)
    assert saved["num_masked"] == mask[0].sum()
    loss.backward()


def test_two_block_lists_are_averaged() -> None:
    x, mask = batch()
    found = {}
    for name in ("blocks", "more", "both"):
        flags("--mto")
        model = Tiny()
        lists = [model.blocks, model.more] if name == "both" else [getattr(model, name)]
        recipe.attach(model, *lists, num_prefix_tokens=1)
        loss = model(x, mask)
        found[name] = recipe.add(loss, mask, step=1) - loss
    torch.testing.assert_close(found["both"], (found["blocks"] + found["more"]) / 2)


def test_micro_batches_write_one_line_equal_to_that_of_the_whole_batch(tmp_path: Path) -> None:
    x, mask = batch(8)
    records = []
    for parts in (1, 4):
        flags("--mto")
        model = Tiny()
        folder = tmp_path / str(parts)
        recipe.attach(model, model.blocks, num_prefix_tokens=1, output_dir=folder)
        for xs, masks in zip(x.chunk(parts), mask.chunk(parts), strict=True):
            recipe.add(model(xs, masks), masks, step=1, micro_batches=parts)
        records.append(json.loads((folder / "mto.jsonl").read_text()))
    for name in ("loss", "total", "sparsity", "heterogeneity", "token_norm"):
        assert records[0][name] == pytest.approx(records[1][name], rel=1e-5)


def test_only_training_forwards_arm() -> None:
    flags("--mto")
    model = Tiny()
    recipe.attach(model, model.blocks, num_prefix_tokens=1)
    x, mask = batch()
    copied = copy.deepcopy(model)
    assert recipe._run is not None
    trace = recipe._run.traces[0]
    with torch.no_grad():
        model(x, mask)
    model.eval()
    model(x, mask)
    copied(x, mask)
    assert not trace.armed
    model.train()
    model(x, mask)
    assert trace.armed


def test_settings_of_a_yacs_node() -> None:
    model = Tiny()
    recipe.attach(model, model.blocks, num_prefix_tokens=1, preset="simmim", settings={"ON": True})
    assert recipe._run is not None
    assert recipe._run.config == MTOConfig.preset("simmim")
    with pytest.raises(ValueError, match="unknown MTO setting 'weight'; known: on, "):
        recipe.attach(model, model.blocks, settings={"WEIGHT": 1})


def test_an_unknown_preset_names_the_known_ones() -> None:
    flags("--mto", "--mto_preset", "swin")
    with pytest.raises(ValueError, match="unknown preset 'swin'.*mae.*simmim"):
        recipe.attach(Tiny(), Tiny().blocks)


def test_balance_resumes_exactly(tmp_path: Path) -> None:
    x, mask = batch()

    def steps(folder: Path, first: int, last: int) -> list[float]:
        flags("--mto", "--mto_balance", "0.1")
        model = Tiny()
        recipe.attach(model, model.blocks, num_prefix_tokens=1, output_dir=folder)
        return [float(recipe.add(model(x * s, mask), mask, step=s)) for s in range(first, last + 1)]

    whole = steps(tmp_path / "whole", 1, 45)
    steps(tmp_path / "cut", 1, 33)
    assert steps(tmp_path / "cut", 26, 45) == whole[25:]
    assert len(set(whole[25:])) > 1
    both = [(tmp_path / name / "mto.jsonl").read_text() for name in ("whole", "cut")]
    strip = [[{**json.loads(r), "rng": ""} for r in text.splitlines()] for text in both]
    assert strip[0] == strip[1]


def test_other_settings_on_resume_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x, mask = batch()
    for weight, step in (("0.1", 1), ("0.2", 2)):
        flags("--mto", "--mto_sparsity", weight)
        model = Tiny()
        recipe.attach(model, model.blocks, num_prefix_tokens=1, output_dir=tmp_path)
        recipe.add(model(x, mask), mask, step=step)
    assert "resumed at step 2 with other settings than before: sparsity 0.1 -> 0.2" in (
        capsys.readouterr().err
    )


def test_json_lines_are_cut_at_the_resumed_step_and_never_lost(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "mto.jsonl")
    assert lines.start(1) is None
    for step in (10, 20, 30):
        lines.write({"step": step})
    with lines.path.open("a") as file:
        file.write('{"step": 40, "los')
    assert lines.start(25) == {"step": 20}
    assert lines.path.read_text() == '{"step": 10}\n{"step": 20}\n'
    lines.start(1)
    assert not lines.path.exists()
    assert (tmp_path / "mto.1.jsonl").read_text() == '{"step": 10}\n{"step": 20}\n'


def test_hierarchical_affinity_is_refused(tmp_path: Path) -> None:
    from mto_tools.recipe_files import save_affinity

    with pytest.raises(ValueError, match="same number of tokens at every depth"):
        save_affinity(
            tmp_path / "x.npz",
            [torch.zeros(1, 4, 8), torch.zeros(1, 1, 8)],
            torch.ones(1, 4, dtype=torch.bool),
        )
