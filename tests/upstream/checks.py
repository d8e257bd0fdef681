"""What is promised for every upstream; its test module imports these."""

from __future__ import annotations

import math

import pytest
import torch

from mto_tools.launch.smoke import differences

from .conftest import OPTIONS, Runs

EPS = 1e-2


@pytest.mark.parametrize("processes", [1, 2])
def test_off_is_the_unpatched_recipe_bit_for_bit(runs: Runs, processes: int) -> None:
    plain, off = runs.baseline(processes), runs.off(processes)
    assert len(plain.loss) == 8
    assert off.loss == plain.loss
    assert off.grads == plain.grads
    assert off.rng == plain.rng
    for epoch in (0, 1):
        files = [runs.runner.checkpoint(run.out, epoch) for run in (plain, off)]
        assert differences(*files) == []


def test_on_starts_from_the_same_loss_and_moves_the_mask_token(runs: Runs) -> None:
    own = float.fromhex(runs.baseline().loss[0])
    assert runs.log(runs.on())[0]["loss"] == own
    assert float.fromhex(runs.on().loss[0]) != own
    assert runs.on().mask_token[0] != runs.baseline().mask_token[0]


def test_on_draws_the_same_random_numbers(runs: Runs) -> None:
    # Within an epoch: a lone process of MAE never tells its sampler the epoch, by which we reseed.
    assert len(runs.on().rng) == 8
    assert len(set(runs.on().rng[:4])) == 4
    assert runs.on().rng == runs.baseline().rng


def test_every_step_is_logged_with_finite_terms(runs: Runs) -> None:
    lines = runs.log(runs.on())
    assert [line["step"] for line in lines] == list(range(1, 9))
    for line in lines:
        values = [line[key] for key in ("loss", "total", "sparsity", "singularity", "ranking")]
        assert all(map(math.isfinite, [*values, *line["heterogeneity"]]))
        warm = min(1, line["step"] / OPTIONS["warmup_steps"])
        assert line["weights"]["singularity"] == pytest.approx(OPTIONS["singularity"] * warm)


def test_on_saves_the_same_kind_of_checkpoint(runs: Runs) -> None:
    plain, on = (runs.saved(run) for run in (runs.baseline(), runs.on()))
    assert list(plain) == list(on)
    assert list(plain["model"]) == list(on["model"])
    groups = [[len(g["params"]) for g in c["optimizer"]["param_groups"]] for c in (plain, on)]
    assert groups[0] == groups[1]
    for key in {"args", "config"} & set(plain):
        assert vars(plain[key]).keys() == vars(on[key]).keys()
        if isinstance(plain[key], dict):
            assert plain[key].keys() == on[key].keys()


def test_resume_is_exact(runs: Runs) -> None:
    assert runs.resumed().loss == runs.on().loss[4:]
    files = [runs.runner.checkpoint(run.out, 1) for run in (runs.on(), runs.resumed())]
    assert [name for name in differences(*files) if not _is_setting(name)] == []
    old, new = runs.log(runs.on())[4:], runs.log(runs.resumed())
    assert old == new


def _is_setting(name: str) -> bool:
    """Where a run resumed from, and at which epoch, is kept with its settings."""
    return name.startswith(("checkpoint.args", "checkpoint.config"))


@pytest.mark.parametrize("step", [1, 2])
def test_logged_terms_are_those_of_the_tokens(runs: Runs, step: int) -> None:
    """The formulas of docs/method.md in float64, on tokens caught by hooks of this test."""
    seen = runs.captured(step)
    line = runs.log(runs.on())[step - 1]
    assert line["loss"] == seen["loss"]
    found = [_terms(tokens, seen["mask"]) for tokens in seen["tokens"].values()]
    mean = {key: sum(f[key] for f in found) / len(found) for key in found[0]}
    for key in ("sparsity", "singularity", "ranking"):
        assert line[key] == pytest.approx(float(mean[key]), rel=1e-4)
    torch.testing.assert_close(
        torch.tensor(line["heterogeneity"], dtype=torch.float64),
        mean["heterogeneity"],
        rtol=1e-4,
        atol=1e-6,
    )
    total = sum(line["weights"][key] * float(mean[key]) for key in OPTIONS if key in mean)
    assert line["total"] == pytest.approx(total, rel=1e-4)


def _terms(tokens: list[torch.Tensor], mask: torch.Tensor) -> dict[str, torch.Tensor]:
    grid = mask.flatten(1).bool()
    rows = []  # H [B] by depth
    for x in tokens:
        rows.append(torch.stack([_heterogeneity(a, m) for a, m in _images(x, grid)]))
    heterogeneity = torch.stack(rows)
    first = [_visible_entropy(a, m) for a, m in _images(tokens[0], grid)]
    steps = heterogeneity[1:] - heterogeneity[:-1]
    return {
        "heterogeneity": heterogeneity.mean(1),
        "sparsity": torch.stack(first).mean(),
        "singularity": (1 / (heterogeneity[0] + EPS)).mean(),
        "ranking": torch.nn.functional.softplus(steps).sum(0).mean(),
    }


def _images(x: torch.Tensor, grid: torch.Tensor):
    """Patch tokens in float64 and mask, image by image, the mask at the depth's resolution."""
    prefix = x.shape[1] % 2  # one class token before an even number of patches
    x = x[:, prefix:].double()
    while grid.shape[1] > x.shape[1]:
        side = math.isqrt(grid.shape[1])
        grid = grid.view(-1, side // 2, 2, side // 2, 2).any(4).any(2).flatten(1)
    return zip(x, grid, strict=True)


def _heterogeneity(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    log_a = torch.log_softmax(x[mask] @ x[~mask].T, 1)
    return -(log_a.exp() * log_a).sum(1).mean()


def _visible_entropy(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    log_p = torch.log_softmax(x[~mask] @ x.T, 1)
    return -(log_p.exp() * log_p).sum(1).mean()
