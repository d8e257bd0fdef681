import dataclasses
import re

import pytest

from mto_core import MTOConfig
from mto_core.config import PRESETS


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("mae", (0.1, 0, 0)),
        ("bootmae", (0.1, 0, 0)),
        ("simmim", (0.1, 0, 0)),
        ("conmim", (0.1, 0, 0)),
        ("observe", (0, 0, 0)),
        ("paper", (1, 1, 1)),
        ("literal", (1, 1, 1)),
    ],
)
def test_presets_have_the_documented_weights(name, weights):
    config = MTOConfig.preset(name)
    assert (config.sparsity, config.singularity, config.ranking) == weights
    assert config.direction == "decreasing"
    assert tuple(config.weights.values()) == weights


def test_overrides_by_preset_and_by_replace_agree():
    assert MTOConfig() == MTOConfig.preset("observe")
    by_preset = MTOConfig.preset("mae", ranking=0.5, warmup_steps=10)
    assert by_preset == dataclasses.replace(MTOConfig.preset("mae"), ranking=0.5, warmup_steps=10)
    assert (by_preset.ranking, by_preset.sparsity) == (0.5, 0.1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        by_preset.sparsity = 1.0


def test_presets_act_in_the_documented_places():
    places = {
        name: (config.sparsity_depth, config.scale_of("sparsity"), config.calibrate)
        for name in PRESETS
        for config in [MTOConfig.preset(name)]
    }
    own = {"mae": 0, "bootmae": 0, "simmim": -1, "conmim": -1}
    assert places == {
        **{name: (depth, "layernorm", None) for name, depth in own.items()},
        "bootmae": (0, "layernorm", 0.2),
        "observe": (0, "raw", None),
        "paper": (0, "raw", 0.1),
        "literal": (0, "raw", None),
    }


def test_balance_takes_the_place_of_a_preset_s_calibration():
    config = MTOConfig.preset("paper", balance=0.2)
    assert (config.balance, config.calibrate) == (0.2, None)
    with pytest.raises(ValueError, match="balance=0.2 and calibrate=0.1"):
        MTOConfig.preset("paper", balance=0.2, calibrate=0.1)


def test_a_weight_that_calibration_would_replace_is_refused():
    with pytest.raises(ValueError, match=r"singularity=0.5 .* calibrate=0 "):
        MTOConfig.preset("paper", sparsity=0, singularity=0.5)
    fixed = MTOConfig.preset("paper", singularity=0.5, calibrate=0)
    assert (fixed.singularity, fixed.calibrate) == (0.5, None)
    assert MTOConfig.preset("paper", singularity=0.5, balance=0.1).calibrate is None
    assert MTOConfig.preset("paper", singularity=0).calibrate == 0.1
    assert MTOConfig.preset("mae", sparsity=0.5).sparsity == 0.5


@pytest.mark.parametrize(
    "before", [{"warmup_steps": 30}, {"calibrate": 0.1, "calibrate_steps": 30}]
)
def test_a_schedule_that_ends_before_it_has_begun_is_refused(before):
    MTOConfig(off_after=31, **before)
    with pytest.raises(ValueError, match=r"off_after=30 .* 30 steps"):
        MTOConfig(off_after=30, **before)


def test_unknown_names():
    with pytest.raises(ValueError, match="unknown preset 'beit'") as error:
        MTOConfig.preset("beit")
    assert all(name in str(error.value) for name in PRESETS)
    with pytest.raises(TypeError, match="sparcity"):
        MTOConfig.preset("mae", sparcity=1.0)


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        *[(w, bad) for w in ("sparsity", "singularity", "ranking") for bad in (-1, float("nan"))],
        ("sparsity", float("inf")),
        ("ranking", "0.1"),
        ("eps", 0),
        ("warmup_steps", -1),
        ("warmup_steps", 1.5),
        ("off_after", -1),
        ("off_after", 2.5),
        ("sparsity_depth", 0.5),
        ("sparsity_depth", "last"),
        ("calibrate", 0.0),
        ("calibrate_steps", 9),
        ("sparsity_scale", "cosine"),
        ("ranking_scale", "cosine"),
        ("balance", 0.0),
        ("balance", float("nan")),
        ("balance_every", 0),
        ("balance_decay", 1.0),
        ("balance_limit", 0.0),
        ("scale", "cosine"),
        ("reduction", "max"),
        ("direction", "increasing"),
        ("backend", "triton"),
    ],
)
def test_a_bad_value_is_refused_with_field_and_value(field, bad):
    with pytest.raises(ValueError, match=field) as error:
        MTOConfig(**{field: bad})
    assert re.search(re.escape(repr(bad)), str(error.value))
