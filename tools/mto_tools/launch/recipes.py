"""How each recipe is asked to do the same small thing: a few steps, a checkpoint, a resume.

The sizes of the models are the recipes' own; data, batch and number of epochs are tiny.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mto_tools.errors import MissingError
from mto_tools.launch.digits import CLASSES, image_folder, map_files, wnid_lists

BATCH = 2


def flags(options: dict[str, object]) -> list[str]:
    """`--mto --mto_sparsity 0.1 …`, for the recipes that use argparse."""
    return ["--mto", *(str(x) for name, value in options.items() for x in (f"--mto_{name}", value))]


def nodes(options: dict[str, object]) -> list[str]:
    """`MTO.ON True MTO.SPARSITY 0.1 …`, to follow SimMIM's `--opts`."""
    pairs = {"on": True, **options}
    return [str(x) for name, value in pairs.items() for x in (f"MTO.{name.upper()}", value)]


@dataclass(frozen=True)
class Recipe:
    """One way to run an upstream.

    Attributes:
        name: Key in `RECIPES`; an upstream with two models has two.
        upstream: Folder under `patches/` and `upstream/`.
        script: The script that pre-trains.
        pretrain: Arguments for it, from checkout, data, output folder and number of epochs.
        mto: Turns options such as {"sparsity": 0.1} into the recipe's own arguments.
        resume: Arguments that continue from a checkpoint.
        checkpoint: Where a run in an output folder leaves the checkpoint of an epoch from 0.
        log: Where it leaves `mto.jsonl`.
        prepare: Lays out `(root, images per class)` as the recipe reads them.
        finetune: Arguments of the other scripts, by script, from checkout, data, output folder and
            checkpoint.
        unpatched: Python files that run first in a script which no patch has touched.
    """

    name: str
    upstream: str
    script: str
    pretrain: Callable[[Path, Path, Path, int], list[str]]
    mto: Callable[[dict[str, object]], list[str]] = flags
    resume: Callable[[Path], list[str]] = lambda checkpoint: [f"--resume={checkpoint}"]
    checkpoint: Callable[[Path, int], Path] = lambda out, epoch: out / f"checkpoint-{epoch}.pth"
    log: Callable[[Path], Path] = lambda out: out / "mto.jsonl"
    prepare: Callable[[Path, int], Path] = image_folder
    finetune: Callable[[Path, Path, Path, Path], dict[str, list[str]]] | None = None
    unpatched: tuple[Path, ...] = ()


def _mae_pretrain(checkout: Path, data: Path, out: Path, epochs: int) -> list[str]:
    return [
        *_words("--model mae_vit_base_patch16 --norm_pix_loss --mask_ratio 0.75"),
        *_words("--blr 1e-2 --warmup_epochs 1 --num_workers 0"),
        *(f"--batch_size={BATCH}", f"--epochs={epochs}", f"--data_path={data}"),
        *(f"--output_dir={out}", f"--log_dir={out}"),
    ]


def _mae_finetune(checkout: Path, data: Path, out: Path, weights: Path) -> dict[str, list[str]]:
    common = [
        *_words("--model vit_base_patch16 --epochs 1 --num_workers 0"),
        *(f"--nb_classes={CLASSES}", f"--data_path={data}", f"--finetune={weights}"),
    ]
    finetune = _words("--batch_size 4 --warmup_epochs 1 --blr 5e-4 --layer_decay 0.65")
    finetune += _words("--drop_path 0.1 --reprob 0.25 --mixup 0.8 --cutmix 1.0")
    probe = _words("--batch_size 4 --cls_token --blr 0.1")
    folders = {name: [f"--output_dir={out / name}", f"--log_dir={out / name}"] for name in "fl"}
    return {
        "main_finetune.py": [*common, *finetune, *folders["f"]],
        "main_linprobe.py": [*common, *probe, *folders["l"]],
    }


_SIMMIM = {
    "vit": ("vit_base__800ep", "vit_base__img224__800ep", "vit_base__img224__800ep"),
    "swin": (
        "swin_base__100ep",
        "swin_base__img192_window6__100ep",
        "swin_base__img224_window7__100ep",
    ),
}


def _simmim_pretrain(model: str) -> Callable[[Path, Path, Path, int], list[str]]:
    def arguments(checkout: Path, data: Path, out: Path, epochs: int) -> list[str]:
        folder, name, _ = _SIMMIM[model]
        config = checkout / "configs" / folder / f"simmim_pretrain__{name}.yaml"
        return [
            *(f"--cfg={config}", f"--data-path={data / 'train'}", f"--batch-size={BATCH}"),
            *(f"--output={out}", "--tag=run", "--opts", "TRAIN.EPOCHS", str(epochs)),
            *_words("TRAIN.WARMUP_EPOCHS 1 TRAIN.LR_SCHEDULER.MULTISTEPS [1] TRAIN.BASE_LR 1e-2"),
            *_words("DATA.NUM_WORKERS 0 PRINT_FREQ 1 SAVE_FREQ 1"),
        ]

    return arguments


def _simmim_finetune(model: str) -> Callable[[Path, Path, Path, Path], dict[str, list[str]]]:
    def arguments(checkout: Path, data: Path, out: Path, weights: Path) -> dict[str, list[str]]:
        folder, _, name = _SIMMIM[model]
        config = checkout / "configs" / folder / f"simmim_finetune__{name}.yaml"
        return {
            "main_finetune.py": [
                *(f"--cfg={config}", f"--data-path={data}", "--batch-size=4"),
                *(f"--pretrained={weights}", f"--output={out / 'f'}", "--tag=run", "--opts"),
                *_words("TRAIN.EPOCHS 1 TRAIN.WARMUP_EPOCHS 0 DATA.NUM_WORKERS 0 PRINT_FREQ 1"),
            ]
        }

    return arguments


def _simmim(model: str, name: str) -> Recipe:
    place = Path("simmim_pretrain") / "run"
    return Recipe(
        name=name,
        upstream="simmim",
        script="main_simmim.py",
        pretrain=_simmim_pretrain(model),
        mto=nodes,
        # --opts takes all that follows it, so what resumes is one of its pairs.
        resume=lambda checkpoint: ["MODEL.RESUME", str(checkpoint)],
        checkpoint=lambda out, epoch: out / place / f"ckpt_epoch_{epoch}.pth",
        log=lambda out: out / place / "mto.jsonl",
        finetune=_simmim_finetune(model),
    )


def _bootmae_pretrain(checkout: Path, data: Path, out: Path, epochs: int) -> list[str]:
    return [
        *_words("--model bootmae_base --model_ema --model_ema_decay 0.999 --model_ema_dynamic"),
        *_words("--mask_num 147 --feature_weight 1 --weight_mask --lr 1e-2 --min_lr 1e-5"),
        *_words("--warmup_epochs 1 --save_ckpt_freq 1 --num_workers 0"),
        *(f"--batch_size={BATCH}", f"--epochs={epochs}", f"--data_path={data}"),
        f"--output_dir={out}",
    ]


def _bootmae_finetune(checkout: Path, data: Path, out: Path, weights: Path) -> dict[str, list[str]]:
    common = [
        *_words("--epochs 1 --batch_size 4 --num_workers 0 --nb_classes 1000"),
        *(f"--data_path={data}", f"--finetune={weights}"),
    ]
    finetune = _words("--model bootmae_base_patch16_224 --warmup_epochs 1 --lr 5e-3")
    finetune += _words("--layer_decay 0.6 --drop_path 0.1 --abs_pos_emb --disable_rel_pos_bias")
    finetune += _words("--mixup 0.8 --cutmix 1.0 --model_key model --no_save_ckpt")
    finetune += _words("--model_ema --model_ema_decay 0.9998")
    probe = _words("--model base_patch16_224 --depth 9 --global_pool --blr 0.1 --dist_eval")
    return {
        "run_class_finetuning.py": [*common, *finetune, f"--output_dir={out / 'f'}"],
        "main_linprobe.py": [*common, *probe, f"--output_dir={out / 'l'}"],
    }


def _conmim_pretrain(checkout: Path, data: Path, out: Path, epochs: int) -> list[str]:
    return [
        *_words("--model conmim_small_patch16_224 --mask_type random_mps32 --mask_ratio 0.75"),
        *_words("--lr 7.5e-4 --warmup_epochs 1 --clip_grad 1.0 --layer_scale_init_value 1e-5"),
        *_words("--imagenet_default_mean_and_std --save_ckpt_freq 1 --num_workers 0"),
        *(f"--batch_size={BATCH}", f"--epochs={epochs}", f"--data_path={data}"),
        *(f"--output_dir={out}", f"--log_dir={out}"),
    ]


def _conmim_finetune(checkout: Path, data: Path, out: Path, weights: Path) -> dict[str, list[str]]:
    return {
        "run_class_finetuning.py": [
            *_words("--model beit_base_patch16_224 --epochs 1 --batch_size 4 --num_workers 0"),
            *_words("--warmup_epochs 1 --lr 4e-3 --layer_decay 0.65 --drop_path 0.1"),
            *_words("--mixup 0.8 --cutmix 1.0 --imagenet_default_mean_and_std --no_save_ckpt"),
            *("--nb_classes=1000", f"--data_path={data}", f"--finetune={weights}"),
            f"--output_dir={out}",
        ]
    }


def _words(text: str) -> list[str]:
    return text.split()


RECIPES: dict[str, Recipe] = {
    "mae": Recipe(
        name="mae",
        upstream="mae",
        script="main_pretrain.py",
        pretrain=_mae_pretrain,
        finetune=_mae_finetune,
    ),
    "simmim": _simmim("vit", "simmim"),
    "simmim_swin": _simmim("swin", "simmim_swin"),
    "bootmae": Recipe(
        name="bootmae",
        upstream="bootmae",
        script="run_pretraining.py",
        pretrain=_bootmae_pretrain,
        prepare=wnid_lists,
        finetune=_bootmae_finetune,
        unpatched=(Path(__file__).with_name("always_distributed.py"),),
    ),
    "conmim": Recipe(
        name="conmim",
        upstream="conmim",
        script="run_conmim_pretraining.py",
        pretrain=_conmim_pretrain,
        resume=lambda checkpoint: [
            f"--resume={checkpoint}",
            f"--resume_copy={checkpoint.with_name(checkpoint.name.replace('-', '_copy-'))}",
        ],
        prepare=map_files,
        finetune=_conmim_finetune,
    ),
}


def find_recipe(name: str) -> Recipe:
    """Return a recipe by name.

    Raises:
        MissingError: There is none of that name.
    """
    if name not in RECIPES:
        raise MissingError(f"no small run is known for {name!r}; known: {', '.join(RECIPES)}")
    return RECIPES[name]
