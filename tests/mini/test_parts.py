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


def arguments(mini: SimpleNamespace, **kwargs: object) -> argparse.Namespace:
    args = mini.main_pretrain.get_args_parser().parse_args(["--data_path", ""])
    small = {"img_size": 12, "patch_size": 3, "embed_dim": 16, "depth": 2, "num_heads": 2}
    data = {"batch_size": 8, "seed": 3, "mask_ratio": 0.6, "mask_cell": 1, "crop_scale": 0.5}
    vars(args).update(small | data | kwargs)
    return args


def make(mini: SimpleNamespace, style: str, **kwargs: object) -> Any:
    torch.manual_seed(0)
    return getattr(mini.models, style)(arguments(mini, **kwargs)).eval()


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(3, 3, 12, 12, requires_grad=True), torch.rand(3, 16).argsort(dim=1) < 10


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
        for n in mask[b].nonzero().flatten().tolist():
            row, column = 3 * (n // 4), 3 * (n % 4)
            patch = images[b, :, row : row + 3, column : column + 3].detach().double().numpy()
            target = patch.transpose(1, 2, 0).ravel()
            if norm_pix_loss:
                target = (target - target.mean()) / np.sqrt(target.var(ddof=1) + 1e-6)
            error = np.abs(prediction[b, n].detach().double().numpy() - target)
            errors.append((error**2 if style == "MAE" else error).mean())
        per_image.append(np.mean(errors))
    assert loss.item() == pytest.approx(np.mean(per_image), rel=1e-5)


@pytest.mark.parametrize("style", STYLES)
def test_a_prediction_sees_visible_pixels_in_image_order(mini: SimpleNamespace, style: str) -> None:
    model = make(mini, style)
    images, mask = inputs()

    def seen(prediction: torch.Tensor) -> torch.Tensor:
        (gradient,) = torch.autograd.grad(prediction.square().sum(), images, retain_graph=True)
        return model.patchify(gradient).abs().sum(dim=-1) > 0

    assert torch.equal(seen(model(images, mask)[1]), ~mask)
    # without attention, the prediction of a patch can depend on that patch alone
    model.blocks = model.decoder_blocks = nn.ModuleList()
    prediction = model(images, mask)[1]
    for n in range(16):
        only_n = torch.arange(16) == n
        assert torch.equal(seen(prediction[:, n]), only_n & ~mask)


@pytest.mark.parametrize("style", STYLES)
def test_uniformity_is_a_term_of_training_alone(mini: SimpleNamespace, style: str) -> None:
    model, plain = make(mini, style, uniformity=0.5), make(mini, style)
    images, mask = inputs()
    seen = plain.predict(images, mask)[1].detach().double().numpy()
    unit = seen / np.linalg.norm(seen, axis=1, keepdims=True)
    expected = np.mean([(a @ b) ** 2 for a in unit for b in unit])
    loss = plain(images, mask)[0]
    assert torch.equal(model(images, mask)[0], loss)
    assert torch.equal(plain.train()(images, mask)[0], loss)
    term = model.train()(images, mask)[0] - loss
    assert term.item() == pytest.approx(0.5 * expected, rel=1e-4)


@pytest.mark.parametrize("style", STYLES)
def test_a_mask_token_may_begin_apart_and_learn_faster(mini: SimpleNamespace, style: str) -> None:
    plain, apart = make(mini, style), make(mini, style, mask_token_std=2.0)
    ours, theirs = apart.state_dict(), plain.state_dict()
    assert torch.allclose(ours.pop("mask_token"), 100 * theirs.pop("mask_token"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    groups = mini.engine.parameter_groups
    assert [set(group) for group in groups(plain, 0.05)] == [{"params", "weight_decay"}] * 2
    *_, own = groups(plain, 0.05, 10.0)
    assert (own["params"], own["weight_decay"], own["share"]) == ([plain.mask_token], 0.0, 10.0)


def test_positions_are_sines_and_cosines_of_row_and_column(mini: SimpleNamespace) -> None:
    model = make(mini, "MAE", decoder_dim=24)
    for found, width in ((model.positions, 16), (model.decoder_positions, 24)):
        frequency = 10000 ** -np.linspace(0, 1, width // 4, endpoint=False)
        expected = np.empty((16, width))
        for n in range(16):
            row, column = (n // 4) * frequency, (n % 4) * frequency
            expected[n] = [*np.sin(row), *np.cos(row), *np.sin(column), *np.cos(column)]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


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
    run = mini.runtime.Run(torch.device("cpu"), rank, size)
    return mini.data.MaskedBatches(
        mini.data.Images(root / "train"), arguments(mini, **{"hflip": True, **kwargs}), run
    )


def test_ranks_share_the_batch_of_one(mini: SimpleNamespace, tiny_data: Path) -> None:
    data = batches(mini, tiny_data)
    whole = data[5]
    parts = [batches(mini, tiny_data, rank, 4)[5] for rank in range(4)]
    assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
    assert torch.equal(torch.cat([part.mask for part in parts]), whole.mask)
    assert {part.record for part in parts} == {whole.record}
    assert len({part.seed for part in parts}) == 4, "drop path differs between ranks"
    assert whole.record[64:] == whole.mask.numpy().tobytes()
    for other in (data[6], batches(mini, tiny_data, seed=4)[5]):
        assert not torch.equal(whole.mask, other.mask)
        assert whole.seed != other.seed


def test_every_epoch_has_every_sample_once(mini: SimpleNamespace, tiny_data: Path) -> None:
    data = batches(mini, tiny_data, batch_size=8)
    stream = np.concatenate([data.sample_ids(step) for step in range(1, 16)])  # 4 epochs of 30
    epochs = stream.reshape(4, 30).tolist()
    assert [sorted(epoch) for epoch in epochs] == [list(range(30))] * 4
    assert len({tuple(epoch) for epoch in epochs}) == 4
    longer = batches(mini, tiny_data, batch_size=70)  # than the data
    assert np.bincount(longer.sample_ids(1), minlength=30).min() == 2


def test_mask_cells_are_squares(mini: SimpleNamespace, tiny_data: Path) -> None:
    mask = batches(mini, tiny_data, patch_size=2, mask_cell=2, mask_ratio=0.5)[1].mask
    cells = mask.reshape(8, 3, 2, 3, 2).permute(0, 1, 3, 2, 4).flatten(3).float().mean(dim=-1)
    assert set(cells.unique().tolist()) == {0.0, 1.0}
    assert mask.sum(dim=1).tolist() == [4 * round(0.5 * 9)] * 8


def test_masks_are_uniform(mini: SimpleNamespace, tiny_data: Path) -> None:
    data, rng = batches(mini, tiny_data), np.random.default_rng(0)
    share = np.concatenate([data.draw_masks(rng) for _ in range(250)]).mean(axis=0)
    # 2000 draws at 10/16: five standard errors
    assert np.abs(share - 10 / 16).max() < 5 * math.sqrt(0.625 * 0.375 / 2000)


@settings(max_examples=100, deadline=None)
@given(
    size=st.tuples(st.integers(1, 500), st.integers(1, 500)),
    draw=st.lists(st.floats(0, 1, exclude_max=True), min_size=4, max_size=4),
    scale=st.floats(0.01, 0.99),
)
def test_crops_lie_in_the_image(
    mini: SimpleNamespace, size: tuple[int, int], draw: list[float], scale: float
) -> None:
    left, upper, right, lower = mini.data.random_box(size, np.array(draw), scale)
    assert 0 <= left < right <= size[0] + 1e-9
    assert 0 <= upper < lower <= size[1] + 1e-9
    width, height = right - left, lower - upper
    assert width * height <= size[0] * size[1] * (1 + 1e-9)
    if width < size[0] - 1e-9 and height < size[1] - 1e-9:
        assert width * height >= scale * size[0] * size[1] * (1 - 1e-9)
        assert 3 / 4 - 1e-9 <= width / height <= 4 / 3 + 1e-9


def test_flips_and_crops_only_when_asked(mini: SimpleNamespace, tiny_data: Path) -> None:
    plain = batches(mini, tiny_data, img_size=8, patch_size=2, crop_scale=1, hflip=False)
    flipped = batches(mini, tiny_data, img_size=8, patch_size=2, crop_scale=1)
    a, b = plain[1].images, flipped[1].images
    same = [torch.equal(x, y) for x, y in zip(a, b, strict=True)]
    mirrored = [torch.equal(x, y.flip(-1)) for x, y in zip(a, b, strict=True)]
    assert all(s != m for s, m in zip(same, mirrored, strict=True))
    assert any(same)
    assert any(mirrored)
    # a whole 10 x 8 image is its centred square
    file, _ = plain.images.samples[plain.sample_ids(1)[0]]
    square = np.asarray(Image.open(file).convert("RGB"))[:, 1:9] / 255
    expected = (torch.from_numpy(square).permute(2, 0, 1) - mini.data.MEAN) / mini.data.STD
    torch.testing.assert_close(a[0], expected.float(), atol=1e-5, rtol=0)


def test_few_labels_are_balanced_and_fixed(mini: SimpleNamespace) -> None:
    labels = np.random.default_rng(0).integers(0, 3, 100)
    ids = mini.evaluate.few_labels(labels, 2)
    assert np.bincount(labels[ids]).tolist() == [10, 10, 10]
    assert len(set(ids.tolist())) == 30
    assert ids.tolist() == mini.evaluate.few_labels(labels, 2).tolist()
    assert ids.tolist() != mini.evaluate.few_labels(labels, 3).tolist()


@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_evaluation_and_images_leave_the_generators_alone(
    mini: SimpleNamespace, tiny_data: Path, tmp_path: Path, norm_pix_loss: bool
) -> None:
    """Columns: masked input, reconstruction, target; they differ in masked patches alone."""
    model = make(mini, "MAE", norm_pix_loss=norm_pix_loss)
    train, val = (mini.data.Images(tiny_data / split) for split in ("train", "val"))
    mask = np.arange(16).reshape(1, -1).repeat(6, 0) < 12  # its first three rows of patches
    batches = SimpleNamespace(args=SimpleNamespace(img_size=12), draw_masks=lambda rng: mask)
    states = torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())
    scores = mini.evaluate.evaluate(model, train, val, img_size=12)
    assert scores == mini.evaluate.evaluate(model, train, val, img_size=12)
    mini.evaluate.save_images(tmp_path / "images.png", model, val, batches)
    now = torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())
    assert states == now
    pixels = np.asarray(Image.open(tmp_path / "images.png"))
    assert pixels.shape == (4 * 12, 3 * 12, 3)
    for rows, index in ((pixels[:12], 0), (pixels[36:], len(val) - 1)):
        masked, made, target = np.split(rows, 3, axis=1)
        assert np.array_equal(target, mini.data.centre_crop(val[index], 12))
        assert np.array_equal(masked[9:], target[9:])
        assert np.array_equal(made[9:], target[9:])
        assert len(np.unique(masked[:9].reshape(-1, 3), axis=0)) == 1
        assert not np.array_equal(made[:9], target[:9])


@pytest.mark.parametrize("style", STYLES)
def test_held_out_loss_has_the_same_masks_in_every_run(
    mini: SimpleNamespace, tiny_data: Path, style: str
) -> None:
    """Batches of any size, and any seed, give the mean over the images of val."""
    model = make(mini, style)
    val = mini.data.Images(tiny_data / "val")
    found = [
        mini.evaluate.held_out_loss(
            model, val, batches(mini, tiny_data, batch_size=size, seed=seed)
        )
        for size, seed in ((12, 3), (5, 3), (1, 3), (64, 9))
    ]
    masks = torch.from_numpy(
        batches(mini, tiny_data, batch_size=12).draw_masks(np.random.default_rng(0))
    )
    crops = mini.data.to_tensor([mini.data.centre_crop(val[i], 12) for i in range(12)])
    losses = [model(crops[i : i + 1], masks[i : i + 1])[0].item() for i in range(12)]
    assert found == pytest.approx([np.mean(losses)] * 4, rel=1e-5)
    assert len({tuple(row) for row in masks.tolist()}) == 12
