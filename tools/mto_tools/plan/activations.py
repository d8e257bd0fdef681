"""What each model holds, and what it saves for the backward pass, per image.

`saved` was counted on the real upstream models on a CPU under bfloat16 autocast: the distinct
storages that autograd packs, without parameters, as the difference between two batch sizes, by
`python tests/plan/measure.py NAME CHECKOUT MODEL`. On CUDA the softmax of an attention that is
written out gives float32, not bfloat16; `_Shape` says how much that adds. Drop path is off in the
count but where the configuration has it on (SimMIM's ViT).
"""

from __future__ import annotations

from dataclasses import dataclass

from mto_tools.errors import MissingError

KEPT = 1 / 23  # mto_core.module.SAVED_LOGITS_SHARE, which would load torch


@dataclass(frozen=True)
class Footprint:
    """One model of a recipe; bytes per image unless it says otherwise.

    Attributes:
        recipe: Folder under `patches/`.
        model: The model's name.
        parameters: Of the trained model, all.
        trainable: Those with gradients.
        other_bytes: Models without gradient beside it: ConMIM's teacher with its DDP buckets,
            BootMAE's moving average.
        activations: Saved for the backward pass under 16-bit autocast on CUDA.
        activations_float32: The same without autocast; 0 where the recipe cannot do without.
        transient: Alive besides at the peak: gradients and copies within one block.
        mto: What MTO saves, and its gradient at one depth.
        macs: Multiply-adds of one forward pass.
    """

    recipe: str
    model: str
    parameters: int
    trainable: int
    other_bytes: int
    activations: int
    activations_float32: int
    transient: int
    mto: int
    macs: int


@dataclass(frozen=True)
class _Shape:
    """The largest blocks, and those that hold mask tokens.

    Attributes:
        tokens: Tokens of an image in a block, cls too.
        width: Channels.
        rows: Rows of softmax per image, in all blocks that write their attention out, times their
            length: heads x tokens x keys, summed.
        block_rows: The same for one block.
        depths: Depths at which MTO looks.
        masked: Masked tokens.
    """

    tokens: int
    width: int
    rows: int
    block_rows: int
    depths: int
    masked: int

    @property
    def softmax(self) -> int:
        """Bytes that float32 rows add to 16-bit ones which are saved in any case."""
        return 4 * self.rows

    @property
    def transient(self) -> int:
        """Gradients of residual (4 B) and MLP (4 x 2 B, input and output), and rows."""
        return self.tokens * self.width * (2 * 4 + 2 * 4 * 2) + 3 * 4 * self.block_rows

    @property
    def mto(self) -> int:
        """Entropy, maximum and sum per masked row and depth, indices, one gradient, kept logits."""
        tokens = 4 * self.tokens * self.width
        kept = round(KEPT * self.depths * tokens)  # at most
        return self.depths * self.masked * 12 + 16 * self.tokens + tokens + kept


def _vit(width: int, blocks: int, heads: int, masked: int) -> _Shape:
    rows = heads * 197 * 197
    return _Shape(197, width, blocks * rows, rows, blocks + 1, masked)


def _swin(width: int, heads: int, window: int) -> _Shape:
    """Depths 2, 2, 18, 2 at 192 pixels: tokens fall to a quarter, heads double."""
    stages = [(48 * 48 // 4**s, heads * 2**s, n) for s, n in enumerate((2, 2, 18, 2))]
    keys = [min(window, 48 // 2**s) ** 2 for s in range(4)]
    rows = [(tokens * h * k, n) for (tokens, h, n), k in zip(stages, keys, strict=True)]
    masked = sum(round(0.6 * tokens) * n for tokens, _, n in stages) // 25
    return _Shape(48 * 48, width, sum(r * n for r, n in rows), rows[0][0], 25, masked)


def _bootmae(width: int, blocks: int, heads: int) -> _Shape:
    """The encoder sees 49 patches; two decoders of two blocks see all."""
    decoders = 2 * (8 + heads) * 197 * 197
    return _Shape(197, width, blocks * heads * 50 * 50 + decoders, heads * 197 * 197, 6, 147)


# recipe, model: parameters, trainable, saved under bfloat16 (and float32) on a CPU, macs, shape
_COUNTED: dict[tuple[str, str], tuple[int, int, int, int, int, _Shape]] = {
    ("mae", "mae_vit_base_patch16"): (
        *(111_907_840, 111_655_680, 49_651_016, 0, 9_781_133_312),
        _Shape(197, 512, 0, 0, 9, 147),
    ),
    ("mae", "mae_vit_large_patch16"): (
        *(329_541_888, 329_239_296, 77_734_472, 0, 20_755_783_680),
        _Shape(197, 512, 0, 0, 9, 147),
    ),
    ("mae", "mae_vit_huge_patch14"): (
        *(657_074_508, 656_613_964, 139_807_888, 0, 48_561_911_808),
        _Shape(257, 512, 0, 0, 9, 192),
    ),
    ("simmim", "vit_base"): (
        *(86_256_720, 86_256_720, 108_204_224, 0, 17_678_665_728),
        _vit(768, 12, 12, 120),
    ),
    ("simmim", "swin_base"): (
        *(89_874_104, 89_874_104, 95_305_536, 0, 11_390_091_264),
        _swin(128, 4, 6),
    ),
    ("simmim", "swin_large"): (
        *(199_881_204, 199_881_204, 209_648_448, 0, 26_125_369_344),
        _swin(192, 6, 12),
    ),
    ("bootmae", "bootmae_base"): (
        *(115_625_411, 115_373_251, 53_553_648, 0, 9_782_974_880),
        _bootmae(768, 12, 12),
    ),
    ("bootmae", "bootmae_large"): (
        *(349_451_779, 349_149_187, 90_368_400, 0, 23_581_214_720),
        _bootmae(1024, 24, 16),
    ),
    ("conmim", "conmim_base_patch16_224"): (
        *(112_953_680, 112_953_680, 114_277_636, 0, 21_704_284_160),
        _vit(768, 12, 12, 147),
    ),
    ("conmim", "conmim_small_patch16_224"): (
        *(44_168_360, 44_168_360, 60_747_220, 0, 8_429_868_032),
        _vit(384, 12, 6, 147),
    ),
    ("conmim", "conmim_large_patch16_224"): (
        *(333_570_496, 333_570_496, 291_539_812, 0, 65_901_481_984),
        _vit(1024, 24, 16, 147),
    ),
    ("mini", "mae"): (211_632, 211_632, 449_560, 727_704, 8_180_480, _Shape(65, 64, 0, 0, 3, 48)),
    ("mini", "simmim"): (
        *(140_400, 140_400, 530_384, 877_520, 11_076_096),
        _Shape(65, 64, 0, 0, 5, 36),
    ),
}
# Bytes per parameter of the copy beside the model. ConMIM's teacher stays in DDP, whose buckets are
# as large as the model in it.
_COPY = {"bootmae": 4, "conmim": 8}


def models(recipe: str) -> list[str]:
    """Names of the models of a recipe that have been counted."""
    return [model for name, model in _COUNTED if name == recipe]


def footprint(recipe: str, model: str) -> Footprint:
    """Look a model up.

    Raises:
        MissingError: It has not been counted.
    """
    if (recipe, model) not in _COUNTED:
        raise MissingError(
            f"{recipe}: memory of {model!r} has not been counted",
            hint=f"--model {' | '.join(models(recipe))}",
        )
    parameters, trainable, saved, float32, macs, shape = _COUNTED[recipe, model]
    return Footprint(
        recipe,
        model,
        parameters,
        trainable,
        _COPY.get(recipe, 0) * parameters,
        saved + shape.softmax,
        float32,
        shape.transient,
        shape.mto,
        macs,
    )
