"""What upstream trains each model with: the facts that a plan must keep.

Sources are the upstreams at their pins: PRETRAIN.md (mae), the YAML files under configs/ (simmim),
README.md and scripts/pretrain/ (bootmae), README.md (conmim).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from mto_tools.errors import MissingError, RefusedError

IMAGENET = 1_281_167  # images of ImageNet-1K's training set, on which all four count their epochs


@dataclass(frozen=True)
class Size:
    """One model of a recipe.

    Attributes:
        model: Its name; upstream's own where it has one.
        total: Images per step on all GPUs.
        rate: The learning rate as upstream writes it, before any scaling.
        epochs: Length of the schedule; 0 for a recipe that counts steps.
        flags: Arguments of this model alone.
    """

    model: str
    total: int
    rate: str
    epochs: int
    flags: str = ""


@dataclass(frozen=True)
class Recipe:
    """A recipe and its models, the first being the default.

    Attributes:
        name: Folder under `patches/`.
        sizes: Its models; one more than once where upstream has several schedules.
        arguments: What its script gets, with names in braces to be filled in.
        mto: What its script gets besides when MTO is on.
        clip_grad: Largest gradient norm; 0 does not clip.
        scaled_by: Images for which `Size.rate` is given, where upstream scales it in proportion to
            the total batch; 0 where it takes the rate as it stands.
        precisions: What the recipe can compute in, the default first.
        any_epochs: Whether its schedule may have another length.
        warmup: Epochs of its warm-up; 0 where `arguments` do not give it.
        before: What to do first in the folder one stands in.
        largest_micro: Images of a micro batch at the most, where the model normalises by it: what
            upstream's GPUs had; 0 for no limit.
    """

    name: str
    sizes: tuple[Size, ...]
    arguments: str
    mto: str = "--mto"
    clip_grad: float = 0.0
    scaled_by: int = 0
    precisions: tuple[str, ...] = ("fp16",)
    any_epochs: bool = True
    warmup: int = 0
    before: str = ""
    largest_micro: int = 0

    @property
    def models(self) -> list[str]:
        """Names of its models."""
        return list(dict.fromkeys(size.model for size in self.sizes))

    def size(self, model: str | None, epochs: int | None) -> Size:
        """Find a model.

        Raises:
            MissingError: Upstream has no such model, or no schedule of that length for it.
            RefusedError: The schedule would end within its warm-up.
        """
        named = [size for size in self.sizes if size.model == (model or self.sizes[0].model)]
        if not named:
            raise MissingError(
                f"{self.name} has no model {model!r}", hint=f"--model {' | '.join(self.models)}"
            )
        for size in named:
            if epochs in (None, size.epochs):
                return size
        if self.any_epochs and epochs:
            if epochs <= self.warmup:
                raise RefusedError(
                    f"{self.name}: {epochs} epochs end within the warm-up, which takes "
                    f"{self.warmup}: the planned learning rate is never reached",
                    hint=f"--epochs {self.warmup + 1} or more; for a shorter run leave it out, and "
                    "change both --epochs and --warmup_epochs in the printed command",
                )
            return replace(named[0], epochs=epochs)
        lengths = " | ".join(str(size.epochs) for size in named if size.epochs)
        raise MissingError(
            f"{self.name}: upstream has no schedule of {epochs} epochs for {named[0].model}",
            hint=f"--epochs {lengths}" if lengths else "it counts steps: leave --epochs out",
        )

    def learning_rate(self, size: Size, total: int) -> float:
        """The peak learning rate that upstream computes for a total batch."""
        rate = float(size.rate)
        return rate * total / self.scaled_by if self.scaled_by else rate


def find_recipe(name: str) -> Recipe:
    """Find a recipe by name.

    Raises:
        MissingError: There is none of that name.
    """
    if name not in RECIPES:
        raise MissingError(f"no recipe {name!r} to plan for", hint=f"one of {', '.join(RECIPES)}")
    return RECIPES[name]


def _simmim_config(folder: str, name: str) -> str:
    return f"--cfg {{checkout}}/configs/{folder}/simmim_pretrain__{name}.yaml"


_VIT = _simmim_config("vit_base__800ep", "vit_base__img224__800ep")
_SWIN_100 = _simmim_config("swin_base__100ep", "swin_base__img192_window6__100ep")
_SWIN_800 = _simmim_config("swin_base__800ep", "swin_base__img192_window6__800ep")
_SWIN_LARGE = _simmim_config("swin_large__800ep", "swin_large__img192_window12__800ep")

MAE = Recipe(
    name="mae",
    sizes=(
        Size("mae_vit_base_patch16", 4096, "1.5e-4", 800),
        Size("mae_vit_large_patch16", 4096, "1.5e-4", 800),
        Size("mae_vit_huge_patch14", 4096, "1.5e-4", 800),
    ),
    arguments="--model {model} --batch_size {micro} --accum_iter {accumulation} "
    "--norm_pix_loss --mask_ratio 0.75 --epochs {epochs} --warmup_epochs {warmup} --blr {rate} "
    "--weight_decay 0.05 --data_path {data} --output_dir {output} --log_dir {output} "
    "--deepspeed_config {config}",
    scaled_by=256,
    warmup=40,
)
SIMMIM = Recipe(
    name="simmim",
    sizes=(
        Size("vit_base", 2048, "1e-4", 800, _VIT),
        Size("swin_base", 2048, "2e-4", 100, _SWIN_100),
        Size("swin_base", 2048, "1e-4", 800, _SWIN_800),
        Size("swin_large", 2048, "1e-4", 800, _SWIN_LARGE),
    ),
    arguments="{flags} --batch-size {micro} --accumulation-steps {accumulation} "
    "--data-path {data}/train --output {output} --tag {arm} --opts DEEPSPEED.CONFIG {config}",
    mto="MTO.ON True",
    clip_grad=5.0,
    scaled_by=512,
    any_epochs=False,
)
BOOTMAE = Recipe(
    name="bootmae",
    sizes=(
        Size("bootmae_base", 4096, "1.5e-4", 801, "--min_lr 1e-4 --model_ema_dynamic"),
        Size("bootmae_large", 2048, "1.5e-4", 801),
    ),
    arguments="--model {model} --batch_size {micro} --update_freq {accumulation} --lr {rate} "
    "--epochs {epochs} --warmup_epochs {warmup} --mask_num 147 --feature_weight 1 --weight_mask "
    "--model_ema --model_ema_decay 0.999 {flags} --data_path {data} --output_dir {output} "
    "--deepspeed_config {config}",
    scaled_by=256,
    warmup=40,
    before="ln -s {checkout}/data data",
)
CONMIM = Recipe(
    name="conmim",
    sizes=(
        Size("conmim_base_patch16_224", 2048, "7.5e-4", 800, "--layer_scale_init_value 0.1"),
        Size("conmim_small_patch16_224", 2048, "7.5e-4", 300, "--layer_scale_init_value 0.1"),
        Size("conmim_large_patch16_224", 2048, "7.5e-4", 1600, "--layer_scale_init_value 1e-5"),
    ),
    arguments="--model {model} --batch_size {micro} --lr {rate} --epochs {epochs} "
    "--warmup_epochs {warmup} --clip_grad 1.0 --drop_path 0 {flags} --mask_type random_mps32 "
    "--mask_ratio 0.75 --imagenet_default_mean_and_std --save_ckpt_freq 20 --data_path {data} "
    "--output_dir {output} --log_dir {output} --deepspeed_config {config}",
    clip_grad=1.0,
    warmup=10,
    largest_micro=64,
)
MINI = Recipe(
    name="mini",
    sizes=(Size("mae", 64, "2e-3", 0), Size("simmim", 64, "2e-3", 0)),
    arguments="--style {model} --batch_size {total} --accum_steps {accumulation} --lr {rate} "
    "--amp {amp} --data_path {data} --output_dir {output} --deepspeed_config {config}",
    precisions=("bf16", "fp16", "float32"),
    any_epochs=False,
)
RECIPES = {recipe.name: recipe for recipe in (MAE, SIMMIM, BOOTMAE, CONMIM, MINI)}
