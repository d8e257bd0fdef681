"""mini's own script as the prober starts it, against the same model, images and masks in here."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mto_tools.errors import CorruptError, MissingError, MtoError
from mto_tools.inspect.images import stage
from mto_tools.inspect.run import Prober, Seen

from ..mini.conftest import TINY
from .conftest import IMAGES, SEED, build, settings
from .test_measure import by_hand

Save = Callable[..., Path]


def look(prober: Prober, *paths: Path) -> list[Seen]:
    return prober.look(paths, lambda text: None)


@pytest.mark.parametrize(("style", "blocks"), [("mae", "decoder_blocks"), ("simmim", "blocks")])
def test_measures_are_those_of_the_models_tokens(
    mini: SimpleNamespace, save: Save, prober: Prober, tmp_path: Path, style: str, blocks: str
) -> None:
    flags = ("--style", style, "--drop_path", "0.5")
    [seen] = look(prober, save("a.pth", *flags))
    assert seen.progress == 7
    assert seen.arrays["groups"].tolist() == [blocks]

    args = settings(mini, *flags, "--batch_size", str(IMAGES), "--seed", str(SEED))
    images = mini.data.Images(stage(prober.recipe.data, prober.files, tmp_path / "i") / "train")
    batch = mini.data.MaskedBatches(images, args, mini.runtime.Run(torch.device("cpu")))[1]
    model, tokens = build(mini, args).eval(), []
    traced = list(getattr(model, blocks))
    traced[0].register_forward_pre_hook(lambda _, inputs: tokens.append(inputs[0]))
    for block in traced:
        block.register_forward_hook(lambda *given: tokens.append(given[2]))
    with torch.no_grad():
        model(batch.images, batch.mask)
    assert len(tokens) == len(traced) + 1
    for depth, x in enumerate(tokens):
        for image in range(IMAGES):
            expected = by_hand(x[image, 1:].double(), batch.mask[image])
            for name, value in expected.items():
                found = seen.arrays[f"0/{name}"][depth, image]
                assert found == pytest.approx(value, rel=1e-4, abs=1e-9), name
        patches = x[0, 1:].double()
        order = torch.cat([patches[batch.mask[0]], patches[~batch.mask[0]]])
        np.testing.assert_allclose(
            seen.arrays["0/maps"][depth], (order @ order.T).softmax(1), rtol=1e-3, atol=1e-6
        )
    assert seen.arrays["0/first"] == batch.mask[0].sum()


def test_models_of_other_sizes_see_the_same(save: Save, prober: Prober) -> None:
    before = set(Path(tempfile.gettempdir()).glob("mto-inspect-mini-*"))
    one, other = look(prober, save("a.pth"), save("b.pth", "--embed_dim", "32", "--seed", "5"))
    assert one.arrays["images"] == other.arrays["images"]
    assert one.arrays["mask"] == other.arrays["mask"]
    assert not np.allclose(one.arrays["0/heterogeneity"], other.arrays["0/heterogeneity"])
    assert not set(Path(tempfile.gettempdir()).glob("mto-inspect-mini-*")) - before


@pytest.mark.parametrize(
    ("flags", "what"), [(("--mask_ratio", "0.5"), "masks"), (("--crop_scale", "0.3"), "images")]
)
def test_other_images_or_masks_are_refused(
    save: Save, prober: Prober, flags: tuple[str, ...], what: str
) -> None:
    with pytest.raises(MtoError, match=f"b.pth was shown other {what}"):
        look(prober, save("a.pth"), save("b.pth", *flags))


def test_a_model_is_named_after_dashes(save: Save, prober: Prober) -> None:
    file = save("bare.pth", without=True)
    with pytest.raises(CorruptError, match="bare.pth.*do not fit.*blocks") as error:
        look(prober, file)
    assert "no settings" in error.value.hint
    [bare] = look(replace(prober, extra=TINY[: TINY.index("--batch_size")]), file)
    [whole] = look(prober, save("whole.pth"))
    np.testing.assert_array_equal(bare.arrays["0/heterogeneity"], whole.arrays["0/heterogeneity"])


def test_what_the_script_says_is_handed_on(save: Save, prober: Prober) -> None:
    with pytest.raises(MtoError, match="--patch_size 3"):
        look(replace(prober, extra=["--patch_size", "3"]), save("a.pth"))


def test_bad_files(save: Save, prober: Prober, tmp_path: Path) -> None:
    """All are read before a process starts."""
    good, cut, encoder = save("good.pth"), tmp_path / "cut.pth", tmp_path / "encoder.pth"
    cut.write_bytes(good.read_bytes()[:1000])
    torch.save({"model": {"blocks.0.weight": torch.zeros(2)}}, encoder)
    (tmp_path / "folder").mkdir()
    nowhere = replace(prober, checkout=tmp_path)  # nothing could run there
    for path, error, part in (
        (cut, CorruptError, "cut.pth"),
        (encoder, MtoError, "no mask token"),
        (tmp_path / "folder", MtoError, "folder"),
        (tmp_path / "none.pth", MissingError, "none.pth"),
    ):
        with pytest.raises(error, match=part):
            look(nowhere, good, path)
