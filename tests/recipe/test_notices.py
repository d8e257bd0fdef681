"""What a run says in its own log: what is on, what went off, what outweighs the recipe."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from mto_tools import recipe
from mto_tools.recipe.settings import resolve_settings

from .conftest import Tiny, begin, flags, lines


@pytest.mark.parametrize(
    ("options", "said", "not_said"),
    [
        ((), ["sparsity 0.1", "not as in the paper", "layernorm", "no ranking"], ["depth"]),
        (("--mto_preset=simmim",), ["depth -1 (the last)", "layernorm"], []),
        (("--mto_preset=paper",), ["0 until they are set from the first 20"], ["not as in"]),
        (("--mto_preset=literal",), ["singularity 1"], ["not as in", "0 until"]),
        (("--mto_preset=observe",), ["changes nothing"], ["not as in"]),
        (("--mto_off_after=70",), ["off after step 70", "not as in"], []),
    ],
)
def test_what_is_beyond_the_paper_is_said(
    options: tuple[str, ...],
    said: list[str],
    not_said: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags("--mto", *options)
    recipe.attach(Tiny(), Tiny().blocks)
    out = capsys.readouterr().out
    assert all(part in out for part in said), out
    assert not any(part in out for part in not_said), out


def test_observing_measures_where_the_recipe_s_preset_acts() -> None:
    flags("--mto", "--mto_preset", "observe", preset="simmim")
    config = resolve_settings(None, None).config()
    assert set(config.weights.values()) == {0.0}
    assert (config.sparsity_depth, config.scale_of("sparsity")) == (-1, "layernorm")


def train(folder: Path, first: int, last: int, *options: str) -> list[float]:
    """The losses of some steps, MTO's included."""
    model, x, mask = begin("--mto", *options, folder=folder)
    steps = range(first, last + 1)
    return [recipe.add(model(x * (1 + s / 9), mask), mask, step=s).item() for s in steps]


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        (("--mto_singularity=1e4", "--mto_grad_every=5"), "--mto_singularity "),
        (("--mto_balance=4",), "--mto_balance "),
    ],
)
def test_a_term_that_outweighs_the_loss_is_named_once(
    options: tuple[str, ...], flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path, 1, 60, "--mto_preset=literal", "--mto_sparsity=0", *options)
    error = capsys.readouterr().err
    assert error.count("warning") == 1
    assert flag in error
    assert float(re.findall(r"pulls (\S+) times", error)[0]) > 1


@pytest.mark.parametrize(
    "options", [("--mto_sparsity=1e-6", "--mto_grad_every=1"), ("--mto_balance=0.01",)]
)
def test_a_term_below_the_loss_is_no_warning(
    options: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path, 1, 40, *options)
    assert capsys.readouterr().err == ""


def test_calibrated_weights_hold_resume_exactly_and_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = train(tmp_path / "whole", 1, 45, "--mto_preset=paper")
    out = capsys.readouterr().out
    found = lines(tmp_path / "whole")
    assert set(found[0]["weights"].values()) == {0.0}
    assert found[0]["total"] == 0
    last = found[-1]["weights"]
    assert all(weight > 0 for weight in last.values())
    assert f"sparsity {last['sparsity']:.3g}" in out
    assert [line["weights"] for line in found if line["step"] > 20] == [last] * 2
    states = [line["step"] for line in lines(tmp_path / "whole", name="mto-balance.jsonl")]
    assert states == list(range(2, 21, 2))
    for cut in (7, 20, 33):
        folder = tmp_path / str(cut)
        train(folder, 1, cut + 4, "--mto_preset=paper")
        assert train(folder, cut + 1, 45, "--mto_preset=paper") == whole[cut:]
        assert lines(folder, "rng", "step_ms") == lines(tmp_path / "whole", "rng", "step_ms")


def test_the_ratio_of_a_calibrated_weight_is_the_one_asked_for(tmp_path: Path) -> None:
    """The same images at each step, and a model that stands still."""
    options = ("--mto_sparsity=1", "--mto_calibrate=0.25", "--mto_grad_every=1")
    model, x, mask = begin("--mto", *options, folder=tmp_path)
    for step in range(1, 31):
        recipe.add(model(x, mask), mask, step=step)
    last = lines(tmp_path)[-1]
    assert last["weights"]["sparsity"] * last["grad_ratio"]["sparsity"] == pytest.approx(0.25)


def test_weights_go_off_and_a_run_too_short_for_its_schedule_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = train(tmp_path / "plain", 1, 20, "--mto_preset=observe")
    found = train(tmp_path / "on", 1, 20, "--mto_off_after=12")
    assert found[12:] == plain[12:]
    assert all(a != b for a, b in zip(found[:12], plain[:12], strict=True))
    captured = capsys.readouterr()
    assert captured.out.count("step 12 was the last with weights") == 1
    train(tmp_path / "short", 1, 20, "--mto_off_after=70", "--mto_warmup_steps=30")
    train(tmp_path / "brief", 1, 8, "--mto_preset=paper")
    flags()
    recipe.attach(torch.nn.Linear(1, 1))  # the run before ends
    error = capsys.readouterr().err
    assert "ended at step 20, within the warm-up of 30 steps, before" in error
    assert "step 70" in error
    assert "ended at step 8, before the calibration" in error


def test_a_resumed_run_of_before_a_setting_existed_hears_of_changed_values_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path, 1, 2)
    file = tmp_path / "mto-config.jsonl"
    (old,) = lines(tmp_path, name=file.name)
    for name in ("sparsity_depth", "singularity_scale", "off_after", "calibrate"):
        del old[name]
    file.write_text(json.dumps(old | {"sparsity": 0.01}) + "\n")
    train(tmp_path, 3, 4)
    error = capsys.readouterr().err
    assert "sparsity 0.01 -> 0.1" in error
    assert "None" not in error
