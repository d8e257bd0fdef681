"""The recipe's parts against independent references."""

from __future__ import annotations

import argparse
import itertools
import math
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

STYLES = ("SimMIM", "MAE")


def make(mini: SimpleNamespace, style: str, **kwargs: object) -> Any:
    torch.manual_seed(0)
    model = getattr(mini.models, style)(
        img_size=12, patch_size=3, embed_dim=16, depth=2, num_heads=2, **kwargs
    )
    return model.eval()


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(3, 3, 12, 12), torch.rand(3, 16).argsort(dim=1) < 10


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_loss_is_that_of_the_masked_patches(
    mini: SimpleNamespace, style: str, norm_pix_loss: bool
) -> None:
    model = make(mini, style, norm_pix_loss=norm_pix_loss)
    images, mask = inputs()
    loss, prediction, returned = model(images, mask)
    assert torch.equal(returned, mask)
    assert prediction.shape == (3, 16, 27)
    per_image = []
    for b in range(3):
        errors = []
        for n in range(16):
            if not mask[b, n]:
                continue
            row, column = 3 * (n // 4), 3 * (n % 4)
            patch = images[b, :, row : row + 3, column : column + 3].double().numpy()
            target = patch.transpose(1, 2, 0).ravel()
            if norm_pix_loss:
                target = (target - target.mean()) / np.sqrt(target.var(ddof=1) + 1e-6)
            error = np.abs(prediction[b, n].detach().double().numpy() - target)
            errors.append((error**2 if style == "MAE" else error).mean())
        per_image.append(np.mean(errors))
    assert loss.item() == pytest.approx(np.mean(per_image), rel=1e-5)


@pytest.mark.parametrize("style", STYLES)
def test_masked_pixels_are_not_seen_and_visible_ones_are(mini: SimpleNamespace, style: str) -> None:
    model = make(mini, style)
    images, mask = inputs()
    images.requires_grad_()
    prediction = model(images, mask)[1]
    (gradient,) = torch.autograd.grad(prediction.square().sum(), images)
    seen = model.patchify(gradient).abs().sum(dim=-1) > 0
    assert torch.equal(seen, ~mask)


@pytest.mark.parametrize("style", STYLES)
def test_tokens_come_back_in_image_order(mini: SimpleNamespace, style: str) -> None:
    """Without attention, the prediction of a patch can depend on that patch alone."""
    model = make(mini, style)
    model.blocks = nn.ModuleList()
    model.decoder_blocks = nn.ModuleList()
    images, mask = inputs()
    images.requires_grad_()
    prediction = model(images, mask)[1]
    for n in range(16):
        (gradient,) = torch.autograd.grad(
            prediction[:, n].square().sum(), images, retain_graph=True, allow_unused=True
        )
        seen = model.patchify(gradient).abs().sum(dim=-1) > 0
        only_n = torch.zeros(3, 16, dtype=torch.bool)
        only_n[:, n] = True
        assert torch.equal(seen, only_n & ~mask)


def test_positions_are_sines_and_cosines_of_row_and_column(mini: SimpleNamespace) -> None:
    positions = mini.models.sincos_positions(8, 3)[0]
    for n in range(9):
        expected = []
        for index in (n // 3, n % 3):
            angles = [index * 10000 ** (-k / 2) for k in range(2)]
            expected += [*map(math.sin, angles), *map(math.cos, angles)]
        assert positions[n].tolist() == pytest.approx(expected, abs=1e-6)


def test_warm_up_and_cosine(mini: SimpleNamespace) -> None:
    rate = [mini.engine.learning_rate(step, peak=2.0, warmup=4, steps=11) for step in range(1, 13)]
    assert rate[:4] == [0.5, 1.0, 1.5, 2.0]
    assert rate[7] == pytest.approx(1.0)  # half way from step 4 to step 12
    assert all(a > b for a, b in itertools.pairwise(rate[3:]))
    assert rate[11] == pytest.approx(0.0)
    assert rate[10] > 0


def batches(
    mini: SimpleNamespace, root: Path, rank: int = 0, size: int = 1, **kwargs: object
) -> Any:
    defaults = {
        **{"seed": 3, "batch_size": 8, "img_size": 8, "patch_size": 2, "mask_ratio": 0.6},
        **{"mask_cell": 1, "crop_scale": 0.5, "hflip": True},
    }
    run, args = mini.runtime.Run(torch.device("cpu"), rank, size), argparse.Namespace()
    vars(args).update(defaults | kwargs)
    return mini.data.MaskedBatches(mini.data.Images(root / "train"), args, run)


def test_ranks_share_the_batch_of_one(mini: SimpleNamespace, tiny_data: Path) -> None:
    whole = batches(mini, tiny_data)[5]
    parts = [batches(mini, tiny_data, rank, 4)[5] for rank in range(4)]
    assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
    assert torch.equal(torch.cat([part.mask for part in parts]), whole.mask)
    assert {part.record for part in parts} == {whole.record}
    assert whole.record[64:] == whole.mask.numpy().tobytes()


def test_steps_and_seeds_differ(mini: SimpleNamespace, tiny_data: Path) -> None:
    data = batches(mini, tiny_data)
    assert data[5].record == data[5].record
    assert not torch.equal(data[5].mask, data[6].mask)
    assert not torch.equal(data[5].mask, batches(mini, tiny_data, seed=4)[5].mask)


def test_every_epoch_has_every_sample_once(mini: SimpleNamespace, tiny_data: Path) -> None:
    data = batches(mini, tiny_data, batch_size=8)
    stream = np.concatenate([data.sample_ids(step) for step in range(1, 16)])  # 4 epochs of 30
    epochs = stream.reshape(4, 30)
    assert [sorted(epoch) for epoch in epochs.tolist()] == [list(range(30))] * 4
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 4


def test_a_batch_may_be_larger_than_the_data(mini: SimpleNamespace, tiny_data: Path) -> None:
    data = batches(mini, tiny_data, batch_size=70)
    assert np.bincount(data.sample_ids(1), minlength=30).min() == 2


def test_mask_cells_are_squares(mini: SimpleNamespace, tiny_data: Path) -> None:
    mask = batches(mini, tiny_data, img_size=12, mask_cell=2, mask_ratio=0.5)[1].mask
    cells = mask.reshape(8, 3, 2, 3, 2).permute(0, 1, 3, 2, 4).flatten(3).float().mean(dim=-1)
    assert set(cells.unique().tolist()) == {0.0, 1.0}
    assert mask.sum(dim=1).tolist() == [4 * round(0.5 * 9)] * 8


def test_masks_are_uniform(mini: SimpleNamespace, tiny_data: Path) -> None:
    data = batches(mini, tiny_data)
    share = torch.cat([data[step].mask for step in range(1, 251)]).float().mean(dim=0)
    # 2000 draws at 10/16: five standard errors
    assert share.sub(10 / 16).abs().max() < 5 * math.sqrt(0.625 * 0.375 / 2000)


@settings(max_examples=100, deadline=None)
@given(
    size=st.tuples(st.integers(1, 500), st.integers(1, 500)),
    draw=st.lists(st.floats(0, 1, exclude_max=True), min_size=4, max_size=4),
    scale=st.floats(0.01, 0.99),
)
def test_crops_lie_in_the_image(
    mini: SimpleNamespace, size: tuple[int, int], draw: list[float], scale: float
) -> None:
    image = SimpleNamespace(size=size, width=size[0], height=size[1])
    left, upper, right, lower = mini.data.random_box(image, np.array(draw), scale)
    assert 0 <= left < right <= size[0] + 1e-9
    assert 0 <= upper < lower <= size[1] + 1e-9
    width, height = right - left, lower - upper
    assert width * height <= size[0] * size[1] * (1 + 1e-9)
    if width < size[0] - 1e-9 and height < size[1] - 1e-9:
        assert width * height >= scale * size[0] * size[1] * (1 - 1e-9)
        assert 3 / 4 - 1e-9 <= width / height <= 4 / 3 + 1e-9


def test_flips_and_crops_only_when_asked(mini: SimpleNamespace, tiny_data: Path) -> None:
    plain = batches(mini, tiny_data, crop_scale=1, hflip=False)
    flipped = batches(mini, tiny_data, crop_scale=1, hflip=True)
    a, b = plain[1].images, flipped[1].images
    same = [torch.equal(x, y) for x, y in zip(a, b, strict=True)]
    mirrored = [torch.equal(x, y.flip(-1)) for x, y in zip(a, b, strict=True)]
    assert all(s != m for s, m in zip(same, mirrored, strict=True))
    assert any(same)
    assert any(mirrored)
    # a whole 10 x 8 image is its centred square
    file = plain.images.files[plain.sample_ids(1)[0]]
    with Image.open(file) as image:
        square = np.asarray(image.convert("RGB"))[:, 1:9] / 255
    expected = (square - mini.data.MEAN) / mini.data.STD
    np.testing.assert_allclose(a[0].permute(1, 2, 0), expected, atol=1e-5)


def test_few_labels_are_balanced_and_fixed(mini: SimpleNamespace) -> None:
    labels = np.random.default_rng(0).integers(0, 3, 100)
    ids = mini.evaluate.few_labels(labels, 2)
    assert np.bincount(labels[ids]).tolist() == [10, 10, 10]
    assert len(set(ids.tolist())) == 30
    assert ids.tolist() == mini.evaluate.few_labels(labels, 2).tolist()
    assert ids.tolist() != mini.evaluate.few_labels(labels, 3).tolist()


def test_evaluation_leaves_the_generators_and_the_mode_alone(
    mini: SimpleNamespace, tiny_data: Path
) -> None:
    model = make(mini, "MAE", drop_path=0.5).train()
    train, val = (mini.data.Images(tiny_data / split) for split in ("train", "val"))
    states = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    scores = mini.evaluate.evaluate(model, train, val, img_size=12)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (random.getstate(), str(np.random.get_state()))
    assert model.training
    assert scores == mini.evaluate.evaluate(model, train, val, img_size=12)  # no drop path


@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_saved_images(
    mini: SimpleNamespace, tiny_data: Path, tmp_path: Path, norm_pix_loss: bool
) -> None:
    """Columns: masked input, reconstruction, target; they differ in masked patches alone."""
    model = make(mini, "MAE", norm_pix_loss=norm_pix_loss, drop_path=0.5).train()
    val = mini.data.Images(tiny_data / "val")
    mask = np.arange(16).reshape(1, -1).repeat(6, 0) < 12  # its first three rows of patches
    batches = SimpleNamespace(args=SimpleNamespace(img_size=12), draw_masks=lambda rng: mask)
    state = torch.get_rng_state()
    mini.evaluate.save_images(tmp_path / "images.png", model, val, batches)
    assert torch.equal(state, torch.get_rng_state())
    assert model.training
    pixels = np.asarray(Image.open(tmp_path / "images.png"))
    assert pixels.shape == (4 * 12, 3 * 12, 3)
    first, last = pixels[:12], pixels[36:]
    for rows, index in ((first, 0), (last, len(val) - 1)):
        masked, made, target = np.split(rows, 3, axis=1)
        box = mini.data.centre_box(val[index])
        assert np.array_equal(target, mini.data.to_array(val[index], box, 12))
        assert np.array_equal(masked[9:], target[9:])
        assert np.array_equal(made[9:], target[9:])
        assert len(np.unique(masked[:9].reshape(-1, 3), axis=0)) == 1
        assert not np.array_equal(made[:9], target[:9])
